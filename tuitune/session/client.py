"""The client's side: start a session or reach a live one, call its commands, follow its events."""

import asyncio
import contextlib
import itertools
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.machine.hardware import choose_gpu
from tuitune.runs.events import Event, Failed, Finished, from_data
from tuitune.runs.folder import Run
from tuitune.session.protocol import MAX_LINE_BYTES, decode, encode, new_socket_path, peer
from tuitune.session.request import VERSION, ReplyT, Request
from tuitune.session.run_requests import Cancel, Follow, Status, Stop, Stopping
from tuitune.text import one_line

Part = dict[str, Any]
_START_SECONDS = 30.0
_SILENT_SECONDS = 15


class SessionLost(TuituneError):
    """The connection to the session is gone, most often with its process and whatever that had not saved."""


class Session:
    """A connection to a session process. Closing it never stops a run; an idle session ends with its last client.

    All methods belong to the event loop that made the connection. Callbacks are called in that loop.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log_file: Path,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """`process` is the session's where this process started it: it tells how the session ended."""
        self._reader = reader
        self._writer = writer
        self._process = process
        self._own_log = log_file
        self._log_file = log_file
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], Callable[[Part], None] | None]] = {}
        self._on_event: Callable[[Event], None] | None = None
        self.lost = asyncio.Event()
        """Set once the connection has ended, from whichever side."""
        self.ending = _("The session process has ended unexpectedly")
        """Why it has ended, as the beginning of a sentence."""
        self._remedy = _("what it had saved is in the run folder: `tuitune resume` goes on with a run.")
        self.silent_s = 0
        """For how many seconds the session has not answered; 0 while it answers, and until that takes 15 s."""
        self.on_silence: Callable[[int], None] | None = None
        """Called with `silent_s` whenever it has changed."""
        self._quiet_s = 0
        self._greeted = False
        self._writer.write(encode({"version": VERSION}))
        self._listener = asyncio.create_task(self._listen())
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls) -> Self:
        """Start a session process of its own and connect to it. Raises TuituneError."""
        choose_gpu()
        socket = new_socket_path()
        log_file = socket.with_suffix(".log")
        process = _spawn(socket, log_file)
        try:
            for _poll in range(int(_START_SECONDS / 0.02)):
                if process.poll() is not None:
                    break
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    return await cls._connect(socket, process)
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:  # nobody waits for it any more
            process.kill()
            socket.unlink(missing_ok=True)
            log_file.unlink(missing_ok=True)
            raise
        code = process.poll()
        process.kill()
        ending = _("does not answer") if code is None else _ended(code)
        raise TuituneError(
            "The session process {ending} before it could be used: its log is {log_file}.",
            ending=ending,
            log_file=log_file,
        )

    @classmethod
    async def attach(cls, run: Run) -> Self:
        """Connect to the live session that holds `run`. Raises TuituneError if there is none."""
        socket = run.session_socket()
        try:
            if socket is None or not stat.S_ISSOCK(socket.lstat().st_mode):  # a link could lead to anyone's
                raise FileNotFoundError
            session = await cls._connect(socket)
        except OSError:
            raise TuituneError(
                "Run {run} has no live session: `tuitune runs` shows how it stands.",
                code="run-has-no-live-session",
                run=one_line(run.name),
            ) from None
        session._log_file = run.log_file
        return session

    @classmethod
    async def _connect(cls, socket: Path, process: subprocess.Popen[bytes] | None = None) -> Self:
        reader, writer = await asyncio.open_unix_connection(socket, limit=MAX_LINE_BYTES)
        return cls(reader, writer, socket.with_suffix(".log"), process)

    async def call(self, request: Request[ReplyT], on_part: Callable[[Part], None] | None = None) -> ReplyT:
        """Have a request done to its end and return the reply; `on_part` gets what is sent on the way.

        Cancelling the awaiting task cancels the job in the session. Raises TuituneError with the session's sentence
        (UnusableInput where it is the input's fault, or too large to be sent), SessionLost when the process goes away.
        """
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, on_part)
        try:
            self._send({"id": number, "command": request.command, "arguments": request.arguments()})
            return cast(ReplyT, await future)
        except asyncio.CancelledError:
            if not self.lost.is_set():
                self._send({"id": next(self._ids), "command": Cancel.command, "arguments": {"job": number}})
            raise
        finally:
            self._waiting.pop(number, None)

    async def follow(self, on_event: Callable[[Event], None]) -> None:
        """Have every event of the session's run, from its first, given to `on_event` as it comes."""
        self._on_event = on_event
        await self.call(Follow())

    async def stop(self, run: str | None = None, *, now: bool = False, in_time: bool = False) -> Stopping:
        """Ask the run of this name (see `run_requests.Stop`) to stop, and return what the session answers.

        A session that does not answer is asked by `terminate` too.
        """
        if self.silent_s:
            self.terminate()
        return await self.call(Stop(run, now, in_time))

    def terminate(self) -> None:
        """Send the session SIGTERM, which asks for the same as `stop`.

        The system keeps it until the session runs again, also where this connection, and with it what was sent, is
        gone by then. A process of another container, whose id is not known here, gets none.
        """
        if pid := self.pid:  # 0 would be this process and its group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    @property
    def pid(self) -> int | None:
        """The session's process, where the platform tells it."""
        return peer(self._writer)[0]

    async def close(self) -> None:
        """End the connection. A live run goes on; a session with nothing to do and no other client ends."""
        self.ending, self._remedy = _("The connection to the session was closed"), _("a run that is going goes on.")
        self._writer.close()
        self._listener.cancel()
        self._watcher.cancel()
        await asyncio.gather(self._listener, self._watcher, return_exceptions=True)

    def _send(self, message: dict[str, Any]) -> None:
        if self.lost.is_set():
            raise self._lost()
        line = encode(message)
        if len(line) > MAX_LINE_BYTES:
            raise UnusableInput(
                "What is sent to the session is larger than {most} MiB: give a shorter text.",
                most=MAX_LINE_BYTES // 2**20,
            )
        self._writer.write(line)

    async def _watch(self) -> None:
        """Notice when the session does not answer, as one that hangs or was suspended.

        Seconds are counted here and not read from a clock, which goes on while this process is suspended itself.
        """
        while not self.lost.is_set():
            await asyncio.sleep(1)
            self._quiet_s += 1
            if self._quiet_s == 1:  # once, as one that hangs reads nothing; its answer is not waited for
                self._writer.write(encode({"id": 0, "command": Status.command}))
            silent_s = self._quiet_s if self._quiet_s >= _SILENT_SECONDS else 0
            if silent_s != self.silent_s:
                self.silent_s = silent_s
                if self.on_silence is not None:
                    self.on_silence(silent_s)

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._quiet_s = 0
                with contextlib.suppress(ValueError):  # a line of the record that something else wrote there
                    message = decode(line)
                    if not self._greeted and message.get("version") != VERSION:
                        self.ending = _("The session is of another version of tuitune")
                        self._remedy = _(
                            "a run that is going goes on: follow it with that version, or wait for its end."
                        )
                        return
                    self._greeted = True
                    self._receive(message)
            await self._learn_how_it_ended()
        except ValueError as error:  # a line that is too long
            reason = one_line(error, max_length=80)
            self.ending = _("The session sent what cannot be read ({reason})", reason=reason)
            self._remedy = _("a run that is going goes on: come back to it with `tuitune attach`.")
        except OSError:
            await self._learn_how_it_ended()
        finally:
            self._writer.close()
            self.lost.set()
            for future, _on_part in self._waiting.values():
                if not future.done():
                    future.set_exception(self._lost())

    async def _learn_how_it_ended(self) -> None:
        """Wait a moment for the process to be gone, and tell what killed it."""
        for _poll in range(20):
            if self._process is None:
                return
            if (code := self._process.poll()) is not None:
                self.ending = _("The session process {ending}", ending=_ended(code))
                return
            await asyncio.sleep(0.05)

    def _receive(self, message: dict[str, Any]) -> None:
        if "lost" in message:
            self.ending, self._remedy = message["lost"], _("a run that is going goes on.")
            return
        if isinstance(message.get("event"), dict):
            event = from_data(message["event"])
            if isinstance(event, Finished | Failed):
                self._log_file = self._own_log  # the run's log ends with it
            if event is not None and self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception as error:  # the follower's own: events and answers go on
                    context = {"message": "a run's follower failed", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
            return
        future, on_part = self._waiting.get(message.get("id", 0), (None, None))
        if future is None or future.done():
            return
        if "part" in message:
            if "run" in message["part"]:
                self._log_file = Run(Path(message["part"]["run"])).log_file
            try:
                if on_part is not None:
                    on_part(message["part"])
            except Exception as error:  # the caller's, whose command it is; other commands go on
                future.set_exception(error)
        elif "error" in message:
            kind = UnusableInput if message.get("exit_code") == UnusableInput.exit_code else TuituneError
            future.set_exception(kind(message["error"], code=message.get("code", "")))
        else:
            future.set_result(message.get("result") or {})

    def _lost(self) -> SessionLost:
        return SessionLost(
            "{ending}; its log is {log_file}; {remedy}",
            ending=self.ending,
            log_file=self._log_file,
            remedy=self._remedy,
        )


def _ended(code: int) -> str:
    """How a process with this exit code ended."""
    if code == -signal.SIGKILL:
        return _("was killed by signal 9 (often: memory ran out)")
    return _("was ended by signal {signal}", signal=-code) if code < 0 else _("has ended unexpectedly")


def _spawn(socket: Path, log_file: Path) -> subprocess.Popen[bytes]:
    """A session process that shares nothing with this one: no terminal, no process group, no open file."""
    with open(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tuitune.session", str(socket)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
