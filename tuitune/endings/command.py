"""The command that a user has named for the end of a run: its words, and running them without a shell."""

import asyncio
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.paths import open_own
from tuitune.runs.folder import Run
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.endings.outcome import Outcome

_OF_A_SHELL = {"&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1"}


def words_of(command: str) -> list[str]:
    """The words of a command as a shell splits them; empty for empty text. Raises UnusableInput."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnusableInput(
            "The command {command!r} cannot be read ({reason}): close its quotation marks.",
            command=one_line(command, max_length=80),
            reason=one_line(error),
        ) from None
    return require_command(words) if words else []


def require_command(words: Sequence[str]) -> list[str]:
    """Refuse now what could not be run at the run's end. Raises UnusableInput."""
    name = one_line(words[0], max_length=80)
    if operators := [word for word in words if word in _OF_A_SHELL or word.endswith(";")]:
        raise UnusableInput(
            "The command is run without a shell, so {operator!r} would be a word to {name}: write a script and name "
            "it, or name sh -c '…'.",
            operator=one_line(operators[0], max_length=20),
            name=name,
        )
    if any("\0" in word for word in words):
        raise UnusableInput("The command holds a NUL character, which no command can: leave it out.")
    if shutil.which(words[0]) is None:
        raise UnusableInput("There is no command {name} on this machine: give its name, or its whole path.", name=name)
    return list(words)


def shown(words: Sequence[str]) -> str:
    """The command as it may be drawn."""
    return one_line(shlex.join(words), max_length=400)


async def run_command(words: Sequence[str], run: Run, outcome: "Outcome") -> int:
    """Run the command to its end and return its exit status; what it prints goes to the run's log.

    It has a process session of its own, and goes on if this process ends. Its environment has TUITUNE_RUN, the run's
    folder, and TUITUNE_STATE. Raises TuituneError where it cannot be started.
    """
    environment = {**os.environ, "TUITUNE_RUN": str(run.folder), "TUITUNE_STATE": outcome.state}
    log = _log_of(run)
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        reason = one_line(error.strerror, max_length=120) if error.strerror else _("it failed")
        raise TuituneError("could not be run ({reason})", reason=reason) from None
    finally:
        os.close(log)
    return await process.wait()


def _log_of(run: Run) -> int:
    """The run's log, to be written at its end; where that cannot be, what is printed goes nowhere."""
    try:
        return open_own(run.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
