"""A run at a glance: how it stands and how its loss went, without reading a long record whole."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tuitune.errors import TuituneError
from tuitune.events import Step, from_json
from tuitune.history import History
from tuitune.run import Run, Status

_TAIL_BYTES = 65_536
_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Glance:
    """What a list of runs shows of one: `losses` of up to 32 of its steps, `changed_at` in epoch seconds."""

    run: Run
    status: Status
    model: str
    step: int
    total_steps: int
    losses: tuple[float, ...]
    changed_at: float


def glance(run: Run) -> Glance:
    """Read the end of the run's record, and samples of the rest. Never raises for a run that is broken."""
    try:
        model = run.recipe().model.name
    except TuituneError:
        model = "unreadable recipe"
    history, changed_at = History(), 0.0
    losses: tuple[float, ...] = ()
    try:
        with run.events_file.open("rb") as file:
            changed_at = os.fstat(file.fileno()).st_mtime
            size = file.seek(0, os.SEEK_END)
            history = _tail(file, size)
            losses = tuple(_losses(file, size))
    except OSError:
        pass
    return Glance(run, run.status(history), model, history.step, history.total_steps, losses, changed_at)


def _tail(file: BinaryIO, size: int) -> History:
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    if start:
        file.readline()
    return History.of(event for line in file if (event := from_json(line)) is not None)


def _losses(file: BinaryIO, size: int) -> Iterator[float]:
    if size <= _TAIL_BYTES:
        file.seek(0)
        steps = [event.loss for line in file if isinstance(event := from_json(line), Step)]
        yield from steps[:: max(1, -(-len(steps) // _SAMPLES))]
        return
    for sample in range(_SAMPLES):
        file.seek(size * sample // _SAMPLES)
        file.readline()
        for _ in range(8):  # other events lie between the steps
            if isinstance(event := from_json(file.readline()), Step):
                yield event.loss
                break
