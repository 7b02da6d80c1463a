"""Session processes that begin with the libraries imported: forked from a process that has imported them before.

A session so started runs the code of `python -m tuitune.session` in a process, and a process session, of its own. It
takes 4 s of CPU less; tests use it whose point is not how a session starts. Where the test's environment differs in
what a library reads as it is imported, or there is a GPU (CUDA cannot be forked), it starts as a user's does.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tuitune.machine.hardware import gpus
from tuitune.session import client

_READ_WHEN_USED = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "PYTEST_CURRENT_TEST", "COLUMNS", "LINES", "TERM", "NO_COLOR")


class WarmSessions:
    """Starts sessions by forking one process, which is started with the first of them and ends with this one."""

    def __init__(self) -> None:
        self._start_as_users_do = client._spawn
        self._process: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}

    @property
    def pid(self) -> int | None:
        """The process that sessions are forked from, if there is one."""
        return self._process.pid if self._process else None

    def start(self, socket: Path, log_file: Path) -> "subprocess.Popen[bytes] | WarmSession":
        """A session, as `tuitune.session.client` starts one."""
        if self._process is None:
            if gpus():
                return self._start_as_users_do(socket, log_file)
            self._environment = _read_at_import()
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, "tuitune.session"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        if _read_at_import() != self._environment:
            return self._start_as_users_do(socket, log_file)
        os.umask(mask := os.umask(0o077))
        order = {"socket": str(socket), "log": str(log_file), "folder": os.getcwd(), "umask": mask}
        return WarmSession(self, self.ask({**order, "environment": dict(os.environ)}))

    def ask(self, order: dict[str, Any]) -> Any:
        assert self._process is not None and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        if self._process is not None and self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            self._process.wait(timeout=20)
            self._process.stdout.close()


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


def _read_at_import() -> dict[str, str]:
    """The environment but for what is read when it is used."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _READ_WHEN_USED and not name.startswith("TUITUNE_")
    }


def main() -> None:
    """Fork a session for each order that is read, and answer with its process, or with how one ended."""
    from tuitune.machine.environment import warm_up

    warm_up()
    for name in ("session.server", "train.run", "train.trainer", "train.callbacks", "chat.reply"):
        importlib.import_module(f"tuitune.{name}")

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

    signal.signal(signal.SIGCHLD, collect)
    for line in sys.stdin:
        order = json.loads(line)
        if "ended" in order:
            collect()
            print(json.dumps(codes.get(order["ended"])), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_session(order)


def _become_session(order: dict[str, Any]) -> NoReturn:
    from tuitune.session.server import serve

    try:
        os.setsid()
        for descriptor, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, order["log"], os.O_WRONLY | os.O_APPEND),
        ):
            handle = os.open(path, flags, 0o600)
            os.dup2(handle, descriptor)
            os.close(handle)
        os.umask(order["umask"])
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        os._exit(serve(Path(order["socket"])))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
