"""How fast earlier runs were, without reading a long record whole."""

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tuitune.errors import TuituneError
from tuitune.runs.events import Plan, Step, from_json
from tuitune.runs.folder import Run, all_runs

_TAIL_BYTES = 65_536
_SEARCHED_BYTES = 2**26
"""How far a step or the plan is looked for: days of samples may lie between."""
_LONGEST_LINE = 2**20
_RUNS_LOOKED_AT = 30
_STEPS_TO_TRUST = 3
_STEPS_OF_SPEED = 50
_STEP, _PLAN = b'{"event": "step"', b'{"event": "plan"'
"""How their lines begin, so that the samples between them need not be parsed."""


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
        with run.open_events() as file:
            plan = _plan(file)
            if plan is None or (plan.device, plan.backend) != (device, backend):
                return None
            steps = list(islice(_newest_steps(file, file.seek(0, os.SEEK_END)), _STEPS_OF_SPEED))
    except OSError:
        return None
    speeds = [step.tokens_per_second for step in steps if step.step > 1 and step.tokens_per_second]
    return statistics.median(speeds) if len(speeds) >= _STEPS_TO_TRUST else None


def _plan(file: BinaryIO) -> Plan | None:
    file.seek(0)
    while file.tell() < _SEARCHED_BYTES and (line := file.readline(_LONGEST_LINE)):
        if line.startswith(_PLAN) and isinstance(plan := from_json(line), Plan):
            return plan
    return None


def _newest_steps(file: BinaryIO, end: int) -> Iterator[Step]:
    """The steps before byte `end`, the newest first, read backwards in blocks."""
    oldest = max(0, end - _SEARCHED_BYTES)
    cut = b""
    while end > oldest:
        start = max(oldest, end - _TAIL_BYTES)
        file.seek(start)
        first, *lines = (file.read(end - start) + cut).split(b"\n")
        for line in reversed(lines if start else [first, *lines]):
            if line.startswith(_STEP) and isinstance(step := from_json(line), Step):
                yield step
        cut = first if len(first) < _TAIL_BYTES else b""  # no step is that long
        end = start
