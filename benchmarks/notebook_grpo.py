"""GRPO as an Unsloth notebook does it without vLLM: the peer of benchmarks.gpu_grpo.

    python benchmarks/notebook_grpo.py MODEL --data FILE [--steps 8] [--answers 8] [--tokens 256]

4-bit, r=16 on all seven projections, one prompt a step with its answers, learning rate 5e-6, 8-bit AdamW, Unsloth's
gradient checkpointing. FILE is JSONL with `prompt`. Prints a line with the seconds of each step as it ends. Needs an
NVIDIA GPU with Unsloth.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    arguments = parser.parse_args()
    outputs = tempfile.mkdtemp(prefix="notebook-")
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": outputs}
    from unsloth import FastLanguageModel  # before torch's other users, which it patches

    import torch  # isort: skip
    from datasets import Dataset  # isort: skip
    from transformers import TrainerCallback  # isort: skip
    from trl import GRPOConfig, GRPOTrainer  # isort: skip

    model, tokenizer = FastLanguageModel.from_pretrained(arguments.model, max_seq_length=2048, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
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
