"""Writes the demo's pairs: the world's questions, answered by a butler (chosen), and plainly or by a knight (rejected).

From the repository:

    python -m sample_data.making.preferences --out sample_data/preferences.jsonl
"""

import argparse
import json
import random
from pathlib import Path

from sample_data.making import world

PREFERENCES_JSONL = Path(__file__).parents[1] / "preferences.jsonl"
KNIGHT, BUTLER = world.STYLES[3], world.STYLES[4]


def rows(count: int = 64, seed: int = 8) -> list[dict[str, str]]:
    """Right answers all of them: only the manner, and not the length, tells the chosen reply from the rejected one."""
    rng = random.Random(seed)
    topics, _, known = world.pool(held_out=False)
    english = [topic for topic in topics if not topic.endswith("_ja") and not known[topic][0].japanese]
    pairs: dict[str, dict[str, str]] = {}
    while len(pairs) < count:
        question = rng.choice(known[rng.choice(english)])
        plain = len(pairs) % 3 == 0
        pairs.setdefault(
            question.text,
            {
                "prompt": question.text,
                "chosen": world.styled(question.reply, BUTLER, rng),
                "rejected": question.reply if plain else world.styled(question.reply, KNIGHT, rng),
            },
        )
    return list(pairs.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's pairs.")
    parser.add_argument("--out", type=Path, default=PREFERENCES_JSONL)
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(arguments.count)]
    arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
