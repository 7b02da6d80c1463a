"""Standard input, output and error as a command can rely on them, however it was started."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from tuitune.errors import TuituneError, explain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputLost(TuituneError):
    """Standard output takes no more: `reason` is why. What is printed after this goes nowhere."""

    def __init__(self, reason: OSError) -> None:
        self.reason = reason
        super().__init__("Standard output cannot be written ({reason}).", reason=explain(reason))


class _Output(io.FileIO):
    """Standard output, whose failures can be told from those of other files."""

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise OutputLost(error) from None


def takes_all_letters(output: TextIO) -> bool:
    """Whether text of any language can be written there as it is."""
    try:
        "言".encode(output.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def settle_streams() -> None:
    """Open what was closed, as /dev/null, and let no character fail to be printed. Call it before anything else.

    A terminal's size of 0 in the environment, as some tools leave it, is forgotten.
    """
    for number in (0, 1, 2):  # a file opened later would get the number of a closed one, and what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    encoding = sys.stdout.encoding if sys.stdout else "utf-8"
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding, "backslashreplace")
    output = io.BufferedWriter(_Output(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(output, encoding, "replace", line_buffering=os.isatty(1))
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").isdecimal() or int(os.environ.get(name, "1")) == 0:
            del os.environ[name]
