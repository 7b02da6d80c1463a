"""Kills and full disks at every call that changes a run's folder, and what else may befall a run."""

from collections.abc import Callable
from pathlib import Path

from tests.faults.sweep import Record, sweep_in_child

Survived = Callable[[list[Record]], None]


def test_files_and_folders_are_whole_wherever_a_kill_or_a_full_disk_comes(
    tmp_path: Path, survived: Survived, thorough: bool
) -> None:
    records = sweep_in_child("tests.faults.edges", tmp_path, "1" if thorough else "4")
    survived(records)
    assert len(records) > (200 if thorough else 50)


def test_a_run_survives_what_befalls_it(tmp_path: Path, survived: Survived, thorough: bool) -> None:
    survived(sweep_in_child("tests.faults.trained", tmp_path, "1" if thorough else "60", timeout_s=3000))
