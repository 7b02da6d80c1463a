"""Records of real runs of the demo model, healthy ones and ones that went wrong in a known way.

    python -m tests.engine.recorded_runs [NAME …]

trains them anew and writes `recorded/NAME.jsonl`: plan, steps, evaluations, checkpoints and end, without the lines that
differ from machine to machine and say nothing of the training.
"""

import json
import os
import random
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.training import trained
from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.runs.events import (
    Checkpoint,
    Evaluation,
    Event,
    Failed,
    Finished,
    Plan,
    Started,
    Step,
    from_json,
    to_json,
)
from tuitune.runs.folder import Run
from tuitune.train.control import Control

RECORDED = Path(__file__).parent / "recorded"
DEMO = Path(__file__).parents[2] / "sample_data"
KEPT = (Started, Plan, Step, Evaluation, Checkpoint, Finished, Failed)

RUNS = {
    "healthy": ["max_steps=80", "eval_steps=8"],
    "healthy_single_rows": ["max_steps=240", "per_device_train_batch_size=1", "learning_rate=2e-4", "eval_steps=40"],
    "standing_still": ["max_steps=60", "learning_rate=1e-9", "eval_steps=20"],
    "rate_too_high": ["max_steps=80", "learning_rate=0.2", "max_grad_norm=0", "warmup_steps=40", "eval_steps=0"],
    "wrong_replies": ["max_steps=80", "eval_steps=8", "early_stopping_patience=0", "data.split=train[:24]"],
    "odd_rows": ["max_steps=80", "eval_steps=0"],
    "shared_processor": ["max_steps=130", "eval_steps=0"],
}
"""What each changes of the demo's recipe."""

_WRONG_ROWS = 24
_ODD_ROWS = (50, 250)
_SHARED_FROM_STEP = 90
_OTHER_PROGRAMS = 2


def recorded(name: str) -> list[Event]:
    """The events of a record, in order."""
    events = [from_json(line) for line in (RECORDED / f"{name}.jsonl").read_bytes().splitlines()]
    assert None not in events
    return [event for event in events if event is not None]


def _with_wrong_replies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows answer each other's questions, which can only be learnt by heart."""
    replies = [row["messages"][-1] for row in rows[:_WRONG_ROWS]]
    for row, reply in zip(rows, [*replies[7:], *replies[:7]], strict=False):
        row["messages"][-1] = reply
    return rows


def _with_odd_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two replies are letters at random."""
    letters = random.Random(0)
    for number in _ODD_ROWS:
        text = "".join(letters.choices(string.ascii_letters + string.digits, k=150))
        rows[number]["messages"][-1]["content"] = text
    return rows


DATA = {"wrong_replies": _with_wrong_replies, "odd_rows": _with_odd_rows}


def record(name: str) -> None:
    """Train a run and keep its record."""
    programs: list[subprocess.Popen[bytes]] = []

    def share_the_processor(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == _SHARED_FROM_STEP:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            busy = [sys.executable, "-c", "while True: pass"]
            programs.extend(subprocess.Popen(busy) for _ in range(_OTHER_PROGRAMS))

    on_event: Callable[[Event, Control], None] = (
        share_the_processor if name == "shared_processor" else lambda event, control: None
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        rows = [json.loads(line) for line in (DEMO / "pirate.jsonl").read_text().splitlines()]
        data.write_text("\n".join(json.dumps(row) for row in DATA.get(name, list)(rows)) + "\n")
        changes = [*RUNS[name], "samples.max_new_tokens=1", f"data.path={data}"]
        if name == "wrong_replies":
            changes += [f"data.eval_path={DEMO / 'pirate.jsonl'}", "data.eval_split=train[200:240]", "eval_share=0"]
        recipe = Recipe.load(DEMO / "demo.yaml", changes)
        try:
            trained(recipe, Path(folder), name, on_event)
        except TuituneError as error:  # a run that fails is a record too
            print(f"{name}: {error}")
        finally:
            for program in programs:
                program.kill()
                program.wait()
        lines = [to_json(event) for event in Run(Path(folder) / name).events() if isinstance(event, KEPT)]
    RECORDED.mkdir(exist_ok=True)
    (RECORDED / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or RUNS:
        record(chosen)
