"""The session's main thread: accepts clients, answers at once, hands jobs to the worker thread."""

import asyncio
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tuitune.endings.command import require_command, shown
from tuitune.endings.ending import Ending, is_wanted
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import N_, _
from tuitune.machine.environment import prepare_environment
from tuitune.runs.cost import Price
from tuitune.runs.events import Notice
from tuitune.runs.folder import Run
from tuitune.session.connection import Client, as_message, whole_lines
from tuitune.session.jobs import Jobs
from tuitune.session.messages import request_from
from tuitune.session.preparing_requests import HubAccess
from tuitune.session.protocol import MAX_LINE_BYTES, decode, forget_dead_sessions, peer
from tuitune.session.request import VERSION, Nothing, Request
from tuitune.session.result_requests import Export
from tuitune.session.run_requests import (
    Cancel,
    Change,
    EndingStatus,
    Follow,
    Pause,
    Pausing,
    Resume,
    Save,
    SessionStatus,
    SetPrice,
    SetThen,
    Status,
    Stop,
    Stopping,
    Train,
)
from tuitune.session.worker import Cancelled, Job, Result, Worker
from tuitune.text import one_line, safe_text
from tuitune.train.checkpoints import checkpoints_of

log = logging.getLogger("tuitune.session")

FIRST_CLIENT_SECONDS = 30.0
STOP_NOW_SECONDS = 10.0
GRACE_SECONDS = 25.0
LEAVE_SECONDS = 3.0
"""And for so long a run that is given up may take to leave: together less than the 30 s of most schedulers."""
SAVE_SECONDS = 120.0
"""A save that has begun may take so long beyond the time to end."""
SAMPLE_SECONDS = 1.0
_MOST_JOBS = 64
_TRAINING = (Train.command, Resume.command)
_OUTLIVE_THEIR_CLIENT = (Train, Resume, Export)
_OTHER_VERSION = N_("The session is of another version of tuitune: leave, and start tuitune again.")


class Server:
    """Everything the main thread knows. Methods run in its event loop unless they say otherwise."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.clients: set[Client] = set()
        self.worker = Worker()
        self.hub_worker = Worker("hub")
        """For what only waits for the Hub; it begins when the libraries are imported."""
        self.ended = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.lasting: list[Job] = []
        """Unfinished jobs that outlive their client, the oldest first."""
        self.jobs = Jobs(socket_path, on_event=self._from_worker(self._wake_followers))
        self.endings: list[Ending] = []
        """What still follows runs that have ended, the oldest first."""
        self.ready = False
        self.leaving = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve until there is nothing left to do and nobody to do it for."""
        forget_dead_sessions()
        server = await asyncio.start_unix_server(self._serve_client, self.socket_path, limit=MAX_LINE_BYTES)
        self.socket_path.chmod(0o600)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self.loop.add_signal_handler(number, self._terminate)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.worker.start()
        warm_up = Job("import", self.jobs.warm_up, on_part=lambda part: None, on_end=self._from_worker(self._warm))
        self.worker.submit(warm_up)
        self._spawn(self._sample())
        self.loop.call_later(FIRST_CLIENT_SECONDS, self._end_if_idle)
        await self.ended.wait()
        server.close()  # and not waited for: since Python 3.12.1 that takes until every client has gone
        self.jobs.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _from_worker(self, callback: Callable[..., None]) -> Callable[..., Any]:
        """The callback as the worker thread may call it."""
        return partial(self.loop.call_soon_threadsafe, callback)

    def _warm(self, end: Result | BaseException) -> None:
        self.ready = True
        self.hub_worker.start()
        if isinstance(end, BaseException):
            log.error("importing the libraries failed", exc_info=end)

    # --- clients -----------------------------------------------------------------------------------------------

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer(writer)[1] not in (os.getuid(), None):  # where the platform cannot say, the folder's mode has to do
            writer.close()
            return
        client = Client(writer)
        self.clients.add(client)
        try:
            client.send({"version": VERSION})
            if (greeting := await reader.readline()) and decode(greeting).get("version") != VERSION:
                client.send({"id": decode(greeting).get("id"), **_error(TuituneError(_OTHER_VERSION))})
                return
            while line := await reader.readline():
                self._receive(client, decode(line))
                await writer.drain()  # who does not read the answers is not asked for more
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:  # outside text, of any shape
            log.warning("a client's connection ended: %s", error)
        finally:
            self.clients.discard(client)
            if client.follower:
                client.follower.cancel()
            for job in client.jobs.values():
                if job not in self.lasting:
                    job.cancelled.set()
            writer.close()
            self._end_if_idle()

    def _receive(self, client: Client, message: dict[str, Any]) -> None:
        number = message.get("id")
        try:
            request = request_from(message.get("command"), message.get("arguments"))
            answer = self._answer(client, request)
            if answer is not None:
                client.send({"id": number, "result": answer})
                return
            work = self.jobs.work(request)
            then = require_command(request.then) if isinstance(request, Train | Resume) and request.then else []
            if len(client.jobs) >= _MOST_JOBS:
                raise TuituneError(
                    "{waiting} commands of this client wait already: let some end first.", waiting=_MOST_JOBS
                )
        except Exception as error:
            client.send({"id": number, **_error(error)})
            return
        job = Job(
            request.command,
            work,
            on_part=lambda part: self._from_worker(client.send)({"id": number, "part": part}),
            on_end=lambda end: self._from_worker(self._finish)(client, number, job, end),
            then=then,
        )
        client.jobs[int(number or 0)] = job
        if isinstance(request, _OUTLIVE_THEIR_CLIENT):
            self.lasting.append(job)
        if isinstance(request, Train | Resume):
            for ending in self.endings:
                ending.give_way()
        (self.hub_worker if isinstance(request, HubAccess) else self.worker).submit(job)

    def _answer(self, client: Client, request: Request[Any]) -> Mapping[str, Any] | None:
        """What the main thread answers by itself; None for a job."""
        match request:
            case Status():
                current, run = self.worker.current, self.jobs.run
                return SessionStatus(
                    ready=self.ready,
                    job=current.command if current else None,
                    run=str(run.folder) if run else None,
                    pid=os.getpid(),
                    ending=self._ending_status(),
                )
            case Stop():
                return Stopping(stopping=self._stop(request))
            case Pause():
                job = self._training(request.run)
                if job is not None:
                    job.control.pause.set()
                    job.control.stop.set()
                return Pausing(pausing=job is not None)
            case Change():
                if (job := self._training(request.run)) is None:
                    raise UnusableInput(
                        "Run {run} is not training: resume it with these changes.", run=one_line(request.run)
                    )
                return self.jobs.change(job, request.changes)
            case Save():
                if job := self._training(request.run):
                    job.control.save.set()
                return Nothing()
            case SetPrice():
                if self._training(request.run):
                    self.jobs.set_price(Price.parse(request.price))
                return Nothing()
            case SetThen():
                self._set_then(request)
                return Nothing()
            case Cancel():
                if job := client.jobs.get(request.job):
                    job.cancelled.set()
                return Nothing()
            case Follow():
                if client.follower is None:
                    client.wake.set()
                    client.follower = asyncio.create_task(self._feed(client))
                return Nothing()
        return None

    def _finish(self, client: Client, number: Any, job: Job, end: Result | BaseException) -> None:
        if job in self.lasting:
            self.lasting.remove(job)
        client.jobs.pop(int(number or 0), None)
        if isinstance(end, BaseException):
            if not isinstance(end, TuituneError | Cancelled):
                log.error("a job failed", exc_info=end)
            client.send({"id": number, **_error(end)})
        else:
            client.send({"id": number, "result": end})
        if job.run is not None and is_wanted(job.then):
            ending = Ending(job.run, job.then, self.socket_path, self._wake_followers)
            self.endings.append(ending)
            if self.leaving:
                ending.cancel(_("the session was told to end"))
            self._spawn(self._follow_end(ending))
        self._end_if_idle()

    # --- what follows a run's end -----------------------------------------------------------------------------

    async def _follow_end(self, ending: Ending) -> None:
        try:
            await ending.follow()
        finally:
            self.endings.remove(ending)
            self._end_if_idle()

    def _ending_status(self) -> EndingStatus | None:
        """The command that follows a run: the one that is counted down to, or that of the run that is going."""
        for ending in self.endings:
            if ending.command:
                seconds = ending.seconds_left
                return EndingStatus(run=ending.run.name, command=ending.command, state=ending.state, seconds=seconds)
        job = self._training(None)
        if job is None or not job.then:
            return None
        name = job.run.name if job.run else ""
        return EndingStatus(run=name, command=shown(job.then), state="pending", seconds=None)

    def _set_then(self, request: SetThen) -> None:
        """Raises UnusableInput."""
        words = require_command(request.words) if request.words else []
        if job := self._training(request.run):
            job.then = words
            return
        ending = next((ending for ending in self.endings if ending.run.name == request.run), None)
        if words or ending is None or not ending.cancel(_("it was cancelled")):
            reason = _("it is not training any more") if words else _("none waits to be run")
            raise UnusableInput(
                "The command for the end of run {run} cannot be changed: {reason}.",
                run=one_line(request.run),
                reason=reason,
            )

    # --- events ------------------------------------------------------------------------------------------------

    def _wake_followers(self) -> None:
        for client in self.clients:
            client.wake.set()

    async def _feed(self, client: Client) -> None:
        """Send the run's record from its first byte on, as it grows: the file is the queue, so nothing is lost.

        The file stays open, so that a run folder that is moved or removed takes no event away.
        """
        run: Run | None = None
        record: BinaryIO | None = None
        try:
            while True:
                await client.wake.wait()
                client.wake.clear()
                if run != self.jobs.run and self.jobs.run is not None:
                    if record is not None:
                        record.close()
                    run = self.jobs.run
                    record = run.open_events()
                while record is not None and (lines := whole_lines(record)):
                    for line in lines:
                        client.writer.write(as_message(line))
                    await client.writer.drain()
        except OSError as error:
            reason = _(
                "The record of run {run} cannot be read ({reason})", run=run.name if run else "", reason=explain(error)
            )
            client.send({"lost": reason})
            client.writer.close()
        finally:
            if record is not None:
                record.close()

    async def _sample(self) -> None:
        """Record the machine's state once a second; one that cannot be read or written is left out."""
        problem = ""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            if not self.jobs.is_training:
                continue
            try:
                self.jobs.keep_folder()
                for sample in self.jobs.samples():
                    self.jobs.emit(sample)
            except Exception as error:  # a full disk ends the run, and may have room again for the next
                if explain(error) != problem:
                    problem = explain(error)
                    log.warning("the machine's state is not recorded: %s", problem)

    # --- the end -----------------------------------------------------------------------------------------------

    def _training(self, run: str | None) -> Job | None:
        """The run of this name if it is going; without a name the one that goes, or that will be the first."""
        if run is not None and (not self.jobs.is_training or self.jobs.run is None or self.jobs.run.name != run):
            return None
        return next((job for job in self.lasting if job.command in _TRAINING), None)

    def _stop(self, request: Stop) -> str | None:
        """Stop after this step, however often and by however many it is asked; only `now` gives the step up."""
        job = self._training(request.run)
        if job is None:
            return None
        job.control.stop.set()
        if request.in_time:
            self._set_deadline(job)
        if request.now and not job.control.now.is_set():
            job.control.now.set()
            self._spawn(self._end_now(job))
        return "now" if job.control.now.is_set() else "after this step"

    async def _end_now(self, job: Job, seconds: float = STOP_NOW_SECONDS) -> None:
        """What does not notice `now` in time is ended with the process."""
        if not await _within(seconds, lambda: job in self.lasting):
            return
        log.warning("the run did not end within %s s of being asked to: ending the process", seconds)
        try:
            self.jobs.abandon()
        finally:  # even where the disk is too full to record it
            self.ended.set()

    def _set_deadline(self, job: Job) -> None:
        """Have the run end in the time that whoever sent a signal gives it, from the first one on."""
        if not job.has_deadline:
            job.has_deadline = True
            self._spawn(self._leave_in_time(job))

    async def _leave_in_time(self, job: Job) -> None:
        """Give up what takes longer than whoever sent the signal may wait, be it a step, a measurement or the others.

        A save that has begun goes on, but not for ever: the disk may hang, too.
        """
        grace = grace_seconds()
        await asyncio.sleep(grace)
        await _within(SAVE_SECONDS, job.control.saving.is_set)
        if job not in self.lasting:
            return
        saved = checkpoints_of(job.run)[-1:] if job.run else []
        where = saved[0].name if saved else _("the start")
        with contextlib.suppress(OSError):
            text = _(
                "What was under way did not end within {seconds:g} s of the signal to end, and is given up: `tuitune "
                "resume` goes on from {where}.",
                seconds=grace,
                where=where,
            )
            self.jobs.emit(Notice(text=text))
        job.control.now.set()
        await self._end_now(job, LEAVE_SECONDS)

    def _terminate(self) -> None:
        """SIGTERM stops a run as `stop` does, and an export: the process ends with it, at once where there is none.

        So does SIGUSR1, which schedulers send some time before.
        """
        if training := self._training(None):
            self._set_deadline(training)
        self.leaving = True
        for job in self.lasting:
            job.control.stop.set()
            job.cancelled.set()
        for ending in self.endings:
            ending.cancel(_("the session was told to end"))
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if not self.lasting and not self.endings and (self.leaving or not self.clients):
            self.ended.set()


async def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it still holds after some seconds; at once where it does so no longer."""
    for _poll in range(int(seconds / 0.1)):
        if not holds():
            return False
        await asyncio.sleep(0.1)
    return holds()


def _error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Cancelled):
        return {"error": _("Cancelled."), "exit_code": 130, "code": "cancelled"}
    code = error.code if isinstance(error, TuituneError) else "unexpected"
    return {"error": safe_text(explain(error)), "exit_code": getattr(error, "exit_code", 1), "code": code}


def grace_seconds() -> float:
    """How long a step may take to end after a signal to: $TUITUNE_GRACE, or less than Slurm and Kubernetes wait."""
    try:
        return max(0.0, float(os.environ.get("TUITUNE_GRACE") or GRACE_SECONDS))
    except ValueError:
        return GRACE_SECONDS


class _Threads(ThreadPoolExecutor):
    """Threads that the end of this process does not wait for: one may hang on a server that answers without end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def serve(socket_path: Path) -> int:
    """Run a session until it ends; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # a log file: no library fails for what it prints there
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    prepare_environment()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(_Threads())
        await Server(socket_path).run()

    try:
        asyncio.run(main())
    finally:
        socket_path.unlink(missing_ok=True)
    socket_path.with_suffix(".log").unlink(missing_ok=True)
    # The worker thread may be deep in a library; there is nothing left that it could still save.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
