"""Which cards train one run together."""

import os

from tuitune.errors import UnusableInput
from tuitune.machine.hardware import Gpu, visible_gpus

CPU_RANKS = "TUITUNE_CPU_RANKS"
"""For tests: so many processes on the CPU stand in for cards, where a recipe trains on all of them."""


def cards_of(gpus: str | list[int]) -> list[Gpu]:
    """The cards that a recipe's `train.gpus` means; empty where one process trains, on whatever it was started for.

    Raises UnusableInput for cards that are not there.
    """
    if gpus == "auto" or cpu_ranks(gpus):
        return []
    there = visible_gpus()
    if not there:
        raise UnusableInput("train.gpus names cards, and this machine has none that can be used: leave it at auto.")
    if gpus == "all":
        return there if len(there) > 1 else []
    by_index = {card.index: card for card in there}
    if missing := [str(index) for index in gpus if index not in by_index]:
        known = ", ".join(map(str, by_index))
        raise UnusableInput(
            f"train.gpus names GPU {', '.join(missing)}, and there is {known}: `nvidia-smi` lists them."
        )
    return [by_index[int(index)] for index in gpus]


def cpu_ranks(gpus: str | list[int]) -> int:
    """How many processes on the CPU stand in for all cards; 0 for none."""
    count = os.environ.get(CPU_RANKS, "")
    return int(count) if gpus == "all" and count.isdecimal() and not visible_gpus() else 0
