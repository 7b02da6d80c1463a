"""The processes of one host that train a run together: started, listened to, told, and what is said of a dead one."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TextIO

from tuitune.language import _
from tuitune.machine.hardware import Gpu, usable_cores
from tuitune.session.rank_messages import Ended, Start
from tuitune.text import one_line, safe_text

_LAST_LINES = 20
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which libraries would take a process for one of several."""

Messages = queue.SimpleQueue[tuple["RankProcess", bytes]]
"""Lines of the processes, each with the one that has sent it."""


@dataclass(eq=False)
class RankProcess:
    """One of the processes."""

    rank: int
    world: int
    place: str
    """The card it works on, in words."""
    process: subprocess.Popen[bytes]
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    told_end: Ended | None = None
    """How its work has ended, by its own word."""

    @property
    def end(self) -> Ended | None:
        """How its work has ended, where it has: by its own word, or as the system tells it."""
        if self.told_end is not None:
            return self.told_end
        return Ended("dead", self._death()) if self.process.poll() is not None else None

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead, which is noticed in its own place
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def _death(self) -> str:
        code = self.process.returncode
        ending = (
            _("was ended by signal {signal}", signal=-code)
            if code < 0
            else _("has ended with status {status}", status=code)
        )
        if code == -9:
            ending = _("was killed by signal 9 (often: memory ran out)")
        words = " / ".join(line for line in self.last_lines if line.strip())
        return _(
            "The process on {place} ({number} of {processes}) {ending}; the others were ended. Its last words: "
            "{words}.",
            place=self.place,
            number=self.rank + 1,
            processes=self.world,
            ending=ending,
            words=one_line(words[-300:], max_length=300) or _("none"),
        )


def start_processes(
    starts: Sequence[Start],
    cards: Sequence[Gpu | None],
    sockets: dict[str, str],
    messages: Messages,
    log: TextIO | None = None,
) -> list[RankProcess]:
    """A fresh process for each card (None: the CPU), given its work; `sockets` is what tells it where to listen.

    What they print goes to `log`, this process's own by default.
    """
    processes: list[RankProcess] = []
    try:
        for start, card in zip(starts, cards, strict=True):
            processes.append(_spawn(start, card, len(cards), sockets, messages, log))
            processes[-1].tell(start.to_line())
    except BaseException:
        end_processes(processes)
        raise
    return processes


def end_processes(processes: Sequence[RankProcess]) -> None:
    for process in processes:
        process.process.kill()
    for process in processes:
        process.process.wait()


def first_failure(failures: Sequence[Ended]) -> Ended:
    """Which of the failures that have come together the others follow from."""
    for kind in ("out of memory", "unusable", "dead"):
        for failure in failures:
            if failure.how == kind:
                return failure
    return next((failure for failure in failures if failure.is_own_fault), failures[0])


def _spawn(
    start: Start, card: Gpu | None, processes: int, sockets: dict[str, str], messages: Messages, log: TextIO | None
) -> RankProcess:
    """A process that sees one card alone: Unsloth settles at its import for how many cards it is."""
    environment = {**os.environ, **sockets, "CUDA_VISIBLE_DEVICES": card.uuid if card else ""}
    for name in _OF_LAUNCHERS:
        environment.pop(name, None)
    if card is None:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    process = RankProcess(
        start.rank,
        start.world,
        f"GPU {card.index}" if card else _("the CPU"),
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tuitune.session.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ),
    )
    for work, target in ((_read_messages, messages), (_read_output, log)):
        threading.Thread(target=work, args=(process, target), daemon=True).start()
    return process


def _read_messages(process: RankProcess, messages: Messages) -> None:
    for line in _lines(process.process.stdout):
        messages.put((process, line))


def _read_output(process: RankProcess, log: TextIO | None) -> None:
    """Pass on to the log what the process prints, and keep its last words.

    On a full disk it goes nowhere: a process whose pipe nobody reads would wait for ever.
    """
    for line in _lines(process.process.stderr):
        text = safe_text(line.decode(errors="replace")).rstrip()
        process.last_lines.append(text)
        with contextlib.suppress(OSError):
            print(f"[{process.rank}] {text}", file=log or sys.__stderr__, flush=True)


def _lines(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
