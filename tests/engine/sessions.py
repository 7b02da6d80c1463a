"""What tests of sessions share: a run that begins in one, and waiting for its events and for the session's end."""

import asyncio
from pathlib import Path
from typing import Any

import psutil

from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Phase
from tuitune.runs.folder import Run
from tuitune.session.client import Session
from tuitune.session.run_requests import Train


async def ended(pid: int) -> None:
    """Wait until a process is gone (it stays a zombie until its parent, this test, collects it)."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the session process goes on")


async def start_run(session: Session, recipe: Recipe, runs: Path) -> tuple[Run, asyncio.Task[Any]]:
    """Begin training and return its run as soon as the folder exists."""
    folder: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(
        session.call(Train(recipe.model_dump(mode="json"), str(runs)), lambda part: folder.set_result(part["run"]))
    )

    def refused(done: asyncio.Task[Any]) -> None:
        if not folder.done():
            folder.set_exception(done.exception() or AssertionError("the run ended without a folder"))

    job.add_done_callback(refused)
    return Run(Path(await folder)), job


async def begun(run: Run) -> None:
    """Wait until a run is in its first step."""
    for _ in range(1200):
        if any(isinstance(event, Phase) and event.name == "training" for event in run.events()):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the training has not begun")


async def seen(session: Session, kind: type[Event]) -> Event:
    """Follow the session's run until an event of this kind."""
    arrived: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    await session.follow(
        lambda event: arrived.set_result(event) if isinstance(event, kind) and not arrived.done() else None
    )
    return await asyncio.wait_for(arrived, 120)
