"""What was saved stays whole: rotation takes only its own, and nothing that is damaged is used again."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.exporting import export
from tests.engine.training import trained
from tuitune.atomic import publish, recover, remove
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Event, Finished, Started
from tuitune.runs.folder import create_run
from tuitune.session.jobs import Jobs
from tuitune.session.worker import Job
from tuitune.train.checkpoints import MANIFEST, adapter_of, checkpoints_of, damage
from tuitune.train.control import Control


def with_train(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def zero_half(file: Path) -> None:
    """As a disk or a copy that lost blocks leaves it: the length is right."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size - opened.tell()))


def test_the_oldest_checkpoints_go_and_a_users_own_copies_stay(demo_recipe: Recipe, tmp_path: Path) -> None:
    mine = {"checkpoint-1-keep", "checkpoint-best", "notes"}

    def copy(event: Event, control: Control) -> None:
        if isinstance(event, Checkpoint) and event.step == 1:
            checkpoints = tmp_path / "copied" / "checkpoints"
            for name in mine:
                shutil.copytree(checkpoints / "checkpoint-1", checkpoints / name)

    run, _ = trained(with_train(demo_recipe, max_steps=4, save_steps=1), tmp_path, "copied", copy)
    assert run.status() == "done"
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-3", "checkpoint-4", *mine}
    assert [damage(checkpoint) for checkpoint in checkpoints_of(run)] == [None, None]


def test_of_a_run_that_trains_only_a_checkpoint_is_taken(demo_recipe: Recipe, tmp_path: Path) -> None:
    """The adapter that lies there is the end of an earlier attempt."""
    writer = create_run(demo_recipe, tmp_path, "further")
    writer.run.adapter.mkdir()
    writer.append(Started(run="further", attempt=2, pid=os.getpid()))
    with pytest.raises(UnusableInput, match=r"still training: take a checkpoint of it \(`--checkpoint last`\)"):
        adapter_of(writer.run, None)
    (writer.run.checkpoints / "checkpoint-2").mkdir(parents=True)
    assert adapter_of(writer.run, "last").adapter == writer.run.checkpoints / "checkpoint-2"
    writer.append(Finished(status="done", step=4, seconds=1.0, adapter="adapter"))
    assert adapter_of(writer.run, None) == writer.run
    writer.close()


@pytest.mark.fault
def test_a_kill_while_a_folder_is_deleted_leaves_no_half_of_it_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    for name in "abc":
        (checkpoint / name).write_text(name)
    code = (
        "import os, signal, sys; from pathlib import Path; from tuitune.atomic import remove\n"
        "unlink, left = os.unlink, 2\n"
        "def killed(*arguments, **options):\n"
        "    global left\n"
        "    left -= 1\n"
        "    unlink(*arguments, **options) if left else os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.unlink = killed; remove(Path(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(checkpoint)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert left.name == ".tuitune-removing-checkpoint-2" and len(list(left.iterdir())) == 2
    checkpoint.mkdir()
    remove(checkpoint)
    assert not list(folder.iterdir())
    (folder / ".tuitune-removing-checkpoint-2").mkdir()
    recover(folder)
    assert not list(folder.iterdir())


@pytest.mark.fault
def test_what_cannot_be_deleted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("final", "new", ".tuitune-previous-final"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "weights").write_text(name)
    replace = os.replace

    def busy(source: Any, target: Any) -> None:
        if ".tuitune-removing-" in str(target) and refusals.pop():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
        replace(source, target)

    refusals = [True, False]  # of the two deletions the second one
    monkeypatch.setattr(os, "replace", busy)
    publish(tmp_path / "run" / "new", tmp_path / "run" / "final")
    assert (tmp_path / "run" / "final" / "weights").read_text() == "new"
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [".tuitune-previous-final", "final"]


@pytest.mark.fault
def test_a_damaged_checkpoint_is_passed_over_when_memory_runs_out(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is stood in for: a pass of more than two rows runs out of memory in the fourth step."""
    import torch
    from transformers import LlamaModel

    whole, passes = LlamaModel.forward, 0

    def on_a_small_card(self: Any, input_ids: Any = None, **others: Any) -> Any:
        nonlocal passes
        passes += self.training
        if self.training and len(input_ids) > 2 and passes > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, input_ids=input_ids, **others)

    def damage_the_newest(event: Event, control: Control) -> None:
        if isinstance(event, Checkpoint) and event.step == 3 and passes == 3:
            zero_half(tmp_path / "damaged" / event.path / "adapter_model.safetensors")

    monkeypatch.setattr(LlamaModel, "forward", on_a_small_card)
    recipe = with_train(demo_recipe, max_steps=5, save_steps=1, per_device_train_batch_size=4)
    run, history = trained(recipe, tmp_path, "damaged", damage_the_newest)
    assert [notice.text for notice in history.notices if "checkpoint" in notice.text] == [
        "checkpoint-3 is damaged and passed over: adapter_model.safetensors has changed since.",
        "Memory ran out at step 4: going on from checkpoint-2 with 2 × 2 rows a step.",
    ]
    assert run.status() == "done" and [step.step for step in history.steps] == [1, 2, 3, 4, 5]
    assert [(path.name, damage(path)) for path in checkpoints_of(run)] == [
        ("checkpoint-4", None),
        ("checkpoint-5", None),
    ]


@pytest.mark.fault
def test_a_damaged_adapter_neither_chats_nor_exports(demo_recipe: Recipe, tmp_path: Path) -> None:
    run, _ = trained(with_train(demo_recipe, max_steps=1), tmp_path, "half")
    exports = export(run, ["adapter"], tmp_path / "out", lambda *_: None, lambda question: False, lambda: False)
    assert not (exports[0].path / MANIFEST).exists()
    zero_half(run.adapter / "adapter_model.safetensors")
    with pytest.raises(
        UnusableInput, match=r"not what training saved \(adapter_model\.safetensors has changed since\)"
    ):
        export(run, ["adapter"], tmp_path / "out", lambda *_: None, lambda question: False, lambda: False)
    jobs = Jobs(tmp_path / "socket", on_event=lambda: None)
    job = Job("chat", lambda job: {}, on_part=lambda part: None, on_end=lambda end: None)
    with pytest.raises(UnusableInput, match="not what training saved"):
        jobs.chat(job, run, [{"role": "user", "content": "Hello!"}])
    (run.adapter / MANIFEST).unlink()  # as an older version left it
    export(run, ["adapter"], tmp_path / "out", lambda *_: None, lambda question: False, lambda: False)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("[]", "lists no files"),
        ("{}", "lists no files"),
        ('{"a": ', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"b": "0"}', "b is missing"),
        ('{"/dev/zero": "0"}', "/dev/zero is missing"),
        ('{"a": 7}', "a has changed since"),
    ],
)
@pytest.mark.fault
def test_a_manifest_that_is_no_manifest_is_damage(tmp_path: Path, manifest: str, says: str) -> None:
    (tmp_path / "a").write_text("a")
    assert damage(tmp_path) == "manifest.json is missing"
    (tmp_path / MANIFEST).write_text(manifest)
    assert says in str(damage(tmp_path))


@pytest.mark.parametrize("name", ["rng_state_0.pth", "default/adapter_model.bin", "default/adapter_model.safetensors"])
def test_what_the_trainer_would_load_and_did_not_save_is_damage(tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / "default").mkdir(parents=True)
    (checkpoint / "weights").write_text("a")
    (checkpoint / MANIFEST).write_text(json.dumps({"weights": hashlib.sha256(b"a").hexdigest()}))
    (checkpoint / "notes.txt").write_text("mine")
    assert damage(checkpoint) is None
    (checkpoint / name).write_bytes(b"")
    assert damage(checkpoint) == f"{name} was not saved with it"


@pytest.mark.fault
def test_what_is_saved_is_on_disk_before_it_is_told(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file before the rename that names it, the folder of the name after it, the record at what counts."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        fsync(handle)
        calls.append(("flush", os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path)))

    def renamed(source: Any, target: Any) -> None:
        replace(source, target)
        calls.append(("name", os.path.relpath(target, tmp_path)))

    def told(event: Event, control: Control) -> None:
        calls.append(("told", event.kind))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    trained(with_train(demo_recipe, max_steps=1), tmp_path, "run", told)

    def after(start: int, call: str, what: str) -> int:
        return calls.index((call, what), start)

    for staged, final in (
        ("run/checkpoints/.partial/checkpoint-1", "run/checkpoints/checkpoint-1"),
        ("run/.adapter.partial", "run/adapter"),
    ):
        named = after(0, "name", final)
        for file in (tmp_path / final).iterdir():
            assert after(0, "flush", f"{staged}/{file.name}") < named
        assert after(0, "flush", staged) < named < after(named, "flush", str(Path(final).parent))
    for kind in ("checkpoint", "finished"):
        assert calls[after(0, "told", kind) - 1] == ("flush", "run/events.jsonl")
