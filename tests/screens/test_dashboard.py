"""What the dashboard says of the machine."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from screens.dashboard import headline, messages, numbers, pace
from tests.screens import histories
from tuitune.machine.hardware import sample
from tuitune.runs.events import Sample
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.runs.monitor import warnings_of

MIB = 2**20


@pytest.mark.parametrize(
    ("free", "line"), [(412 * 1024 * MIB, "Disk 412.0 GiB free"), (300 * MIB, "Disk ! only 300.0 MiB free")]
)
def test_a_disk_that_fills_is_told_by_a_glyph(free: int, line: str) -> None:
    history = histories.of(iter([Sample(process_bytes=1, host_used_bytes=1, host_total_bytes=2, disk_free_bytes=free)]))
    assert numbers(history).plain.splitlines()[-1] == line


@pytest.mark.parametrize("gib", [0.5, 10, 99.97, 140, 1999])
def test_no_amount_wraps_and_the_disk_is_told_in_any_height(gib: float) -> None:
    history = histories.of(histories.training())
    used: dict[str, Any] = {
        name: int(gib * 2**30) for name in ("gpu_used_bytes", "gpu_process_bytes", "host_used_bytes", "process_bytes")
    }
    total: dict[str, Any] = dict.fromkeys(("gpu_total_bytes", "host_total_bytes"), 2000 * 2**30)
    assert history.sample is not None
    largest = dataclasses.replace(history.sample, **total, cpu_percent=6400.0, disk_free_bytes=1999 * 2**30)
    history.add(dataclasses.replace(largest, **used))
    for height in (9, 13):
        lines = numbers(history, height).plain.splitlines()
        assert len(lines) == height and max(map(len, lines)) <= 28, lines
        assert lines[0].startswith("loss") and lines[-1].startswith("Disk")


def test_the_disk_is_the_one_that_the_run_is_written_to(tmp_path: Path) -> None:
    assert "GiB free" in numbers(History.of([sample(folder=tmp_path / "not-made-yet")])).plain
    assert sample().disk_free_bytes is None
    assert "Disk" not in numbers(History.of([sample()])).plain


@pytest.mark.parametrize(
    ("total", "text"),
    [(60, "step 40 of 60 · epoch 0.98 · 40 s left"), (12_345, "step 40 of 12,345 · 6 h 50 min left")],
)
def test_the_time_left_is_told_in_any_case(total: int, text: str) -> None:
    """The epoch is left out where there is no room for both."""
    history = histories.of(histories.training(total=total))
    assert pace(history).plain == text


def test_what_is_wrong_stands_before_the_messages_and_its_worst_in_the_headline() -> None:
    history = histories.of(histories.overfitting())
    warnings = warnings_of(history)
    assert [warning.kind for warning in warnings] == ["overfitting", "shared"]
    lines = messages(history, warnings).plain.splitlines()
    assert lines[0].startswith("! The held-out loss has risen from 0.940 at step 20 to 1.130") and "→ stop" in lines[0]
    assert lines[1].startswith("! Other processes hold 6.0 GiB") and "Checkpoint of step 40" in lines[2]
    run = Run(Path("pirate-5"))
    training = headline(history, run, is_training=True, problem=None, warnings=warnings).plain
    assert training.endswith(" · ! overfitting since step 20 (+1)")
    assert "!" not in headline(history, run, is_training=False, problem=None, warnings=warnings).plain


def test_what_is_known_from_the_beginning_stands_among_the_messages_at_its_time() -> None:
    history = histories.of(histories.training())
    assert history.plan is not None
    history.plan = dataclasses.replace(history.plan, eval_rows=5)
    warnings = warnings_of(history)
    assert "Only 5 rows are held out" in messages(history, warnings).plain.splitlines()[-2]
    assert "held" not in headline(history, None, is_training=True, problem=None, warnings=warnings).plain
