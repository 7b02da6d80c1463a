"""Do something in one forked child after another, each with a fault at another call, and look at what is left.

Runs in a process into which `injector.c` was preloaded (`sweep_in_child`, for the tests).
"""

import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tuitune.errors import TuituneError

ROOT = Path(__file__).parents[2]

KILL, TORN = -1, -2
NEEDS_ROOM = ("open", "write", "fsync", "mkdir", "link")
_DONE, _TOLD, _CRASHED = 0, 3, 4


@dataclass(frozen=True)
class Fault:
    """What happens at a call: the process is killed before it, in the middle of it, or the call fails."""

    name: str
    action: int
    lasting: bool = False

    def befalls(self, call: str) -> bool:
        """Whether this fault can happen at a call of this name."""
        return self.action == KILL or (call == "write" if self.action == TORN else call in NEEDS_ROOM)


KILLED = Fault("kill -9", KILL)
TORN_WRITE = Fault("kill -9 in the middle of the write", TORN)
NO_SPACE = Fault("ENOSPC from here on", errno.ENOSPC, lasting=True)
NO_SPACE_ONCE = Fault("ENOSPC once", errno.ENOSPC)
NO_QUOTA = Fault("EDQUOT from here on", errno.EDQUOT, lasting=True)
BROKEN_DISK = Fault("EIO once", errno.EIO)
KILLS = (KILLED, TORN_WRITE)
DISK = (NO_SPACE, NO_SPACE_ONCE, NO_QUOTA, BROKEN_DISK)


@dataclass(frozen=True)
class Record:
    """One injected fault: where it happened, which state was expected afterwards, and what was wrong instead."""

    case: str
    fault: str
    expected: str
    problems: list[str]


class Injector:
    """The library that was preloaded into this process."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._folder = folder
        self._log = log

    def arm(self, at: int = 0, fault: Fault = KILLED) -> None:
        """Have the call of this number below the folder be a fault; 0 only logs the calls."""
        self._library.faults_arm(
            os.fsencode(self._folder),
            ctypes.c_long(at),
            ctypes.c_int(fault.action),
            ctypes.c_int(fault.lasting),
            b"" if at else os.fsencode(self._log),
        )

    def set_clock(self, offset_s: int) -> None:
        """Put the wall clock of this process forward or back; the monotonic one goes on."""
        self._library.faults_set_clock(ctypes.c_long(offset_s))

    def calls(self) -> list[tuple[str, str]]:
        """Name and path, relative to the folder, of each call that was logged; forgets them."""
        lines = self._log.read_text().splitlines()
        self._log.unlink()
        calls = [line.split(" ", 1) for line in lines]
        return [(name, os.path.relpath(path, self._folder)) for name, path in calls]


class GoOn(BaseException):
    """Raised in a forked child to go on from where the process forked; what goes on ends by `leave`."""

    writing = -1


def forked(work: Callable[[], Any]) -> tuple[int, str]:
    """Do the work in a child; returns minus the signal that ended it, or its exit status, and its error's words."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            leave(work, writing)
        except GoOn as going:
            going.writing = writing
            raise
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), told


def leave(work: Callable[[], Any], writing: int) -> None:
    """In a child: do the work and end the process, telling how it went through `writing`."""
    status, words = _DONE, ""
    try:
        work()
    except GoOn:
        raise
    except (OSError, TuituneError) as error:
        status, words = _TOLD, str(error)
    except BaseException:
        status, words = _CRASHED, traceback.format_exc()
    os.write(writing, words.encode())
    os._exit(status)


def problem_of_end(fault: Fault, status: int, told: str) -> list[str]:
    """What is wrong with how the child ended: a kill must have killed it, an error may only be a sentence."""
    if fault.action < 0:
        return [] if status == -signal.SIGKILL else [f"it was not killed, but ended with {status}: {told}"]
    if status == _TOLD and fault.action in (errno.ENOSPC, errno.EDQUOT):
        return (
            []
            if "make room" in told or os.strerror(fault.action) in told
            else [f"a full disk is not told as one: {told}"]
        )
    return [] if status in (_DONE, _TOLD) else [f"it ended with {status}: {told}"]


def put_back(folder: Path, kept: Path) -> None:
    """Make the folder what `kept` is; a file that is there stays the same file, as this process may have it open."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not os.path.lexists(kept / path.relative_to(folder)):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)


def sweep(
    case: str,
    expected: str,
    folder: Path,
    act: Callable[[], None],
    problems: Callable[[], list[str]],
    faults: tuple[Fault, ...],
    every: int = 1,
    offset: int = 0,
) -> Iterator[Record]:
    """`act` with each of the faults at each call that changes something below `folder`, or one of `every` of those.

    The folder is put back to how it is now before each, and stays so in the end.
    """

    def look() -> list[str]:
        try:
            return problems()
        except Exception as error:
            return [repr(error)]

    injector = Injector(folder, folder.with_name(f"{folder.name}.log"))
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept, symlinks=True)

    def undisturbed() -> None:
        injector.arm()
        act()

    status, told = forked(undisturbed)
    assert status == _DONE, f"{case}, undisturbed: {told}"
    assert not (wrong := look()), f"{case}, undisturbed: {wrong}"
    calls = injector.calls()
    numbers = distinct(calls)
    points = [(fault, number) for fault in faults for number in numbers if fault.befalls(calls[number - 1][0])]
    for fault, number in points[offset % every :: every]:
        put_back(folder, kept)

        def disturbed(fault: Fault = fault, number: int = number) -> None:
            injector.arm(number, fault)
            act()

        status, told = forked(disturbed)
        name, path = calls[number - 1]
        where = f"{fault.name} at {name} {number} of {len(calls)}, {path}"
        yield Record(case, where, expected, problem_of_end(fault, status, told) or look())
    put_back(folder, kept)
    shutil.rmtree(kept)


def distinct(calls: list[tuple[str, str]]) -> list[int]:
    """The calls' numbers; of more than four equal ones in a row the first two, the middle one and the last."""
    numbers: list[int] = []
    for _, group in itertools.groupby(range(1, len(calls) + 1), key=lambda number: calls[number - 1]):
        row = list(group)
        numbers += row if len(row) <= 4 else [*row[:2], row[len(row) // 2], row[-1]]
    return numbers


def write_records(records: Iterator[Record], file: Path) -> None:
    """One record a line, as they come."""
    with file.open("w") as opened:
        for record in records:
            opened.write(json.dumps(asdict(record)) + "\n")
            opened.flush()


def sweep_in_child(module: str, work: Path, *arguments: str, timeout_s: float = 600) -> list[Record]:
    """Run `python -m MODULE RECORDS ARGUMENTS…` in `work` with the injector preloaded, and return what it recorded."""
    library, records = work / "injector.so", work / "records.jsonl"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("faults are injected with a preloaded library, which takes Linux and a C compiler")
    source = Path(__file__).with_name("injector.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "OMP_NUM_THREADS": "1",  # a forked child has no threads but its own
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, records, *arguments],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Record(**json.loads(line)) for line in records.read_text().splitlines()]
