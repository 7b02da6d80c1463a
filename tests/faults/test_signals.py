"""Signals to a real session in each phase of a run."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.engine.sessions import ended, start_run
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Phase, Step
from tuitune.session.client import Session, SessionLost
from tuitune.session.run_requests import Status
from tuitune.train.checkpoints import checkpoints_of, damage, step_of


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("number", "phase"),
    [
        *((signal.SIGTERM, phase) for phase in ("data", "before", "training", "saving")),
        *((signal.SIGUSR1, phase) for phase in ("model", "training", "after")),
        *((signal.SIGHUP, phase) for phase in ("model", "training")),
        *((signal.SIGKILL, phase) for phase in ("data", "training", "saving")),
    ],
)
async def test_a_session_gets_a_signal(number: signal.Signals, phase: str, tmp_path: Path, demo_recipe: Recipe) -> None:
    """A stop saves what was trained, a hang-up changes nothing, a kill loses only the steps since a checkpoint."""
    train = {**demo_recipe.train.model_dump(), "max_steps": 12, "save_steps": 2}
    session = await Session.start()
    run, job = await start_run(
        session, Recipe.from_data({**demo_recipe.model_dump(), "train": train}), tmp_path / "runs"
    )
    pid = (await session.call(Status()))["pid"]
    sent: list[int] = []

    def send(event: Event) -> None:
        at_phase = isinstance(event, Phase) and event.name == phase and phase != "training"
        in_training = phase == "training" and isinstance(event, Step) and event.step >= 3
        if (at_phase or in_training) and not sent:
            sent.append(number)
            os.kill(pid, number)

    following = asyncio.create_task(session.follow(send))
    outcome = (await asyncio.gather(job, following, return_exceptions=True))[0]
    await session.close()
    await ended(pid)
    assert sent, "the run never came to this phase"
    kept = checkpoints_of(run)
    assert [damage(checkpoint) for checkpoint in kept] == [None] * len(kept)
    history = run.history()
    if number == signal.SIGHUP:
        assert outcome == {"status": "done"} and run.status() == "done"
    elif number == signal.SIGKILL:
        assert isinstance(outcome, SessionLost) and run.status() == "interrupted"
        assert history.step - max(map(step_of, kept), default=0) <= 2
    else:
        assert run.status() in ("stopped", "done")
        assert history.step == 0 or (run.adapter.is_dir() and damage(run.adapter) is None)
        assert history.step == 0 or step_of(kept[-1]) == history.step
