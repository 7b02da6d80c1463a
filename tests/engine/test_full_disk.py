"""A run whose disk fills up: one sentence with what to do, a record that still reads, and nothing half saved."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tuitune.errors import TuituneError
from tuitune.events import Notice
from tuitune.recipe import Recipe
from tuitune.run import all_runs, create_run

RECIPE = Recipe.from_data({"model": {"name": "m"}, "data": {"path": "d"}})


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """As on a full disk, a write beyond that is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_event_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    writer = create_run(RECIPE, tmp_path)
    writer.append(Notice(text="before"))
    with files_no_longer_than(writer.run.events_file.stat().st_size + 20), pytest.raises(OSError, match="No space"):
        writer.append(Notice(text="lost"))
    writer.append(Notice(text="after"))
    writer.close()
    assert [event.text for event in writer.run.events() if isinstance(event, Notice)] == ["before", "after"]


def test_a_run_that_could_not_be_made_does_not_take_its_name(tmp_path: Path) -> None:
    with files_no_longer_than(10), pytest.raises(TuituneError, match="choose another with --runs"):
        create_run(RECIPE, tmp_path / "runs", "mine")
    assert not list((tmp_path / "runs").iterdir())
    create_run(RECIPE, tmp_path / "runs", "mine").close()
    assert [run.name for run in all_runs(tmp_path / "runs")] == ["mine"]


def test_a_checkpoint_that_does_not_fit_is_said_with_what_to_do_and_removed(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted only with the right to")
    tuitune = shutil.which("tuitune", path=Path(sys.executable).parent)
    train = [tuitune, "run", DEMO / "demo.yaml", "--runs", "disk", "--set", "samples.max_new_tokens=4"]
    train += ["--set", "eval_share=0", "--set", "max_steps=9", "--set", "save_steps=2"]
    script = 'mount -t tmpfs -o size=6m none disk && "$@"; find disk/*/checkpoints -name "*.safetensors"'
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, train)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "filled up: make room there" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "disk/pirate-1/checkpoints/checkpoint-2/adapter_model.safetensors"
    assert ".partial" not in done.stdout
