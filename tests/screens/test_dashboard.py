"""What the dashboard says of the machine."""

import dataclasses
from pathlib import Path

import pytest

from screens.dashboard import numbers
from tests.screens import histories
from tuitune.machine.hardware import sample
from tuitune.runs.events import Sample
from tuitune.runs.history import History

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
    used = {
        name: int(gib * 2**30) for name in ("gpu_used_bytes", "gpu_process_bytes", "host_used_bytes", "process_bytes")
    }
    total = dict.fromkeys(("gpu_total_bytes", "host_total_bytes"), 2000 * 2**30)
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
