"""A run at a glance: how it stands, how its loss went and how fast it was, without reading a long record whole."""

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import BinaryIO

from tuitune.errors import TuituneError
from tuitune.runs.events import Plan, Step, from_json
from tuitune.runs.folder import Run, Status, all_runs
from tuitune.runs.history import History

_TAIL_BYTES = 65_536
_SEARCHED_BYTES = 2**26
"""How far a step or the plan is looked for: days of samples may lie between."""
_LONGEST_LINE = 2**20
_SAMPLES = 32
_SAMPLE_BYTES = 2**18
_RUNS_LOOKED_AT = 30
_STEPS_TO_TRUST = 3
_STEPS_OF_SPEED = 50
_STEP, _PLAN = b'{"event": "step"', b'{"event": "plan"'
"""How their lines begin, so that the samples between them need not be parsed."""


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
        with run.open_events() as file:
            changed_at = os.fstat(file.fileno()).st_mtime
            size = file.seek(0, os.SEEK_END)
            history = _end(file, size)
            losses = tuple(_losses(file, size))
    except FileNotFoundError:
        pass
    except OSError:
        model = "unreadable record"
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
        with run.open_events() as file:
            plan = _plan(file)
            if plan is None or (plan.device, plan.backend) != (device, backend):
                return None
            steps = list(islice(_newest_steps(file, file.seek(0, os.SEEK_END)), _STEPS_OF_SPEED))
    except OSError:
        return None
    speeds = [step.tokens_per_second for step in steps if step.step > 1 and step.tokens_per_second]
    return statistics.median(speeds) if len(speeds) >= _STEPS_TO_TRUST else None


def _end(file: BinaryIO, size: int) -> History:
    """The history of the record's end, with the newest step, or else the plan, from wherever it lies before it."""
    file.seek(max(0, size - _TAIL_BYTES))
    if size > _TAIL_BYTES:
        file.readline()
    start = file.tell()
    events = [event for line in file if (event := from_json(line)) is not None]
    if not any(isinstance(event, Step) for event in events):
        before = next(_newest_steps(file, start), None) or _plan(file)
        events = [*([before] if before else []), *events]
    return History.of(events)


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


def _losses(file: BinaryIO, size: int) -> Iterator[float]:
    if size <= _TAIL_BYTES:
        file.seek(0)
        steps = [event.loss for line in file if isinstance(event := from_json(line), Step) and isfinite(event.loss)]
        yield from steps[:: max(1, -(-len(steps) // _SAMPLES))]
        return
    for sample in range(_SAMPLES):
        file.seek(size * sample // _SAMPLES)
        block = file.read(min(size // _SAMPLES, _SAMPLE_BYTES))
        begin = block.find(b"\n" + _STEP) + 1
        line = block[begin:].partition(b"\n")[0]
        if begin and isinstance(step := from_json(line), Step) and isfinite(step.loss):
            yield step.loss
