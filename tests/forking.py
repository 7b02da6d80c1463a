"""Processes that begin with the libraries imported: forked from a process, the forker, that has imported them before.

Such a process runs the program of its command line in a process session of its own, and takes 2 to 7 s of CPU less.
`Popen` starts sessions, ranks, the doctor's probes and llama.cpp's converter so, in every test that is not marked
`cold`; `ForkedPopen` any program. Where the environment differs in what a library reads as it is imported, or there is
a GPU (CUDA cannot be forked), both start a process as `subprocess.Popen` does.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "TUITUNE_TEST_FORKER"
"""Names the socket of the forker to whatever a test starts."""
_READ_WHEN_USED = (
    *("_", "SHLVL", "PWD", "OLDPWD"),
    *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HF_TOKEN", "COLUMNS", "LINES", "TERM", "COLORTERM", "NO_COLOR"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES"),
    "PYTHONPATH",  # see `_brought`
    "PYTHONDONTWRITEBYTECODE",  # see `_become`
    "PATH",  # by which no library is found
    "KMP_BLOCKTIME",  # OpenMP sets it to its default as torch is imported, for whatever that process starts
    "XDG_CACHE_HOME",  # by tuitune; the libraries keep theirs where it was
    "TORCH_CPP_LOG_LEVEL",  # read at import, but what is logged is no test's point
)
_OURS_AND_THE_TESTS = ("TUITUNE_", "TEXTUAL_", "PYTEST_")
_IMPORTED = (
    *("sentencepiece", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.trainer"),
    *("trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer"),
    *("tuitune.session.server", "tuitune.train.run", "tuitune.train.trainer", "tuitune.train.callbacks"),
    *("tuitune.train.ranks", "tuitune.session.rank_messages", "tuitune.chat.reply", "tuitune.commands.parser"),
)
_REPLACED = {"pynvml", "tuitune"}
"""Modules that are imported anew where PYTHONPATH has others of that name."""
_WIDTH_OF_COMMAND_LINES = 4096


class Forker:
    """The forker, in an environment: by default that in which it is made. It imports the libraries when first asked."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forker-"))
        self.path = self._folder / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno()), " " * _WIDTH_OF_COMMAND_LINES],
                env=environment,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def warm_up(self) -> None:
        """Have the libraries imported now, for tests in which nothing is to wait for that."""
        with socket.socket(socket.AF_UNIX) as connection:
            _order(connection, self.path, {"arguments": [], "environment": {}}, ())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=20)
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def forking_in(surroundings: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Variables that libraries read as they are imported, with what names a forker that has imported them so."""
    forker = Forker({**os.environ, **surroundings})
    forker.warm_up()
    try:
        yield {**surroundings, VARIABLE: str(forker.path)}
    finally:
        forker.close()


class ForkedPopen(subprocess.Popen[Any]):
    """`python ARGUMENTS…`, forked with the libraries imported. It is no child of this process, but of the forker."""

    _connection: socket.socket | None = None
    """On which the forker tells the exit code."""

    def _execute_child(self, args: Any, *how: Any) -> None:
        """In place of what forks and executes a program in `subprocess.Popen`, with its arguments."""
        _, _, _, _, cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_ = how
        environment = dict(os.environ if env is None else env)
        os.umask(mask := os.umask(0o077))
        connection = socket.socket(socket.AF_UNIX)
        order = {
            "arguments": [os.fspath(argument) for argument in args[1:]],
            "environment": environment,
            "folder": os.fspath(cwd or os.getcwd()),
            "umask": mask,
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        with open("/proc/self/ns/net") as network:
            pid = _order(connection, Path(environment[VARIABLE]), order, [*streams, network.fileno()])
        if pid is None:
            connection.close()
            super()._execute_child(args, *how)  # type: ignore[misc]
            return
        self.pid, self._connection = pid, connection
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        return super()._internal_poll(_deadstate, self._waitpid)  # type: ignore[misc, no-any-return]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        return self._waitpid(self.pid, flags)

    def _waitpid(self, pid: int, flags: int) -> tuple[int, int]:
        """As `os.waitpid`; the forker tells the status of what it has forked."""
        if self._connection is None:
            return os.waitpid(pid, flags)
        try:
            told = self._connection.recv(4, socket.MSG_DONTWAIT if flags else socket.MSG_WAITALL)
        except BlockingIOError:
            return 0, 0
        return pid, int.from_bytes(told) if told else signal.SIGKILL  # as its processes end where it is ended


class Popen(ForkedPopen):
    """A process as `subprocess.Popen` starts it, forked where it is one that imports the libraries."""

    def _execute_child(self, args: Any, *how: Any) -> None:
        if _imports_the_libraries(args):
            super()._execute_child(args, *how)
        else:
            super(ForkedPopen, self)._execute_child(args, *how)  # type: ignore[misc]


def _imports_the_libraries(args: Any) -> bool:
    match args:
        case [sys.executable, "-P", "-m", "tuitune.session" | "tuitune.session.rank", *_]:
            return True
        case [sys.executable, "-P", "-c", *_]:  # a probe
            return True
        case [sys.executable, "-P", str(file), *_]:
            return Path(file).name == "convert.py"
    return False


def run_forked(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program of Python to its end, at most 300 s, with its output captured."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ForkedPopen(argv, cwd=cwd, env=env, text=True, **pipes) as process:
        try:
            stdout, stderr = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


def _order(connection: socket.socket, path: Path, order: dict[str, Any], descriptors: Sequence[int]) -> int | None:
    """The process that the forker has forked to this order, None where it has not.

    It gets these descriptors: of its streams, and of the network of this process.
    """
    connection.connect(str(path))
    line = json.dumps(order).encode()
    socket.send_fds(connection, [len(line).to_bytes(4)], descriptors)
    connection.sendall(line)
    pid = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
    return pid or None


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment but for what is read when it is used."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _READ_WHEN_USED and not name.startswith(_OURS_AND_THE_TESTS)
    }


def main(listener: socket.socket) -> None:
    """Fork a process for each order that comes, answer with its number, and then with how it ended.

    Ends with its standard input.
    """
    libraries = _Libraries()
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listener:
                    _answer(selector, libraries, listener.accept()[0])
                else:
                    _tell_end(selector, key)


class _Libraries:
    """What this process has imported, when it was first asked to fork."""

    def __init__(self) -> None:
        self._environment: dict[str, str] | None = None
        self._set_here: dict[str, str] = {}

    def can_be_forked(self, environment: Mapping[str, str]) -> bool:
        """Whether they are imported, and would be the same in this environment."""
        from tuitune.machine.environment import warm_up
        from tuitune.machine.hardware import gpus

        if gpus():
            return False
        if self._environment is None:
            before = set(os.environ)
            warm_up()
            for name in _IMPORTED:
                importlib.import_module(name)
            gc.freeze()  # as a session does with what it has imported
            self._environment = _read_at_import(os.environ)
            self._set_here = {name: value for name, value in self._environment.items() if name not in before}
        return self._set_here | _read_at_import(environment) == self._environment and _brought(environment).isdisjoint(
            {"sitecustomize", *sys.modules} - _REPLACED
        )


def _answer(selector: selectors.BaseSelector, libraries: _Libraries, connection: socket.socket) -> None:
    length, descriptors, *_ = socket.recv_fds(connection, 4, 4)
    order = json.loads(connection.recv(int.from_bytes(length), socket.MSG_WAITALL))
    pid = 0
    if libraries.can_be_forked(order["environment"]) and order["arguments"]:
        pid = os.fork() or _become(order, descriptors, connection)
    for descriptor in descriptors:
        os.close(descriptor)
    if pid:
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
        return
    with connection, contextlib.suppress(OSError):  # nobody waits for it any more
        connection.sendall(pid.to_bytes(4))


def _tell_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, connection = key.data
    _, status = os.waitpid(pid, 0)
    with connection, contextlib.suppress(OSError):  # nobody asks for it any more
        connection.sendall(status.to_bytes(4))
    selector.unregister(key.fileobj)
    os.close(key.fd)


def _become(order: dict[str, Any], descriptors: Sequence[int], connection: socket.socket) -> NoReturn:
    """Run the program of the order in this process, as its own `python` would, once who ordered it knows it."""
    status: Any = 1
    try:
        os.setsid()
        with contextlib.suppress(OSError):  # nobody waits for it any more
            connection.sendall(os.getpid().to_bytes(4))  # from here on signals to its group reach it
        *streams, network = descriptors
        if os.fstat(network).st_ino != os.stat("/proc/self/ns/net").st_ino:
            ctypes.CDLL(None).setns(network, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.umask(order["umask"])
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding)
        sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
        sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        if folders := os.environ.get("PYTHONPATH"):
            sys.path[:0] = folders.split(os.pathsep)
            _forget(*_REPLACED)
        _show_command_line([sys.executable, *order["arguments"]])
        _run(order["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for printed in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            printed.flush()
    os._exit(status)


def _run(arguments: Sequence[str]) -> None:
    """What `python ARGUMENTS…` runs."""
    assert arguments[0] == "-P", "only what does not look in the current folder"
    match arguments[1:]:
        case ["-m", module, *rest]:
            subprocess.Popen = Popen  # type: ignore[misc] # for what it starts itself
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            _forget("tuitune")
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as `python -c` does
        case [file, *rest]:
            _forget("tuitune")  # an exported script finds nothing of it imported
            sys.argv = [file, *rest]
            runpy.run_path(file, run_name="__main__")


def _brought(environment: Mapping[str, str]) -> set[str]:
    """The modules that PYTHONPATH has."""
    return {module.name for module in pkgutil.iter_modules(environment.get("PYTHONPATH", "").split(os.pathsep))}


def _forget(*modules: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in modules]:
        del sys.modules[name]


def _show_command_line(words: Sequence[str]) -> None:
    """Have the system's list of processes show these words, in the place of those of the forker."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = b"\0".join(map(os.fsencode, words))[: end - begin - 1]
    ctypes.memmove(begin, line.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        main(listener)
