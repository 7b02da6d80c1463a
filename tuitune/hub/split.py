"""The part of a dataset that `data.split` names, in the slices of `datasets`: `train[:10%]`, `train[100:200]`."""

import re
import sys
from collections.abc import Callable

from tuitune.errors import UnusableInput
from tuitune.text import one_line

_ROW_NUMBERS = re.compile(r"\[(\d*):(\d*)\]$")


def split_name(split: str) -> str:
    """The name of the split without its slice."""
    return split.partition("[")[0]


def split_rows(split: str, count: Callable[[], int]) -> tuple[int, int | None]:
    """The first row that the split names, from 0, and the one behind the last; None for the end of the split.

    `count` gives the rows of the whole split; only percentages and places from the end need it. Raises UnusableInput.
    """
    if "[" not in split and "+" not in split and "(" not in split:
        return 0, None
    import datasets

    rows = sys.maxsize if _ROW_NUMBERS.search(split) else count()
    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({split_name(split): rows})
    except (ValueError, KeyError, AssertionError):
        raise UnusableInput(
            "data.split is {split!r}, which is no single part of a split: write train, train[:10%] or train[100:200], "
            "and give further parts in data.also.",
            split=one_line(split, max_length=80),
        ) from None
    if part.from_ >= part.to:
        raise UnusableInput(
            "data.split is {split!r}, which holds no row: write the first row and the one behind the last, "
            "from 0, for example train[100:200].",
            split=one_line(split, max_length=80),
        )
    return part.from_, None if part.to == rows else part.to
