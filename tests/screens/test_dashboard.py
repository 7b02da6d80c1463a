"""What the dashboard says of the machine."""

from pathlib import Path

import pytest

from screens.dashboard import numbers
from tests.screens import histories
from tuitune.events import Sample
from tuitune.hardware import sample
from tuitune.history import History

MIB = 2**20


@pytest.mark.parametrize(
    ("free", "line"), [(412 * 1024 * MIB, "Disk 412.0 GiB free"), (300 * MIB, "Disk ! only 300.0 MiB free")]
)
def test_a_disk_that_fills_is_told_by_a_glyph(free: int, line: str) -> None:
    history = histories.of(iter([Sample(process_bytes=1, host_used_bytes=1, host_total_bytes=2, disk_free_bytes=free)]))
    assert numbers(history).plain.splitlines()[-1] == line


def test_the_disk_is_the_one_that_the_run_is_written_to(tmp_path: Path) -> None:
    assert "GiB free" in numbers(History.of([sample(folder=tmp_path / "not-made-yet")])).plain
    assert sample().disk_free_bytes is None
    assert "Disk" not in numbers(History.of([sample()])).plain
