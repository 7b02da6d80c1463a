"""The errors a user sees: one sentence saying what is wrong, where, and what to do."""

import errno
import re
from typing import Any

from tuitune.language import Sentence, _

# What a full disk is in the words of whichever library was writing. torch tells no reason for a write that failed.
_DISK_IS_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "enforce fail at inline_container.cc",
    "basic_ios::clear: iostream error",
)

_BRACES = re.compile(r"\{[^}]*\}")
_WORDS = re.compile(r"[a-z0-9]+")


class TuituneError(Exception):
    """A failure whose message is written for the user; anything else that escapes is a bug.

    `str(error)` is the whole sentence, in the language of this process; `sentence` can be worded in others. `exit_code`
    is what a command that fails with it returns.
    """

    exit_code = 1

    def __init__(self, message: str, /, *, code: str = "", **values: Any) -> None:
        """`message` is a pattern with the `values` in its braces, or a whole sentence; `code` is as in the property."""
        self.sentence = message if isinstance(message, Sentence) else _(message, **values)
        self._code = code
        super().__init__(self.sentence)

    @property
    def code(self) -> str:
        """What programs know it by, the same in every language: the first words of its message, if nothing else.

        Who changes the beginning of a message gives it its former code.
        """
        return self._code or code_of(self.sentence)


def code_of(text: str) -> str:
    """The code of a sentence that stands for an error: its first words, or those of the first sentence in it."""
    if not isinstance(text, Sentence):
        return "error"
    if words := _WORDS.findall(_BRACES.sub(" ", text.message).lower()):
        return "-".join(words[:6])
    return code_of(next((value for value in text.values.values() if isinstance(value, Sentence)), ""))


class UnusableInput(TuituneError):
    """An argument, recipe, file or folder that no run can start from."""

    exit_code = 2


def explain(error: BaseException) -> str:
    """One sentence for any exception: its own words if written for the user, else its type and first line."""
    if isinstance(error, TuituneError):
        return error.sentence
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else _("{error}: no further detail", error=name)


def disk_is_full(error: BaseException) -> bool:
    """Whether it failed because the disk or the user's share of it is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in _DISK_IS_FULL)
