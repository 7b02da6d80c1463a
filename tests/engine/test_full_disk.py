"""A run whose disk fills up: one sentence with what to do, a record that still reads, and nothing half saved."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.engine.training import trained
from tuitune.atomic import publish
from tuitune.errors import TuituneError, disk_is_full
from tuitune.export import NotExported, export
from tuitune.recipe import Recipe
from tuitune.runs.events import Notice
from tuitune.runs.folder import Run, all_runs, create_run
from tuitune.session.jobs import Jobs
from tuitune.session.worker import Job
from tuitune.train import room
from tuitune.train.checkpoints import checkpoints_of, damage, step_of

pytestmark = pytest.mark.fault

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


ON_A_SMALL_DISK = """
import os, shutil, signal, subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", "disk"], check=True)
Path("disk/ballast").write_bytes(bytes(int(sys.argv[1]) * 2**20))
run = subprocess.Popen(sys.argv[3:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
for line in run.stdout:
    print(line, end="")
    if "The run waits for room" in line:
        Path("disk/ballast").unlink() if sys.argv[2] == "room" else run.send_signal(signal.SIGINT)
print("exit", run.wait())
print(*sorted(Path("disk").glob("*/*/*.safetensors")) + sorted(Path("disk").glob("*/checkpoints/*")))
"""


# MB of ballast: the adapter's file fills the disk, or that of the optimizer's states.
@pytest.mark.parametrize(("ballast", "then"), [(18, "room"), (16, "stop")])
def test_a_run_waits_on_a_full_disk_until_there_is_room(tmp_path: Path, ballast: int, then: str) -> None:
    """It says how much it needs; room lets it go on, and a stop has it end with what fits."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted only with the right to")
    tuitune = shutil.which("tuitune", path=Path(sys.executable).parent)
    train = [tuitune, "run", DEMO / "demo.yaml", "--runs", "disk", "--set", "samples.max_new_tokens=4"]
    train += ["--set", "eval_share=0", "--set", "max_steps=5", "--set", "save_steps=2"]
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, str(ballast), then, *map(str, train)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert re.search(r"a checkpoint takes [0-9.]+ Mi?B, [0-9.]+ [KM]i?B are free", done.stdout), done.stdout
    *_, ended, saved = done.stdout.splitlines()
    assert ".partial" not in saved and "Traceback" not in done.stdout
    if then == "room":
        assert "There is room again" in done.stdout
        assert ended == "exit 0" and "checkpoint-5" in saved and "pirate-1/adapter/adapter_model.safetensors" in saved
    else:
        assert "the adapter alone is saved" in done.stdout
        assert ended == "exit 130" and "pirate-1/adapter/adapter_model.safetensors" in saved


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1538304 vs 1538196"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_and_a_used_up_quota_are_known_in_the_words_of_every_library(error: Exception) -> None:
    assert disk_is_full(error)
    assert not disk_is_full(OSError(errno.EIO, os.strerror(errno.EIO)))


def test_an_export_that_does_not_fit_is_told_in_words(tmp_path: Path) -> None:
    recipe = Recipe.from_data({"model": {"name": str(DEMO / "demo_model")}, "data": {"path": "d"}})
    writer = create_run(recipe, tmp_path / "runs", "large")
    writer.close()
    shutil.copytree(DEMO / "demo_model", writer.run.adapter)
    (writer.run.adapter / "adapter_config.json").write_text("{}")
    (writer.run.adapter / "model.safetensors").rename(writer.run.adapter / "adapter_model.safetensors")
    with files_no_longer_than(50_000):
        (failed,) = export(writer.run, ["adapter"], None, lambda *_: None, lambda question: False, lambda: False)
    assert isinstance(failed, NotExported)
    sentence = str(failed.error)
    assert "File too large" in sentence and "make room there" in sentence
    assert "[(" not in sentence


def full_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on there is no room for a file or folder of this name."""
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name and ".tuitune-previous-" not in str(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)


def test_a_run_that_could_not_start_is_not_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(DEMO / "demo.yaml")
    full_for("session.json", monkeypatch)
    jobs = Jobs(tmp_path / "socket", on_event=lambda: None)
    job = Job("train", lambda job: {}, on_part=lambda part: None, on_end=lambda end: None)
    with pytest.raises(TuituneError, match="filled up: make room there"):
        jobs.train(job, recipe, str(tmp_path / "runs"), "never")
    (run,) = all_runs(tmp_path / "runs")
    assert not run.is_live() and not jobs.is_training
    assert run.status() == "failed"


def test_an_export_that_cannot_be_named_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("out/merged", "former"), ("new", "new")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(text)
    full_for("merged", monkeypatch)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "new", tmp_path / "out" / "merged")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    assert (tmp_path / "out" / "merged" / "weights").read_text() == "former"


@pytest.mark.parametrize("times", [1, 2])
def test_the_oldest_checkpoint_gives_way_to_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The third does not fit at first: once beside two others, twice beside any, which ends a run that may not wait."""
    from transformers import Trainer

    monkeypatch.setattr(room, "LONGEST_WAIT_S", 0.0)
    save, full = Trainer._save_optimizer_and_scheduler, 0

    def with_little_room(self: Any, output_dir: str) -> None:
        nonlocal full
        if self.state.global_step == 6 and full < times:
            full += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", with_little_room)
    fields = [
        "max_steps=6",
        "save_steps=2",
        "eval_share=0",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=1",
        "samples.max_new_tokens=2",
        'samples.prompts=["Who are you?"]',
    ]
    recipe = Recipe.load(DEMO / "demo.yaml", fields)
    if times == 2:
        with pytest.raises(OSError, match="No space left"):
            trained(recipe, tmp_path, "full")
        run = Run(tmp_path / "full")
        assert [step_of(checkpoint) for checkpoint in checkpoints_of(run)] == [4]
    else:
        run, _ = trained(recipe, tmp_path, "full")
        assert run.status() == "done"
        assert [step_of(checkpoint) for checkpoint in checkpoints_of(run)] == [4, 6]
    told = [event.text for event in run.events() if isinstance(event, Notice)]
    assert f"The disk of {run.folder} is full: checkpoint-2 was removed for the next one." in told
    assert all(damage(checkpoint) is None for checkpoint in checkpoints_of(run))
