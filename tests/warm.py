"""Session processes that begin with the libraries imported: forked from a process that has imported them before.

A session so started runs the code of `python -m tuitune.session` in a process, and a process session, of its own. It
takes 4 s of CPU less; tests use it whose point is not how a session starts. Where the test's environment differs in
what a library reads as it is imported, or there is a GPU (CUDA cannot be forked), it starts as a user's does.

The same holds for commands that need the libraries in their own process.
"""

import atexit
import hashlib
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tuitune.atomic import write_atomic
from tuitune.machine import doctor
from tuitune.session import client

VARIABLE = "TUITUNE_TEST_WARM"
"""Names to a command's process (`tests/command.py`) the socket at which sessions are ordered."""
_OF_A_SHELL = ("_", "SHLVL", "PWD", "OLDPWD")
_READ_WHEN_USED = (
    *_OF_A_SHELL,
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "COLUMNS",
    "LINES",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
)
_OURS_AND_THE_TESTS = ("TUITUNE_", "TEXTUAL_", "PYTEST_")


class WarmProcess:
    """The process that sessions are forked from: started with the first of them, in the environment of now."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def path(self) -> Path:
        """Where it listens."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="warm-"))
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(self._folder / "socket"))
                listener.listen()
                self._process = subprocess.Popen(
                    [sys.executable, "-P", __file__, str(listener.fileno()), "tuitune.session"],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
            WarmSessions(self._folder / "socket").ask({"ended": 0})  # it answers once it is warm: no app waits for that
        return self._folder / "socket"

    def close(self) -> None:
        if self._process is not None and self._process.stdin and self._folder:
            self._process.stdin.close()
            self._process.wait(timeout=20)
            shutil.rmtree(self._folder)


class WarmSessions:
    """Starts sessions by having the process that listens at `path` fork."""

    def __init__(self, path: Path) -> None:
        self._start_as_users_do = client._spawn
        self.path = path

    def start(self, socket: Path, log_file: Path) -> "subprocess.Popen[bytes] | WarmSession":
        """A session, as `tuitune.session.client` starts one."""
        os.umask(mask := os.umask(0o077))
        order = {"socket": str(socket), "log": str(log_file), "folder": os.getcwd(), "umask": mask}
        pid = self.ask({**order, "environment": dict(os.environ)})
        return self._start_as_users_do(socket, log_file) if pid is None else WarmSession(self, pid)

    def command(self, arguments: list[str]) -> int | None:
        """Do a command in a process of its own, with this one's streams; its exit status, None if it cannot be done.

        A signal reaches it only where it is sent to it.
        """
        os.umask(mask := os.umask(0o077))
        order = {"command": arguments, "folder": os.getcwd(), "umask": mask, "environment": dict(os.environ)}
        if (pid := self.ask(order, with_streams=True)) is None:
            return None
        process = WarmSession(self, pid)
        while (code := process.poll()) is None:
            time.sleep(0.02)
        return code

    def ask(self, order: dict[str, Any], *, with_streams: bool = False) -> Any:
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
            connection.connect(str(self.path))
            # One byte goes ahead, as descriptors travel with bytes.
            socket.send_fds(connection, [b" "], [0, 1, 2] if with_streams else [])
            stream.write(json.dumps(order) + "\n")
            stream.flush()
            return json.loads(stream.readline())


class Probes:
    """What the doctor's probes say, which import torch for seconds: asked once for each PYTHONPATH, and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._probe = doctor._probe

    def ask(self, code: str, *arguments: str) -> dict[str, Any]:
        words = "\0".join([os.environ.get("PYTHONPATH", ""), code, *arguments])
        file = self._folder / hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()
        if not file.is_file():
            write_atomic(file, json.dumps(self._probe(code, *arguments)), lasting=False)
        report: dict[str, Any] = json.loads(file.read_text())
        return report


class WarmSession:
    """What a client uses of the process that it has started."""

    def __init__(self, sessions: WarmSessions, pid: int) -> None:
        self.pid = pid
        self._sessions = sessions

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code: int | None = self._sessions.ask({"ended": self.pid})
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment but for what is read when it is used."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _READ_WHEN_USED and not name.startswith(_OURS_AND_THE_TESTS)
    }


def main(listener: socket.socket) -> None:
    """Fork a session, or a command, for each order that comes, and answer with its process, or with how one ended.

    Ends with its standard input.
    """
    from tuitune.machine.environment import warm_up
    from tuitune.machine.hardware import gpus

    before = set(os.environ)
    can_fork = not gpus()
    if can_fork:
        warm_up()
        for name in (
            "session.server",
            "train.run",
            "train.trainer",
            "train.callbacks",
            "chat.reply",
            "commands.parser",
        ):
            importlib.import_module(f"tuitune.{name}")

    here = _read_at_import(os.environ)
    set_here = {name: value for name, value in here.items() if name not in before}
    codes: dict[int, int] = {}

    def collect(*_: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            codes[pid] = os.waitstatus_to_exitcode(status)

    def answer(order: dict[str, Any], streams: Sequence[int]) -> int | None:
        if "ended" in order:
            collect()
            return codes.get(order["ended"])
        if not can_fork or set_here | _read_at_import(order["environment"]) != here:
            return None
        if pid := os.fork():
            return pid
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if "command" in order:
            _become_command(order, streams)
        _become_session(order)

    signal.signal(signal.SIGCHLD, collect)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while sys.stdin not in [key.fileobj for key, _ in selector.select()]:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                _, streams, *_rest = socket.recv_fds(connection, 1, 3)
                if line := stream.readline():
                    stream.write(json.dumps(answer(json.loads(line), streams)) + "\n")
                for descriptor in streams:
                    os.close(descriptor)


def _become_session(order: dict[str, Any]) -> NoReturn:
    from tuitune.session.server import serve

    try:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.setsid()
        for descriptor, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, order["log"], os.O_WRONLY | os.O_APPEND),
        ):
            handle = os.open(path, flags, 0o600)
            os.dup2(handle, descriptor)
            os.close(handle)
        _settle(order)
        os._exit(serve(Path(order["socket"])))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _become_command(order: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    status = 1
    try:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.command import main

        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _settle(order)
        sys.argv = ["tuitune", *order["command"]]
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _settle(order: dict[str, Any]) -> None:
    os.umask(order["umask"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        main(listener)
