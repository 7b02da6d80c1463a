"""A run whose session was killed goes on as if nothing had happened, or says why it cannot."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import DEMO
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Notice, Reply, Started, Step
from tuitune.runs.folder import Run
from tuitune.session.client import Session, SessionLost
from tuitune.session.preparing_requests import Columns
from tuitune.session.result_requests import Chat, Export
from tuitune.session.run_requests import Pause, Resume, Status, Stop, Train
from tuitune.train.checkpoints import checkpoints_of

pytestmark = pytest.mark.fault

STEPS, SAVED, KILLED_AT = 12, 4, 6
"""Of five steps an epoch: the run is killed in its second one, after its first checkpoint."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the data, the run `whole` that nothing disturbed, and the run `killed`."""
    place = tmp_path_factory.mktemp("resume")
    (place / "data.jsonl").write_text("".join(sample_rows()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(place))
        asyncio.run(train_both(place))
    return place


def sample_rows() -> list[str]:
    return (DEMO / "pirate.jsonl").read_text().splitlines(keepends=True)[:12]


async def train_both(place: Path) -> None:
    recipe = Recipe.load(
        DEMO / "demo.yaml",
        [
            f"data.path={place / 'data.jsonl'}",
            "eval_share=0.17",
            "lora_dropout=0.1",
            f"max_steps={STEPS}",
            f"save_steps={SAVED}",
            f"eval_steps={SAVED}",
            "per_device_train_batch_size=2",
            "gradient_accumulation_steps=1",
            "samples.max_new_tokens=4",
        ],
    ).model_dump(mode="json")
    session = await Session.start()
    await session.call(Train(recipe, str(place / "runs"), "whole"))
    killed = asyncio.Event()
    pid = (await session.call(Status()))["pid"]
    training = asyncio.create_task(session.call(Train(recipe, str(place / "runs"), "killed")))

    def kill(event: Event) -> None:
        if isinstance(event, Started):
            runs.append(event.run)
        if isinstance(event, Step) and runs[-1] == "killed" and event.step == KILLED_AT and not killed.is_set():
            os.kill(pid, signal.SIGKILL)
            killed.set()

    runs: list[str] = []
    await session.follow(kill)
    with pytest.raises(SessionLost):
        await training
    await session.close()


@pytest.fixture
def killed(place: Path, tmp_path: Path) -> Run:
    """A copy of the run that was killed."""
    return Run(Path(shutil.copytree(place / "runs" / "killed", tmp_path / "killed")))


async def resume(run: Run) -> None:
    session = await Session.start()
    try:
        assert await session.call(Resume(str(run.folder))) == {"status": "done"}
    finally:
        await session.close()


def losses(run: Run) -> dict[int, float]:
    return {step.step: step.loss for step in run.history().steps}


async def test_a_killed_run_goes_on_as_if_it_had_not_been(place: Path, killed: Run) -> None:
    whole = Run(place / "runs" / "whole")
    assert killed.status() == "interrupted"
    await resume(killed)
    assert losses(killed) == losses(whole) and len(losses(whole)) == STEPS
    history, undisturbed = killed.history(), whole.history()
    assert [event.loss for event in history.evaluations] == [event.loss for event in undisturbed.evaluations]
    assert [step.attempt for step in history.steps] == [1] * SAVED + [2] * (STEPS - SAVED)
    after = [[event.reply for event in run.events() if isinstance(event, Reply)] for run in (killed, whole)]
    assert after[0] == after[1]
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
    last = f"checkpoint-{STEPS}"
    for name in ("optimizer.pt", "scheduler.pt"):
        digests = [json.loads((run.checkpoints / last / "manifest.json").read_text())[name] for run in (killed, whole)]
        assert digests[0] == digests[1], name


async def test_a_run_that_was_killed_after_its_last_step_trains_no_other(place: Path, tmp_path: Path) -> None:
    whole = Run(place / "runs" / "whole")
    run = Run(Path(shutil.copytree(whole.folder, tmp_path / "saving")))
    lines = run.events_file.read_text().splitlines(keepends=True)
    saving = next(number for number, line in enumerate(lines) if '"name": "saving"' in line)
    run.events_file.write_text("".join(lines[: saving + 1]))
    shutil.rmtree(run.adapter)
    run.summary_file.unlink(missing_ok=True)
    assert run.status() == "interrupted"
    await resume(run)
    assert losses(run) == losses(whole)
    assert [path.name for path in checkpoints_of(run)] == [path.name for path in checkpoints_of(whole)]
    ours, theirs = (load_file(folder.adapter / "adapter_model.safetensors") for folder in (run, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


async def test_a_damaged_checkpoint_is_passed_over_and_a_torn_line_of_the_record_too(place: Path, killed: Run) -> None:
    (killed.checkpoints / f"checkpoint-{SAVED}" / "optimizer.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    with killed.events_file.open("ab") as record:
        record.write(b'{"event": "step", "at": 17')
    await resume(killed)
    told = [event.text for event in killed.events() if isinstance(event, Notice)]
    assert f"checkpoint-{SAVED} is damaged and passed over: optimizer.pt has changed since." in told
    assert losses(killed) == losses(Run(place / "runs" / "whole"))  # from the start, where no checkpoint is whole
    assert json.loads(killed.events_file.read_bytes().splitlines()[-1])["event"] == "finished"


async def test_other_data_or_another_base_model_are_not_gone_on_with(place: Path, killed: Run, tmp_path: Path) -> None:
    model = shutil.copytree(DEMO / "demo_model", tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    (tmp_path / "data.jsonl").write_text("".join((place / "data.jsonl").read_text().splitlines(keepends=True)[:-1]))
    asked = killed.recipe()
    session = await Session.start()
    for section, change, says in (
        ("data", {"path": str(tmp_path / "data.jsonl")}, "its data has changed since"),
        ("model", {"name": str(model)}, "its base model's weights have changed since"),
    ):
        raw = asked.model_dump(mode="json")
        raw[section] |= change
        killed.keep_resolved(Recipe.from_data(raw))
        with pytest.raises(UnusableInput, match=says):
            await session.call(Resume(str(killed.folder)))
        assert killed.status() == "failed"
    killed.keep_resolved(asked)
    assert await session.call(Resume(str(killed.folder))) == {"status": "done"}
    with pytest.raises(UnusableInput, match="is done after 12 steps: `tuitune resume killed --set max_steps=24`"):
        await session.call(Resume(str(killed.folder)))
    await session.close()


async def test_a_run_that_goes_on_has_one_session_and_can_be_stopped_again(place: Path, killed: Run) -> None:
    session, other = await Session.start(), await Session.start()
    await other.call(Columns(killed.recipe().model_dump(mode="json")))  # it has its libraries, and answers at once
    held = asyncio.Event()
    going = asyncio.create_task(session.call(Resume(str(killed.folder)), lambda part: held.set()))
    await held.wait()
    with pytest.raises(UnusableInput, match="is going: `tuitune attach killed` shows it"):
        await other.call(Resume(str(killed.folder)))
    await other.close()
    assert await session.call(Stop("killed")) == {"stopping": "after this step"}
    assert await going == {"status": "stopped"}
    assert SAVED <= killed.history().step < STEPS
    assert await session.call(Resume(str(killed.folder))) == {"status": "done"}
    await session.close()
    assert losses(killed) == losses(Run(place / "runs" / "whole"))


async def test_a_run_that_is_paused_gives_its_model_up_and_goes_on_as_if_it_had_not(place: Path, killed: Run) -> None:
    session = await Session.start()
    paused = asyncio.Event()
    going = asyncio.create_task(session.call(Resume(str(killed.folder)), lambda part: paused.set()))
    await paused.wait()
    assert await session.call(Pause("killed")) == {"pausing": True}
    assert await going == {"status": "paused"}
    assert killed.status() == "paused" and not killed.adapter.exists()
    assert await session.call(Pause("killed")) == {"pausing": False}
    await resume(killed)
    assert losses(killed) == losses(Run(place / "runs" / "whole"))
    await session.close()


async def test_a_run_without_an_adapter_chats_and_exports_from_a_checkpoint(killed: Run, tmp_path: Path) -> None:
    session = await Session.start()
    question = [{"role": "user", "content": "Who are you?"}]
    answer = await session.call(Chat(str(killed.folder), question, sampling={"max_new_tokens": 3}))
    assert answer == await session.call(
        Chat(str(killed.folder), question, sampling={"max_new_tokens": 3}, checkpoint="best")
    ) | {name: answer[name] for name in ("seconds", "first_token_s")}
    with pytest.raises(
        UnusableInput, match=f"has no checkpoint 7: it has those of {SAVED}; `best` and `last` name one"
    ):
        await session.call(Chat(str(killed.folder), question, checkpoint="7"))
    parts: list[dict[str, Any]] = []
    await session.call(Export(str(killed.folder), ["adapter"], checkpoint=str(SAVED)), parts.append)
    (exported,) = [Path(part["exported"]["path"]) for part in parts if "exported" in part]
    assert exported == killed.folder / "exports" / f"checkpoint-{SAVED}" / "adapter"
    ours, theirs = (
        folder / "adapter_model.safetensors" for folder in (exported, killed.checkpoints / exported.parent.name)
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert f"(the weights after {SAVED} steps)" in (exported / "README.md").read_text()
    await session.close()
