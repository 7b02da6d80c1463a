"""What libraries print, as lines for the run's record; it reaches the log as before."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

_LONGEST = 400


@contextmanager
def printed(tell: Callable[[str], None]) -> Iterator[None]:
    """Give `tell` each line that Python code prints inside this block, and pass it on.

    Only whole lines: what a progress bar draws over itself is nothing for a record.
    """
    with redirect_stdout(_Lines(sys.stdout, tell)), redirect_stderr(_Lines(sys.stderr, tell)):
        yield


class _Lines(io.TextIOBase):
    """Writes through to `stream`; keeps what the line has so far. A full disk fails no library for what it prints."""

    def __init__(self, stream: TextIO, tell: Callable[[str], None]) -> None:
        self._stream = stream
        self._tell = tell
        self._line = ""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        self._line = self._line.rpartition("\r")[2][-_LONGEST:]
        for line in lines:
            if line.strip() and "\r" not in line:
                with suppress(OSError):
                    self._tell(line.rstrip()[:_LONGEST])
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding
