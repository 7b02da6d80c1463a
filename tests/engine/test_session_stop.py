"""A run stops when it is asked to, by a command or by a signal, and saves what there is."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.engine.sessions import begun, ended, seen, start_run
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Event, Notice, Reply, Step
from tuitune.session.client import Session
from tuitune.session.result_requests import Chat
from tuitune.session.run_requests import Save, Status, Stop, Train


async def test_stop_saves_a_checkpoint_and_the_adapter_then_the_model_still_chats(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    long = Recipe.from_data(
        {**demo_recipe.model_dump(), "train": {**demo_recipe.train.model_dump(), "max_steps": 5000}}
    )
    session = await Session.start()
    run, job = await start_run(session, long, tmp_path / "runs")
    await seen(session, Step)
    assert await session.call(Stop()) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    step = run.history().step
    assert (run.checkpoints / f"checkpoint-{step}").is_dir()
    assert (run.adapter / "adapter_model.safetensors").is_file()

    pieces: list[str] = []
    answer = await session.call(
        Chat(str(run.folder), [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 16}),
        lambda part: pieces.append(part["text"]),
    )
    assert "".join(pieces).strip() == answer["reply"] != ""
    with pytest.raises(UnusableInput, match="temperature is -1"):
        await session.call(Chat(str(run.folder), [], sampling={"temperature": -1}))
    await session.close()


async def test_stop_is_asked_by_two_and_still_saves_everything(tmp_path: Path, demo_recipe: Recipe) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000, "gradient_accumulation_steps": 12}
    session = await Session.start()
    run, job = await start_run(
        session, Recipe.from_data({**demo_recipe.model_dump(), "train": train}), tmp_path / "runs"
    )
    await seen(session, Step)
    viewer = await Session.attach(run)
    pid = (await session.call(Status()))["pid"]
    for asking in (session, viewer):  # within one step
        assert await asking.call(Stop()) == {"stopping": "after this step"}
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.wait_for(job, 300) == {"status": "stopped"}
    step = run.history().step
    assert (run.checkpoints / f"checkpoint-{step}" / "manifest.json").is_file()
    assert (run.adapter / "adapter_model.safetensors").is_file()
    await viewer.close()
    await session.close()


async def test_now_ends_the_run_without_a_checkpoint(tmp_path: Path, demo_recipe: Recipe) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000, "gradient_accumulation_steps": 512}
    session = await Session.start()
    run, job = await start_run(
        session, Recipe.from_data({**demo_recipe.model_dump(), "train": train}), tmp_path / "runs"
    )
    await seen(session, Reply)
    await session.call(Stop())
    assert await session.call(Stop(now=True)) == {"stopping": "now"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    assert run.history().step == 0 and not run.adapter.exists()
    with pytest.raises(UnusableInput, match="has no adapter"):  # though a half-trained one is in memory
        await session.call(Chat(str(run.folder), [{"role": "user", "content": "Hello!"}]))
    await session.close()


async def test_a_run_that_waits_takes_no_stop_and_no_save_from_the_one_that_goes(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    train = {**demo_recipe.train.model_dump(), "max_steps": 5000}
    long = Recipe.from_data({**demo_recipe.model_dump(), "train": train})
    session = await Session.start()
    run, job = await start_run(session, long, tmp_path / "runs")
    first: dict[str, asyncio.Event] = {Step.kind: asyncio.Event(), Checkpoint.kind: asyncio.Event()}

    def add(event: Event) -> None:
        if event.kind in first:
            first[event.kind].set()

    await session.follow(add)
    await asyncio.wait_for(first[Step.kind].wait(), 120)
    raw = demo_recipe.model_dump(mode="json")
    waiting = asyncio.create_task(session.call(Train(raw, str(tmp_path / "runs"), "second")))
    await session.call(Status())  # so that the session has the second one
    assert await session.call(Stop("second")) == {"stopping": None}
    await session.call(Save(run.name))
    await asyncio.wait_for(first[Checkpoint.kind].wait(), 60)
    assert await session.call(Stop(run.name)) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    assert run.history().step < 5000
    assert await asyncio.wait_for(waiting, 120) == {"status": "done"}
    assert await session.call(Stop()) == {"stopping": None}
    await session.close()


@pytest.mark.cold
async def test_a_stop_is_heeded_before_the_run_has_begun(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    job = asyncio.create_task(session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"))))
    await asyncio.sleep(0)  # the libraries are still being imported
    assert await session.call(Stop()) == {"stopping": "after this step"}
    assert await asyncio.wait_for(job, 60) == {"status": "stopped"}
    await session.close()


@pytest.mark.fault
async def test_a_step_that_outlasts_the_signal_to_end_is_given_up(
    tmp_path: Path, demo_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of thousands of passes; the checkpoint before it stays, and what goes on from it is said."""
    monkeypatch.setenv("TUITUNE_GRACE", "0.5")
    train = demo_recipe.train.model_copy(update={"gradient_accumulation_steps": 5000, "num_train_epochs": 100.0})
    session = await Session.start()
    run, job = await start_run(session, demo_recipe.model_copy(update={"train": train}), tmp_path / "runs")
    pid = (await session.call(Status()))["pid"]
    await begun(run)
    os.kill(pid, signal.SIGTERM)
    await asyncio.wait([job], timeout=60)
    await ended(pid)
    assert run.status() == "stopped" and not run.adapter.exists() and job.done()
    (notice,) = [event.text for event in run.events() if isinstance(event, Notice) and "signal" in event.text]
    assert notice.endswith(
        "within 0.5 s of the signal to end, and is given up: `tuitune resume` goes on from the start."
    )


@pytest.mark.cold
@pytest.mark.fault
async def test_a_terminated_session_begins_no_run_and_ends(tmp_path: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    job = asyncio.create_task(session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"))))
    pid = (await session.call(Status()))["pid"]
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(TuituneError):
        await asyncio.wait_for(job, 60)
    await session.close()
    await ended(pid)
    assert not (tmp_path / "runs").exists()


WAITS_FOR_CLIENTS = """
import asyncio, asyncio.base_events
async def wait_closed(self):
    while self._active_count:
        await asyncio.sleep(0.05)
asyncio.base_events.Server.wait_closed = wait_closed
"""


@pytest.mark.fault
async def test_a_terminated_session_ends_though_clients_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(WAITS_FOR_CLIENTS)  # as Python does since 3.12.1
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    os.kill(pid, signal.SIGTERM)
    await asyncio.wait_for(session.lost.wait(), 20)
    await ended(pid)
    await session.close()
