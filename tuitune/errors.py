"""The errors a user sees: one sentence saying what is wrong, where, and what to do."""

import errno

# What a full disk is in the words of whichever library was writing. torch tells no reason for a write that failed.
_DISK_IS_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "enforce fail at inline_container.cc",
    "basic_ios::clear: iostream error",
)


class TuituneError(Exception):
    """A failure whose message is written for the user; anything else that escapes is a bug.

    `str(error)` is the whole sentence. `exit_code` is what a command that fails with it returns.
    """

    exit_code = 1


class UnusableInput(TuituneError):
    """An argument, recipe, file or folder that no run can start from."""

    exit_code = 2


def explain(error: BaseException) -> str:
    """One sentence for any exception: its own words if written for the user, else its type and first line."""
    if isinstance(error, TuituneError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no further detail'}"


def disk_is_full(error: BaseException) -> bool:
    """Whether it failed because the disk or the user's share of it is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in _DISK_IS_FULL)
