"""Run a helper program that takes its time: watched, stoppable, its output kept for the one sentence if it fails."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tuitune.export.kinds import Cancelled
from tuitune.language import _
from tuitune.text import one_line

_TAIL_BYTES = 65_536
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what a program draws its progress with


class ChildFailed(Exception):
    """The program ended with `code`; `last_line` is the last thing that it wrote, fit for a terminal."""

    def __init__(self, code: int, last_line: str) -> None:
        super().__init__(last_line)
        self.code = code
        self.last_line = last_line


def run_child(
    argv: list[str],
    log: Path,
    *,
    counted: re.Pattern[str],
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    reply: Path | None = None,
) -> None:
    """Run `argv` to its end with all output in `log`; raises ChildFailed, Cancelled.

    `counted` finds progress in the output: its groups are `done` and, where it has a second, `total` (else 100).
    The child's stdin is a pipe that closes when this process ends. Where `reply` is given, what it writes on stdout
    goes there, apart from the log, and its stdin is empty.
    """
    with log.open("wb") as output, (reply or log).open("wb") as answer:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if reply else subprocess.PIPE,
            stdout=answer if reply else output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
        )
    reported: tuple[int, int] | None = None
    try:
        while child.poll() is None:
            if cancelled():
                raise Cancelled
            matches = counted.findall(_tail(log))
            if matches:
                last = matches[-1]
                position = (int(last), 100) if isinstance(last, str) else (int(last[0]), int(last[1]))
                if position != reported:
                    progress(*position)
                    reported = position
            time.sleep(0.1)
    finally:
        _end(child)
    if child.returncode:
        text = _MOVES.sub("", _tail(log))
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip() and not counted.search(line)]
        raise ChildFailed(child.returncode, one_line(lines[-1] if lines else _("no output"), max_length=300))


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End the child and its own children: by SIGTERM, and by SIGKILL where that does not do."""
    if child.stdin:
        child.stdin.close()
    for end in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            return
        os.killpg(child.pid, end)
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
