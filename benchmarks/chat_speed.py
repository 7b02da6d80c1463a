"""How fast a chat's replies are, against transformers' `generate` of the same model with its adapter, in one process.

    python -m benchmarks.chat_speed [--model FOLDER] [--bits 4 16] [--tokens N] [--pairs N] [--json FILE]
    python -m benchmarks.chat_speed --after-training

The second trains the demo in a session and asks at once: the seconds until the first word of the reply is here.

Both write the same number of tokens after the same prompt at batch 1, in turn; the figure is the median ratio of
tokens a second. The adapter is on and not merged. Without --model it is the demo's model.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.shapes import SAMPLE_DATA

_NEVER = 2**31 - 1
"""A token that there is not: with it as the end both write as many tokens."""


def measure(model: Path, *, in_4bit: bool, tokens: int, pairs: int) -> dict[str, Any]:
    """Seconds and ratios of replies and of plain `generate`."""
    import torch

    from tuitune import backends
    from tuitune.chat.reply import prompt_ids, reply
    from tuitune.chat.sampling import Sampling
    from tuitune.conversation import Conversation
    from tuitune.recipe import Recipe

    recipe = Recipe.from_data(
        {
            "model": {"name": str(model), "load_in_4bit": in_4bit},
            "data": {"path": str(SAMPLE_DATA / "pirate.jsonl")},
        }
    )
    loaded = backends.load(recipe, print)
    loaded.backend.attach(loaded)
    torch.manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    chat: Conversation = [{"role": "user", "content": "Tell me a long story about the sea. " * 12}]
    prompt = torch.tensor([prompt_ids(loaded, chat)], device=loaded.model.device)
    sampling = Sampling(max_new_tokens=tokens)

    def plain() -> float:
        loaded.backend.for_inference(loaded)
        began = time.perf_counter()
        with torch.inference_mode():
            output = loaded.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=_NEVER,
                pad_token_id=0,
            )
        return float((output.shape[1] - prompt.shape[1]) / (time.perf_counter() - began))

    began = time.perf_counter()
    patch("tuitune.chat.reply.end_tokens", return_value={_NEVER}).start()
    first = reply(loaded, chat, sampling, fast=True)
    first_seconds = time.perf_counter() - began
    plain()
    figures = []
    for _ in range(pairs):
        before = plain()
        first_answer = reply(loaded, chat, sampling, fast=True)
        second_answer = reply(loaded, chat, sampling, fast=True)
        after = plain()  # in turn, so that what else the machine does falls on both
        seconds = (first_answer.seconds + second_answer.seconds) / 2
        figures.append((first_answer.tokens / seconds, 2 / (1 / before + 1 / after), first_answer.first_token_s))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "model": model.name,
        "in_4bit": in_4bit,
        "device": device,
        "backend": loaded.backend.name,
        "decoder": type(loaded.decoder).__name__ if loaded.decoder else "generate",
        "prompt_tokens": prompt.shape[1],
        "tokens": first_answer.tokens,
        "tokens_per_second": round(statistics.median(figure[0] for figure in figures), 1),
        "generate_tokens_per_second": round(statistics.median(figure[1] for figure in figures), 1),
        "ratio": round(statistics.median(figure[0] / figure[1] for figure in figures), 2),
        "first_token_s": round(statistics.median(figure[2] for figure in figures), 4),
        "first_token_of_first_reply_s": round(first.first_token_s, 3),
        "first_reply_s": round(first_seconds, 2),
    }


async def first_word_after_training() -> float:
    """Seconds from asking to the first word, of a session that has just trained the demo."""
    from tuitune.recipe import Recipe
    from tuitune.session.client import Session
    from tuitune.session.result_requests import Chat
    from tuitune.session.run_requests import Train

    with tempfile.TemporaryDirectory() as runs:
        session = await Session.start()
        recipe = Recipe.load(SAMPLE_DATA / "demo.yaml").model_dump(mode="json")
        folder: list[str] = []
        await session.call(Train(recipe, runs), lambda part: folder.append(part["run"]))
        first: list[float] = []
        began = time.perf_counter()

        def heard(part: dict[str, Any]) -> None:
            if "text" in part:
                first.append(time.perf_counter() - began)

        await session.call(Chat(folder[0], [{"role": "user", "content": "Who are you?"}]), heard)
        await session.close()
    return round(first[0], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=SAMPLE_DATA / "demo_model")
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 16), default=[4, 16])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--after-training", action="store_true")
    arguments = parser.parse_args()
    if arguments.after_training:
        print(json.dumps({"first_word_after_training_s": asyncio.run(first_word_after_training())}))
        return
    from tuitune.machine.environment import warm_up

    warm_up()
    results = []
    for bits in arguments.bits:
        results.append(measure(arguments.model, in_4bit=bits == 4, tokens=arguments.tokens, pairs=arguments.pairs))
        print(json.dumps(results[-1], indent=2), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
