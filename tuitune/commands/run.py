"""A run on plain output: train a recipe, or follow a run that a session holds."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitune.commands.output import complain
from tuitune.commands.status import DONE, FAILED, INTERRUPTED, PREEMPTED
from tuitune.commands.viewer import Viewer, own_command, viewer_for
from tuitune.endings.command import shown
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.session.client import Session, SessionLost
from tuitune.session.request import ReplyT, Request
from tuitune.session.run_requests import (
    Change,
    EndingStatus,
    Pause,
    Save,
    SetThen,
    Status,
    Stop,
    Trained,
)
from tuitune.streams import OutputLost
from tuitune.text import one_line
from tuitune.train.checkpoints import adapter_of


def train(request: Request[Trained], *, as_json: bool, detach: bool, last_attempt: int = 0) -> int:
    """Have a session of its own begin or go on with a run, show what comes, and end with a report.

    With `detach` it is left to itself instead. `last_attempt` is the run's newest one so far. Raises UnusableInput.
    """
    if detach:
        return start_detached(request)
    return asyncio.run(_show_training(request, viewer_for(as_json, last_attempt)))


def recipe_beginning_with(run: Run, checkpoint: str | None, recipe: Path | None, changes: list[str]) -> Recipe:
    """The recipe of a new run that begins with the adapter of `run`: its own, or with another one's data and training.

    Raises UnusableInput.
    """
    resolved = run.resolved()
    other = Recipe.load(recipe).model_dump(mode="json") if recipe else run.recipe().model_dump(mode="json")
    if recipe and other["model"]["name"] != resolved.model.name:
        raise UnusableInput(
            "The recipe {recipe} is for another base model than run {run} ({model}): its adapter cannot be begun with.",
            recipe=recipe,
            run=one_line(run.name),
            model=one_line(resolved.model.name, max_length=200),
        )
    adapter = str(adapter_of(run, checkpoint).adapter)
    model = resolved.model.model_dump(mode="json")
    lora = {**resolved.lora.model_dump(mode="json"), "init_adapter": adapter}
    return Recipe.from_data({**other, "model": model, "lora": lora}, changes=changes)


def start_detached(request: Request[Trained]) -> int:
    """Have a session begin or go on with a run, and leave it to itself. Raises TuituneError where it is refused."""
    run = asyncio.run(_started_run(request))
    print(
        _(
            "Run {run} is training in {folder}: {command} shows it.",
            run=one_line(run.name),
            folder=one_line(run.folder),
            command=own_command("attach", run.folder),
        )
    )
    return DONE


async def _started_run(request: Request[Trained]) -> Run:
    """The request's run, as soon as it has its folder."""
    session = await Session.start()
    folder: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_part(part: dict[str, Any]) -> None:
        if "run" in part and not folder.done():
            folder.set_result(part["run"])

    job = asyncio.create_task(session.call(request, on_part))
    await _first(folder, job)
    if not folder.done():
        await job
    await session.close()  # before the job is let go of, whose end would cancel it in the session
    await asyncio.gather(job, return_exceptions=True)
    return Run(Path(folder.result()))


def stop_run(run: Run, *, now: bool) -> int:
    """Ask a live run to stop. Raises TuituneError where no session holds it or answers."""
    stopping = asyncio.run(_answer_of(run, Stop(run.name, now)))["stopping"]
    name = one_line(run.name)
    if stopping is None:
        print(_("Run {run} stops of itself: it is not training any more.", run=name))
    elif stopping == "now":
        print(_("Run {run} stops at once.", run=name))
    else:
        print(_("Run {run} stops after this step.", run=name))
    return DONE


def pause_run(run: Run) -> int:
    """Ask a live run to pause. Raises TuituneError where no session holds it or answers."""
    if asyncio.run(_answer_of(run, Pause(run.name)))["pausing"]:
        print(
            _(
                "Run {run} pauses after this step: {command} goes on with it.",
                run=one_line(run.name),
                command=own_command("resume", run.folder),
            )
        )
    else:
        print(_("Run {run} is not training any more.", run=one_line(run.name)))
    return DONE


def change_run(run: Run, changes: list[str]) -> int:
    """Change a live run's steps or learning rate. Raises TuituneError, UnusableInput."""
    settings = asyncio.run(_answer_of(run, Change(run.name, tuple(changes))))
    steps = (
        _("{steps} steps", steps=settings["max_steps"])
        if settings["max_steps"] > 0
        else _("{epochs:g} epochs", epochs=settings["num_train_epochs"])
    )
    print(
        _(
            "Run {run} goes on to {steps} at a peak learning rate of {learning_rate:g}.",
            run=one_line(run.name),
            steps=steps,
            learning_rate=settings["learning_rate"],
        )
    )
    return DONE


def save_checkpoint(run: Run) -> int:
    """Ask a live run to save a checkpoint. Raises TuituneError where no session holds it or answers."""
    asyncio.run(_answer_of(run, Save(run.name)))
    print(_("Run {run} saves a checkpoint after this step.", run=one_line(run.name)))
    return DONE


def set_then(run: Run, words: Sequence[str]) -> int:
    """Name or cancel the command that follows a run. Raises TuituneError where no session holds it or answers."""
    asyncio.run(_answer_of(run, SetThen(run.name, list(words))))
    name = one_line(run.name)
    print(
        _("When run {run} has ended, this is run: {command}", run=name, command=shown(words))
        if words
        else _("No command follows run {run}.", run=name)
    )
    return DONE


async def _answer_of(run: Run, request: Request[ReplyT]) -> ReplyT:
    """What the session of a run answers; one that does not answer gets a stop by signal."""
    session = await Session.attach(run)
    silent = asyncio.Event()
    session.on_silence = lambda silent_s: silent.set()
    answer = asyncio.create_task(session.call(request))
    try:
        await _first(answer, silent.wait())
        if answer.done():
            return await answer
        if isinstance(request, Stop):
            session.terminate()
            raise TuituneError(
                "The session of run {run} has not answered for 15 s, and was told to stop by SIGTERM, which it gets "
                "once it runs again: `kill -9 {pid}` ends it.",
                run=one_line(run.name),
                pid=session.pid,
            )
        raise TuituneError(
            "The session of run {run} has not answered for 15 s: `kill -9 {pid}` ends it.",
            run=one_line(run.name),
            pid=session.pid,
        )
    finally:
        await session.close()
        await asyncio.gather(answer, return_exceptions=True)


def follow_run(run: Run) -> int:
    """Show a run from its first event to its end; one that has ended is shown from its record."""
    return asyncio.run(_follow_run(run, viewer_for(as_json=False)))


async def _show_training(request: Request[Trained], viewer: Viewer) -> int:
    session = await Session.start()
    session.on_silence = viewer.tell_silence
    stop_signal = _stop_on_signals(session, viewer)
    try:
        viewer.status(_("Starting: importing the libraries"))
        try:
            await _while_seen(session, viewer, _train(session, viewer, request))
        finally:
            await _show_ending(session, viewer)
    except TuituneError as error:
        viewer.close()
        if stop_signal.status is None:
            raise
        complain(str(error))
        return stop_signal.status
    finally:
        viewer.close()
        await session.close()
    viewer.report()
    return DONE if stop_signal.status is None else stop_signal.status


async def _train(session: Session, viewer: Viewer, request: Request[Trained]) -> None:
    """Train, and give every event to the viewer. Raises TuituneError."""
    run_is_named = asyncio.Event()

    def on_part(part: dict[str, Any]) -> None:
        if "run" in part:
            viewer.run = Run(Path(part["run"]))
            run_is_named.set()

    job = asyncio.create_task(session.call(request, on_part))
    job.add_done_callback(lambda _job: run_is_named.set())
    await run_is_named.wait()
    if viewer.run is not None:
        with contextlib.suppress(SessionLost):  # which the job tells
            await session.follow(viewer.add)
    await job
    await _first(viewer.ended.wait(), session.lost.wait())


async def _show_ending(session: Session, viewer: Viewer) -> None:
    """Call the user, and show the command that follows the run until it has ended. Ctrl+C cancels it, then leaves."""
    if viewer.run is None or viewer.history.ended is None or viewer.problem is not None:
        return
    viewer.call_user()
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    with contextlib.suppress(TuituneError):  # what follows the run goes on without being shown
        while (ending := await _ending_of(session, viewer.run, interrupted)) is not None:
            viewer.tell_ending(ending)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupted.wait(), 0.25)
                if ending["state"] == "running":
                    return
                interrupted.clear()
                await session.call(SetThen(viewer.run.name))


async def _ending_of(session: Session, run: Run, interrupted: asyncio.Event) -> EndingStatus | None:
    """What follows the run; None where nothing does, or the session is left before it has answered."""
    answer = asyncio.create_task(session.call(Status()))
    await _first(answer, interrupted.wait())
    if not answer.done():
        answer.cancel()
        return None
    ending = (await answer)["ending"]
    return ending if ending is not None and ending["run"] == run.name else None


async def _follow_run(run: Run, viewer: Viewer) -> int:
    viewer.run = run
    try:
        session = await Session.attach(run)
    except TuituneError:
        for event in run.events():
            viewer.add(event)
        if viewer.problem is not None:
            raise viewer.problem from None
    else:
        session.on_silence = viewer.tell_silence
        try:
            await _while_seen(session, viewer, _follow(session, viewer))
        finally:
            viewer.close()
            await session.close()
    viewer.close()
    viewer.report()
    return DONE if run.status() in ("done", "stopped", "paused") else FAILED


async def _follow(session: Session, viewer: Viewer) -> None:
    """Give every event to the viewer until the run or its session has ended."""
    with contextlib.suppress(SessionLost):  # the report says how the run stands
        await session.follow(viewer.add)
    await _first(viewer.ended.wait(), session.lost.wait())


async def _while_seen(session: Session, viewer: Viewer, work: Coroutine[Any, Any, None]) -> None:
    """Do the work for as long as the viewer can show it. Raises TuituneError, also where a run goes on unseen."""
    if isinstance(viewer.problem, OutputLost):
        work.close()
        raise TuituneError("{problem} Nothing was started.", problem=viewer.problem.sentence) from None
    task = asyncio.create_task(work)
    await _first(task, viewer.left.wait())
    if not task.done():
        await session.close()  # first, as a command whose caller is cancelled is cancelled too
        await asyncio.gather(task, return_exceptions=True)
    elif viewer.problem is None:
        await task
    if viewer.problem is None:
        return
    if viewer.run is None or viewer.history.ended is not None or not isinstance(viewer.problem, OutputLost):
        raise viewer.problem
    back = own_command("attach", viewer.run.folder)
    raise TuituneError(
        "{problem} Run {run} goes on; come back to it with: {back}",
        problem=viewer.problem.sentence,
        run=one_line(viewer.run.name),
        back=back,
    )


async def _first(*ends: Awaitable[Any]) -> None:
    """Wait until one of the awaitables has ended."""
    tasks = [asyncio.ensure_future(end) for end in ends]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


@dataclass
class _StopSignal:
    """The signal that has asked for a stop, if one has."""

    status: int | None = None
    """The command's exit status, by the first signal; None before one came."""


def _stop_on_signals(session: Session, viewer: Viewer) -> _StopSignal:
    """Ctrl+C asks the session to stop, a second one to stop now. Returns the record of the signal.

    A third one leaves, as does the first where the session does not answer. SIGTERM and SIGUSR1 only ever ask to stop:
    who sends them (systemd, Slurm) may send them to the session and twice.
    """
    loop = asyncio.get_running_loop()
    stop_signal = _StopSignal()
    requests: dict[str, asyncio.Task[Any]] = {}

    def ask(command: str, status: int) -> None:
        viewer.status(
            _("Stopping now") if command == "now" else _("Stopping after this step; Ctrl+C once more stops now")
        )
        stop_signal.status = stop_signal.status or status
        stopping = session.stop(now=command == "now", in_time=status == PREEMPTED)
        requests[command] = asyncio.create_task(stopping)
        requests[command].add_done_callback(lambda done: done.exception() if not done.cancelled() else None)
        if session.silent_s:
            leave()

    def leave() -> None:
        run, pid = viewer.run, session.pid
        viewer.leave(
            TuituneError(
                "Run {run} was asked to stop and has not ended yet: `{command}` shows it, `kill -9 {pid}` ends its "
                "session.",
                run=one_line(run.name),
                command=own_command("attach", run.folder),
                pid=pid,
            )
            if run
            else TuituneError(
                "The run was asked to stop and has not ended yet: `kill -9 {pid}` ends its session.", pid=pid
            )
        )

    def interrupt() -> None:
        leave() if "now" in requests else ask("now" if stop_signal.status else "stop", INTERRUPTED)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, ask, "stop", PREEMPTED)
    return stop_signal
