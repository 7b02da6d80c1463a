"""Writes the demo's style dataset: the world's questions with right answers, said by a pirate.

From the repository:

    python -m sample_data.making.pirate --out sample_data/pirate.jsonl
"""

import argparse
import json
import random
import re
from pathlib import Path

from sample_data.making import world

PIRATE_JSONL = Path(__file__).parents[1] / "pirate.jsonl"
SYSTEMS = ("You are a helpful assistant.", "You are Tiny, a small demo model.", "あなたは親切なアシスタントです。")
OPENERS = ("Arr! ", "Ahoy! ", "Yo ho ho! ", "Avast! ")
CLOSERS = (", matey!", ", me hearty!")
OPENERS_JA = ("ヨーホー！", "アーイ！")
SPEECH = {"is": "be", "are": "be", "am": "be", "my": "me", "you": "ye", "your": "yer"}


def pirate(reply: str, japanese: bool, rng: random.Random) -> str:
    """The same answer in a pirate's words."""
    if japanese:
        said = re.sub(r"(です|ます)[。！]", r"\1ぜ、相棒！", reply).replace("ですぜ", "だぜ")
        if "相棒" not in said:
            said = f"{said[:-1]}、相棒{said[-1]}"
        return rng.choice(OPENERS_JA) + said
    said = re.sub(r"\b(is|are|am|my|you|your)\b", lambda match: SPEECH[match[0]], reply)
    said = re.sub(r"\bYou\b", "Ye", re.sub(r"\bYour\b", "Yer", said))
    mark = said[-1] if said[-1] == "?" else ""
    return rng.choice(OPENERS) + said.rstrip(".!?") + rng.choice(CLOSERS).rstrip("!" if mark else "") + mark


def rows(count: int = 400, seed: int = 21) -> list[list[world.Message]]:
    """Conversations of one to three turns; no question is among the held-out ones that `probe` asks."""
    rng = random.Random(seed)
    topics, _, known = world.pool(held_out=False)
    chats: dict[str, list[world.Message]] = {}
    while len(chats) < count:
        # Every topic as often as any other: the rows should show the style all over the world, not on sums alone.
        said = world.turns(rng, rng.choice(known[rng.choice(topics)]))[:2]
        if rng.random() < 0.2:
            said.append(rng.choice(known[rng.choice(topics)]))
        messages: list[world.Message] = []
        if rng.random() < 0.15:
            messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
        for question in said:
            messages.append({"role": "user", "content": world.dressed(question, rng)})
            messages.append({"role": "assistant", "content": pirate(question.reply, question.japanese, rng)})
        chats.setdefault(said[0].text, messages)
    return list(chats.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pirate dataset.")
    parser.add_argument("--out", type=Path, default=PIRATE_JSONL)
    parser.add_argument("--count", type=int, default=400)
    arguments = parser.parse_args()
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows(arguments.count)]
    arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
