"""From a recipe's dataset to the rows a trainer takes: read, masked, split, counted."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tuitune.data.dataset import Dataset, Row, open_dataset
from tuitune.errors import UnusableInput
from tuitune.masking import Conversation, Masked, Masker, UnusableRow
from tuitune.recipe import Recipe
from tuitune.text import one_line

BATCH = 512
EXAMPLES = 5

_PLACE = re.compile(r"\b(line|element|row|turn|message) \d+(?:, column \d+| at column \d+)?")


@dataclass
class Dropped:
    """Rows left out for one reason: how many, the first few row numbers (from 0), and the first one's own words."""

    count: int = 0
    examples: list[int] = field(default_factory=list)
    first: str = ""


@dataclass
class Prepared:
    """Tokenised rows with columns `input_ids` and `labels`, and what became of every row."""

    dataset: Dataset
    train: Any
    """datasets.Dataset"""
    eval: Any
    """datasets.Dataset of the held-out rows, or None."""
    eval_rows: list[int]
    """Row numbers of the held-out rows in the file."""
    dropped: dict[str, Dropped]
    tokens: int
    """Tokens of the rows in `train`, after cutting."""
    trained_tokens: int
    truncated: int
    """Rows cut at max_length."""
    longest: int
    """Tokens of the longest row, after cutting."""

    def prompts(self, count: int) -> list[Conversation]:
        """The first `count` different prompts, up to each row's first reply: of held-out rows, else of the data."""
        wanted = set(self.eval_rows)
        found: list[Conversation] = []
        for row in self.dataset.rows(stop=max(wanted) + 1 if wanted else 1000):
            if row.messages is None or (wanted and row.index not in wanted):
                continue
            roles = [message["role"] for message in row.messages]
            if "assistant" in roles[1:] and (prompt := row.messages[: roles.index("assistant", 1)]) not in found:
                found.append(prompt)
            if len(found) == count:
                break
        return found


def prepare(
    recipe: Recipe,
    tokenizer: Any,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Read, tokenise, mask and split the recipe's dataset; `progress` gets rows done and, where known, their number.

    When `cancelled` turns true the rows so far are returned. Raises UnusableInput where no row can be trained on.
    """
    import datasets

    dataset = open_dataset(recipe.data)
    masker = Masker(tokenizer, recipe.data.train_on, recipe.data.max_length)
    dropped: dict[str, Dropped] = {}
    indices: list[int] = []
    digests: list[bytes] = []
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    truncated = 0
    done = 0
    for batch in _batches(dataset.rows()):
        if cancelled():
            break
        for row, result in zip(batch, _encoded(masker, batch), strict=True):
            if isinstance(result, UnusableRow):
                _drop(dropped, row.index, str(result))
                continue
            indices.append(row.index)
            digests.append(_digest(row))
            columns["input_ids"].append(result.input_ids)
            columns["labels"].append(result.labels)
            truncated += result.truncated
        done += len(batch)
        progress(done, None)
    if not indices and not cancelled():
        raise UnusableInput(no_usable_row(recipe, dropped))
    rows = datasets.Dataset.from_dict(
        columns, features=datasets.Features({name: datasets.List(datasets.Value("int32")) for name in columns})
    )
    held_out = _held_out(digests, recipe.data.eval_share, recipe.train.seed)
    kept = [place for place in range(len(indices)) if place not in held_out]
    lengths = [len(ids) for ids in columns["input_ids"]]
    return Prepared(
        dataset=dataset,
        train=rows.select(kept) if held_out else rows,
        eval=rows.select(sorted(held_out)) if held_out else None,
        eval_rows=[indices[place] for place in sorted(held_out)],
        dropped=dropped,
        tokens=sum(lengths[place] for place in kept),
        trained_tokens=sum(len(columns["labels"][i]) - columns["labels"][i].count(-100) for i in kept),
        truncated=truncated,
        longest=max(lengths, default=0),
    )


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _encoded(masker: Masker, rows: list[Row]) -> list[Masked | UnusableRow]:
    samples = [row.sample for row in rows]
    results = iter(masker.encode_batch([sample for sample in samples if sample is not None]))
    return [UnusableRow(row.error or "it cannot be read") if row.sample is None else next(results) for row in rows]


def _drop(dropped: dict[str, Dropped], index: int, reason: str) -> None:
    entry = dropped.setdefault(
        _PLACE.sub(lambda match: f"{'an' if match[1] == 'element' else 'a'} {match[1]}", reason), Dropped(first=reason)
    )
    entry.count += 1
    if len(entry.examples) < EXAMPLES:
        entry.examples.append(index)


def no_usable_row(recipe: Recipe, dropped: dict[str, Dropped]) -> str:
    """The sentence for a dataset of which nothing can be trained: the commonest reason and its remedy."""
    name = one_line(Path(recipe.data.path).name, max_length=120)
    if not dropped:
        return f"{name} holds no rows."
    reason, rows = max(dropped.items(), key=lambda item: item[1].count)
    remedy = "look at the rows with `tuitune inspect RECIPE --rows 0:3`"
    if "max_length" in reason:
        remedy = "raise data.max_length"
    elif "no assistant turn" in reason:
        remedy = "map the reply's column in data.columns, or set data.train_on to all"
    return f"No row of {name} can be trained on; row {rows.examples[0]} (of {rows.count} such): {rows.first}; {remedy}."


def _digest(row: Row) -> bytes:
    """The same for rows with the same turns or text, whatever their other columns hold."""
    assert row.sample is not None
    if row.sample.messages is None:
        parts = [row.sample.text or ""]
    else:
        parts = [part for turn in row.sample.messages for part in (turn["role"], (turn["content"] or "").strip())]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _held_out(digests: list[bytes], share: float, seed: int) -> set[int]:
    """Places of the held-out rows: `share` of all, drawn by content, so that equal rows are on the same side."""
    if share == 0 or len(digests) < 2:
        return set()
    places: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        places.setdefault(hashlib.blake2b(digest, salt=seed.to_bytes(8, "big")).digest(), []).append(place)
    wanted = max(1, round(share * len(digests)))
    held: set[int] = set()
    for drawn in sorted(places):
        if len(held) + len(places[drawn]) <= wanted:
            held.update(places[drawn])
        if len(held) == wanted:
            break
    return held
