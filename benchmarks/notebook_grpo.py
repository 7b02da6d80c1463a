"""GRPO as an Unsloth notebook does it without vLLM: the peer of benchmarks.gpu_grpo.

    python -m benchmarks.notebook_grpo MODEL --data FILE [--steps 8] [--answers 8] [--tokens 256]

4-bit, r=16 on all seven projections, one prompt a step with its answers, learning rate 5e-6, 8-bit AdamW, Unsloth's
gradient checkpointing. FILE is JSONL with `prompt`. Prints a line with the seconds of each step as it ends. Needs an
NVIDIA GPU with Unsloth.
"""

import argparse
import json
import tempfile
import time
from typing import Any

from benchmarks.notebook import loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    outputs = tempfile.mkdtemp(prefix="notebook-")
    model, tokenizer = loaded(arguments.model, outputs)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    with open(arguments.data, encoding="utf-8") as file:
        prompts = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in file]

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def __init__(self) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            torch.cuda.synchronize()
            now = time.perf_counter()
            print(json.dumps({"step": state.global_step, "seconds": round(now - self.last, 3)}), flush=True)
            self.last = now

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(completion[0]["content"]) % 97) for completion in completions]

    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[length],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        callbacks=[Clock()],
        args=GRPOConfig(
            per_device_train_batch_size=arguments.answers,
            num_generations=arguments.answers,
            gradient_accumulation_steps=1,
            max_completion_length=arguments.tokens,
            max_steps=arguments.steps,
            learning_rate=5e-6,
            warmup_steps=1,
            bf16=True,
            optim="adamw_8bit",
            seed=3407,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            output_dir=outputs,
        ),
    )
    trainer.train()


if __name__ == "__main__":
    main()
