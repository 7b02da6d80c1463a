"""A run at a glance: how it stands, how its loss went and how fast it was, without reading a long record whole."""

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import BinaryIO

from tuitune.errors import TuituneError
from tuitune.events import Step, from_json
from tuitune.history import History
from tuitune.run import Run, Status, all_runs

_TAIL_BYTES = 65_536
_SAMPLES = 32
_RUNS_LOOKED_AT = 30
_STEPS_TO_TRUST = 3


@dataclass(frozen=True, slots=True)
class Glance:
    """What a list of runs shows of one: `losses` of up to 32 of its steps, finite, `changed_at` in epoch seconds."""

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


@dataclass(frozen=True, slots=True)
class Speed:
    """What an earlier run reached: the median of its last steps, the first one (which compiles) left out."""

    run: str
    tokens_per_second: float


def measured_speed(runs_folder: Path, model: str, device: str, backend: str) -> Speed | None:
    """Of the newest run of `model` on a device of this name and with this backend; None where nothing was measured.

    Looks at the 30 newest runs, finished or not, and never raises for one that is broken.
    """
    for run in all_runs(runs_folder)[:_RUNS_LOOKED_AT]:
        speed = _speed(run, device, backend)
        try:
            if speed is not None and run.recipe().model.name == model:
                return Speed(run.name, speed)
        except TuituneError:
            continue
    return None


def _speed(run: Run, device: str, backend: str) -> float | None:
    try:
        with run.events_file.open("rb") as file:
            head = History.of(event for line in file.readlines(_TAIL_BYTES) if (event := from_json(line)) is not None)
            plan = head.plan
            if plan is None or (plan.device, plan.backend) != (device, backend):
                return None
            steps = _tail(file, file.seek(0, os.SEEK_END)).steps
    except OSError:
        return None
    found = [each.tokens_per_second for each in steps if each.step > 1 and each.tokens_per_second]
    return statistics.median(found) if len(found) >= _STEPS_TO_TRUST else None


def _tail(file: BinaryIO, size: int) -> History:
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    if start:
        file.readline()
    return History.of(event for line in file if (event := from_json(line)) is not None)


def _losses(file: BinaryIO, size: int) -> Iterator[float]:
    if size <= _TAIL_BYTES:
        file.seek(0)
        steps = [event.loss for line in file if isinstance(event := from_json(line), Step) and isfinite(event.loss)]
        yield from steps[:: max(1, -(-len(steps) // _SAMPLES))]
        return
    for sample in range(_SAMPLES):
        file.seek(size * sample // _SAMPLES)
        file.readline()
        for _ in range(8):  # other events lie between the steps
            if isinstance(event := from_json(file.readline()), Step) and isfinite(event.loss):
                yield event.loss
                break
