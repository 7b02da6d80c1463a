"""Models of well-known shapes with random weights, and chats to train them on: weights change neither speed nor memory.

    python -m benchmarks.shapes {1b,3b,8b} FOLDER

The shapes are Llama 3's (1.24, 3.21 and 8.03 billion parameters); tokenizer and text are the demo model's.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "tie_word_embeddings": False},
}  # fmt: skip


def make_model(shape: str, folder: Path) -> Path:
    """Write the model to `folder`, unless it is there already."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    if (folder / "config.json").is_file():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA / "demo_model")
    tokenizer.model_max_length = 131072
    tokenizer.save_pretrained(folder)
    config = make_config(shape, tokenizer)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder)
    return folder


def make_config(shape: str, tokenizer: Any) -> Any:
    """The shape as a transformers config, with the tokenizer's special tokens."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape],
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_chats(file: Path, count: int = 6000, seed: int = 0) -> Path:
    """Write one-turn chats of about 310 tokens on average, up to 2048, lengths log-normal as in real chat data."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA / "demo_model")
    rng = random.Random(seed)
    lines = (SAMPLE_DATA / "pirate.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    ids: list[int] = tokenizer(" ".join(texts * 8), add_special_tokens=False)["input_ids"]
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            size = int(min(2000, max(24, rng.lognormvariate(5.45, 0.75))))
            start = rng.randrange(len(ids) - size)
            asked, answered = ids[start : start + size // 3], ids[start + size // 3 : start + size]
            messages = [
                {"role": "user", "content": tokenizer.decode(asked)},
                {"role": "assistant", "content": tokenizer.decode(answered)},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
