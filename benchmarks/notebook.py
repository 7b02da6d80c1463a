"""Fine-tuning as an Unsloth notebook does it, with its default settings: the peer of benchmarks.gpu_speed.

    python benchmarks/notebook.py MODEL --data FILE [--steps 20]

4-bit, r=16 on all seven projections, 2 rows a pass and 4 passes a step, 2048 tokens a row at most, 8-bit AdamW,
learning rate 2e-4 falling linearly after 5 warm-up steps, seed 3407, loss on the replies. FILE is JSONL with
`messages`. Needs an NVIDIA GPU with Unsloth. The last line it prints is JSON: non-padding tokens a second over the
last two thirds of the steps, and the allocator's peak.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any

# As the tokenizer of benchmarks.shapes writes chats (ChatML).
USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"


def loaded(name: str, outputs: str) -> tuple[Any, Any]:
    """The model with its adapter, and the tokenizer; call it before torch's other users, which Unsloth patches."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": outputs}
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(name, max_seq_length=2048, load_in_4bit=True)
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
    return model, tokenizer


def texts(tokenizer: Any, rows: dict[str, list[Any]]) -> dict[str, list[str]]:
    """The chats of a batch of rows as the chat template writes them."""
    return {"text": [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows["messages"]]}


def speed(marks: list[tuple[float, int]]) -> tuple[float, float]:
    """Tokens a second and seconds a step over the last two thirds of the steps.

    `marks` holds the time in seconds and the tokens so far at the end of each.
    """
    (began, before), (ended, after) = marks[len(marks) // 3], marks[-1]
    return (after - before) / (ended - began), (ended - began) / (len(marks) - 1 - len(marks) // 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    outputs = tempfile.mkdtemp(prefix="notebook-")
    model, tokenizer = loaded(arguments.model, outputs)
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from unsloth.chat_templates import train_on_responses_only

    rows = load_dataset("json", data_files=arguments.data, split="train")
    rows = rows.map(lambda batch: texts(tokenizer, batch), batched=True, remove_columns=rows.column_names)
    marks: list[tuple[float, int]] = []

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            torch.cuda.synchronize()
            marks.append((time.perf_counter(), int(state.num_input_tokens_seen)))

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=rows,
        callbacks=[Marks()],
        args=SFTConfig(
            output_dir=outputs,
            dataset_text_field="text",
            max_length=2048,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            max_steps=arguments.steps,
            warmup_steps=5,
            learning_rate=2e-4,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            optim="adamw_8bit",
            logging_steps=1,
            save_strategy="no",
            seed=3407,
            report_to="none",
            include_num_input_tokens_seen="non_padding",
        ),
    )
    trainer = train_on_responses_only(trainer, instruction_part=USER, response_part=ASSISTANT)
    trainer.train()
    tokens_per_second, seconds_per_step = speed(marks)
    result = {
        "peer": "unsloth notebook",
        "steps": arguments.steps,
        "tokens_per_second": round(tokens_per_second),
        "seconds_per_step": round(seconds_per_step, 4),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
