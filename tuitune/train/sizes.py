"""A few sizes that passes of every size are filled up to, so that each can be captured once and replayed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuitune.train.batching import ALIGNED

WASTE = 0.05
"""Filling that a choice of sizes may bring, as a share of the tokens."""
_MOST_SIZES = 16
_COVERED = 0.99
_DRAWS = 2000


def sizes_for(needed: Sequence[int] | NDArray[np.int64], waste: float = WASTE) -> tuple[int, ...]:
    """The fewest sizes that passes of the `needed` sizes (tokens) are filled up to with at most `waste`; 16 at most.

    Each is a multiple of ALIGNED, and a pass goes into the smallest one that holds it. The waste is the filling over
    all passes, as a share of what they need. The largest passes, one in a hundred, are left out: they stay as they are.
    """
    ascending = np.sort(np.asarray(needed, dtype=np.int64))
    ascending = ascending[: max(1, int(_COVERED * len(ascending)))]
    values, counts = np.unique(-(-ascending // ALIGNED) * ALIGNED, return_counts=True)
    allowed = (1 + waste) * float(ascending.sum())
    sizes: tuple[int, ...] = ()
    for number in range(1, min(_MOST_SIZES, len(values)) + 1):
        sizes, filled = _cheapest(values, counts, number)
        if filled <= allowed:
            break
    return sizes


def _cheapest(values: NDArray[np.int64], counts: NDArray[np.int64], number: int) -> tuple[tuple[int, ...], float]:
    """The `number` of `values` (ascending) that hold everything in the fewest tokens, and how many those are.

    By dynamic programming over the largest size chosen: with j before i, what lies between them is filled up to i.
    """
    up_to = np.cumsum(counts)  # passes that values[i] holds
    between = values[:, None] * (up_to[:, None] - up_to[None, :])
    between = np.where(np.tri(len(values), k=-1, dtype=bool), between, np.inf)  # (i, j), j below i
    filled = (values * up_to).astype(np.float64)
    before: list[NDArray[np.int64]] = []
    for _ in range(number - 1):
        totals = filled[None, :] + between
        before.append(totals.argmin(axis=1))
        filled = totals.min(axis=1)
    place = len(values) - 1
    places = [place]
    for previous in reversed(before):
        place = int(previous[place])
        places.append(place)
    return tuple(int(values[place]) for place in reversed(places)), float(filled[-1])


def drawn_passes(lengths: Sequence[int], rows: int) -> NDArray[np.int64]:  # (passes,)
    """Tokens of passes of `rows` rows each, drawn at random from rows of these `lengths`."""
    array = np.asarray(lengths, dtype=np.int64)
    draws = np.random.default_rng(0).integers(0, len(array), size=(_DRAWS, min(rows, len(array))))
    return np.asarray(array[draws].sum(axis=1))


def pass_sizes(lengths: Sequence[int], rows: int) -> tuple[int, ...]:
    """The sizes for padding-free passes of `rows` rows of these `lengths`: a filling of at least one token follows."""
    return sizes_for(drawn_passes(lengths, rows) + 1)


def captures_pay(passes: int, sizes: int, eager_s: float, replay_s: float, capture_s: float) -> bool:
    """Whether capturing passes of so many `sizes`, `capture_s` seconds each, is made up for within `passes` passes.

    A pass takes `eager_s` seconds as it is and `replay_s` replayed. The first pass of each size is not replayed.
    """
    replayed = passes - sizes
    return replayed > 0 and replayed * (eager_s - replay_s) > sizes * capture_s
