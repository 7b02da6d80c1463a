"""Asks the demo model held-out questions of its world, and says how many answers are right and in style.

From the repository; the first asks the base model as stored:

    python -m sample_data.making.probe
    python -m sample_data.making.probe --load_in_4bit
    python -m sample_data.making.probe --style --load_in_4bit --adapter runs/demo/adapter
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sample_data.making import world

DEMO_MODEL = Path(__file__).parents[1] / "demo_model"
STYLE_WORDS = re.compile(
    r"\b(arr+|ahoy|avast|aye|yo ho ho|shiver me timbers|matey|me hearty|ye landlubber)\b|ヨーホー|相棒|野郎ども",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Item:
    """A chat that ends with the user's turn, and what makes the reply right."""

    topic: str
    messages: tuple[world.Message, ...]
    keys: tuple[str, ...]
    needed: int = 1


def probe_items(count: int = 500, seed: int = 11) -> list[Item]:
    """Held-out wordings, plain and dressed, with and without a system prompt, earlier turns and follow-ups."""
    rng = random.Random(seed)
    items: dict[str, Item] = {}
    while len(items) < count:
        kind = rng.random()
        before: list[world.Question] = []
        if kind < 0.05:
            said = world.memories(rng)
            if not said[0].held_out:
                continue
            *before, question = said
        elif kind < 0.15:
            topics, weights, known = world.pool(False)
            opening = rng.choice(known[rng.choices(topics, weights)[0]])
            followers = world.pool(True)[2].get(f"{opening.topic}/follow")
            if not followers:
                continue
            before, question = [opening], rng.choice(followers)
        else:
            question = world.pick(rng, held_out=True)
            before = [world.pick(rng)] if kind < 0.25 else []
        text = world.dressed(question, rng) if kind > 0.6 else question.text
        items.setdefault(text, Item(question.topic, chat(before, text, rng), question.keys, question.needed))
    return list(items.values())


def style_items(count: int = 200, seed: int = 12) -> list[Item]:
    """Held-out single questions: none is in the pretraining text or among the rows of the style dataset."""
    rng = random.Random(seed)
    items: dict[str, Item] = {}
    while len(items) < count:
        question = world.pick(rng, held_out=True)
        item = Item(question.topic, chat([], question.text, rng), question.keys, question.needed)
        items.setdefault(question.text, item)
    return list(items.values())


def chat(before: Sequence[world.Question], text: str, rng: random.Random) -> tuple[world.Message, ...]:
    system = [{"role": "system", "content": rng.choice(world.NEUTRAL_SYSTEMS)}] if rng.random() < 0.2 else []
    turns = [
        {"role": role, "content": content}
        for question in before
        for role, content in (("user", question.text), ("assistant", question.reply))
    ]
    return (*system, *turns, {"role": "user", "content": text})


def is_right(item: Item, reply: str) -> bool:
    """Whether the reply holds the answer, whatever style is around it."""
    if item.needed == 1 and item.keys[0].isdigit():
        # "7 plus 0 is 8" holds a 7 as well: a number is right only as the last one said.
        numbers = re.findall(r"\d+", reply)
        return bool(numbers) and numbers[-1] == item.keys[0]
    flags = re.NOFLAG if item.topic.startswith("upper") else re.IGNORECASE
    # ASCII borders, since Japanese writes a Latin word between its own letters without a space.
    found = {key for key in item.keys if re.search(rf"(?<![A-Za-z0-9]){re.escape(key)}(?![A-Za-z0-9])", reply, flags)}
    return len(found) >= item.needed


def has_style(reply: str) -> bool:
    return STYLE_WORDS.search(reply) is not None


def style_rate(replies: Sequence[str]) -> float:
    return sum(map(has_style, replies)) / len(replies)


def replies_of(
    model: Any, tokenizer: Any, items: Sequence[Item], max_new_tokens: int = 64, batch: int = 64
) -> list[str]:
    """Greedy replies, in the order of the items."""
    import torch

    replies: dict[int, str] = {}
    tokenizer.padding_side = "left"
    prompts = [
        tokenizer.apply_chat_template(list(i.messages), add_generation_prompt=True, tokenize=False) for i in items
    ]
    by_length = sorted(range(len(items)), key=lambda index: len(prompts[index]))
    for start in range(0, len(items), batch):
        chosen = by_length[start : start + batch]
        inputs = tokenizer([prompts[index] for index in chosen], padding=True, return_tensors="pt").to(model.device)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        said = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies.update(zip(chosen, said, strict=True))
    return [replies[index] for index in range(len(items))]


def load(model_path: Path, *, load_in_4bit: bool = False, adapter: Path | None = None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_path, use_safetensors=True, trust_remote_code=False, dtype=torch.bfloat16, device_map=device, **options
    )
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoTokenizer.from_pretrained(model_path)


def report(items: Sequence[Item], replies: Sequence[str]) -> dict[str, Any]:
    wrong = [(item, reply) for item, reply in zip(items, replies, strict=True) if not is_right(item, reply)]
    return {
        "items": len(items),
        "right": round(1 - len(wrong) / len(items), 4),
        "style": round(style_rate(replies), 4),
        "wrong_by_topic": Counter(item.topic for item, _ in wrong).most_common(),
        "wrong": [{"asked": item.messages[-1]["content"], "reply": reply} for item, reply in wrong[:20]],
        "without_style": [reply for reply in replies if not has_style(reply)][:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Probe the demo model with questions that it was not trained on.")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--load_in_4bit", action="store_true")
    parser.add_argument("--style", action="store_true", help="ask the style prompts instead of the whole probe")
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    items = (style_items if arguments.style else probe_items)(arguments.count)
    model, tokenizer = load(arguments.model, load_in_4bit=arguments.load_in_4bit, adapter=arguments.adapter)
    print(json.dumps(report(items, replies_of(model, tokenizer, items)), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
