"""Training along with a run on another host: this command is the parent of this host's processes."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType

from tuitune.commands.status import DONE
from tuitune.errors import UnusableInput
from tuitune.machine.cards import STAND_INS, cards_of
from tuitune.machine.environment import prepare_environment
from tuitune.machine.hardware import Gpu, choose_gpu, chosen_gpu, visible_gpus
from tuitune.session.hosts import host_and_port
from tuitune.streams import OutputLost
from tuitune.text import one_line


def join(address: str, gpus: str, model: Path | None, data: list[Path]) -> int:
    """Take part in the run that waits at `address` with these GPUs, or the CPU. Raises TuituneError.

    `model` and `data` are where this host has them, if not at the first one's paths.
    """
    host_and_port(address)
    if model is not None and not model.is_dir():
        raise UnusableInput("There is no folder {folder}: give that of the base model.", folder=one_line(model))
    for file in data:
        if not file.is_file():
            raise UnusableInput("There is no file {file}: give the data file of the run.", file=one_line(file))
    cards = _cards(gpus)
    prepare_environment()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a host that is gone is told of in a sentence
    signal.signal(signal.SIGTERM, _leave)
    from tuitune.session.joining import OwnPaths, join_run

    paths = OwnPaths(str(model) if model else None, tuple(map(str, data)))
    join_run(address, cards, paths, _tell)
    return DONE


def _tell(text: str) -> None:
    """Print a sentence; where that is no longer possible, the run loses no host by it."""
    with suppress(OutputLost):
        print(text, flush=True)


def _cards(gpus: str) -> list[Gpu | None]:
    numbers = [number.strip() for number in gpus.split(",")]
    if gpus != "all" and not all(number.isdecimal() for number in numbers):
        raise UnusableInput("--gpus {gpus} is neither all nor numbers such as 0,2.", gpus=one_line(gpus, max_length=40))
    if gpus != "all" and len(numbers) == 1:
        choose_gpu(int(gpus))
        return [chosen_gpu()]
    if gpus == "all" and not visible_gpus() and STAND_INS not in os.environ:
        return [None]
    return cards_of("all" if gpus == "all" else [int(number) for number in numbers]) or [chosen_gpu()]


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
