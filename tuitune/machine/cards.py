"""Which cards train one run together."""

import os

from tuitune.errors import UnusableInput
from tuitune.machine.hardware import Gpu, visible_gpus

STAND_INS = "TUITUNE_TEST_RANKS"
"""For tests: where there are no two cards, so many processes train on all: on the one card, or on the CPU."""


def cards_of(gpus: str | list[int]) -> list[Gpu | None]:
    """The card of each process that `train.gpus` of a recipe means, None for the CPU.

    Empty where the session trains by itself, on whatever it was started for. Raises UnusableInput for cards that are
    not there.
    """
    if gpus == "auto":
        return []
    gpu_list = visible_gpus()
    if gpus == "all" and len(gpu_list) < 2 and (count := os.environ.get(STAND_INS, "")).isdecimal():
        return [gpu_list[0] if gpu_list else None] * int(count)
    if not gpu_list:
        raise UnusableInput("train.gpus names cards, and this machine has none that can be used: leave it at auto.")
    if gpus == "all":
        return [*gpu_list] if len(gpu_list) > 1 else []
    by_index = {card.index: card for card in gpu_list}
    if missing := [str(index) for index in gpus if index not in by_index]:
        raise UnusableInput(
            "train.gpus names GPU {missing}, and there is only {cards}: `nvidia-smi` lists them.",
            missing=missing,
            cards=list(by_index),
        )
    return [by_index[int(index)] for index in gpus]
