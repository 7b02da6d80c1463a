"""The run folder: the record of one run, with one writer at a time."""

import errno
import fcntl
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from tuitune.atomic import flush, write_atomic
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import _
from tuitune.paths import expanded, open_file, open_own
from tuitune.runs.events import Checkpoint, Event, Failed, Finished, Notice, Plan, from_json, is_damaged, to_line
from tuitune.runs.history import History
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.recipe import Recipe  # pydantic is a third of the app's start: only who reads a recipe loads it

Status = Literal["live", "done", "stopped", "paused", "failed", "interrupted"]

UNFINISHED = ".tuitune-"
"""What the names of folders begin with that are no runs: not yet, or no longer."""

NEW_RUN = f"{UNFINISHED}new-"
"""What the name of a run's folder begins with until everything is in it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def default_runs_folder() -> Path:
    """Where runs are kept unless `--runs` says otherwise: $TUITUNE_RUNS, or ~/tuitune-runs."""
    return Path(os.environ.get("TUITUNE_RUNS") or Path.home() / "tuitune-runs")


@dataclass(frozen=True)
class Run:
    """One run's folder, whether or not a session is alive in it."""

    folder: Path
    checkpoint: str = ""
    """Name of the checkpoint whose adapter is meant in place of the one that the run ended with."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe_file(self) -> Path:
        """What was asked for; never written again."""
        return self.folder / "recipe.yaml"

    @property
    def resolved_file(self) -> Path:
        """What is trained: the recipe with its commits, the batch that fits, and passes halved where memory ran out."""
        return self.folder / "resolved.yaml"

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.folder / "session.log"

    @property
    def adapter(self) -> Path:
        return self.checkpoints / self.checkpoint if self.checkpoint else self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def exports(self) -> Path:
        return self.folder / "exports" / self.checkpoint

    @property
    def summary_file(self) -> Path:
        """What lists show of this run, kept so that they need not read its record (`tuitune.runs.summary`)."""
        return self.folder / "summary.json"

    @property
    def note_file(self) -> Path:
        """What the user has noted about this run."""
        return self.folder / "note.txt"

    @property
    def socket_file(self) -> Path:
        """Holds the path of the live session's socket while there is one."""
        return self.folder / "session.json"

    def recipe(self) -> "Recipe":
        from tuitune.recipe import Recipe

        return Recipe.load(self.recipe_file)

    def resolved(self) -> "Recipe":
        """The recipe as it was trained, which trains the same again; as it was asked for where no more is known."""
        from tuitune.recipe import Recipe

        return Recipe.load(self.resolved_file if self.resolved_file.is_file() else self.recipe_file)

    def keep_resolved(self, recipe: "Recipe") -> None:
        """Record what is trained from now on. Raises OSError."""
        write_atomic(self.resolved_file, recipe.to_yaml())

    def libraries(self) -> dict[str, str]:
        """The versions that the run began with, by name; empty where they are not on record."""
        try:
            with open_file(self.folder / "environment.json") as file:
                libraries = json.load(file)["libraries"]
            return {str(name): str(version) for name, version in libraries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def events(self) -> Iterator[Event]:
        """The events so far; in place of damaged lines a notice tells of them. Raises UnusableInput.

        Left out without a word are events that this version does not know, and a last line that is being written.
        """
        try:
            with self.open_events() as file:
                damaged, at = 0, 0.0
                for number, line in enumerate(file, 1):
                    if (event := from_json(line)) is not None:
                        at = event.at
                        yield event
                        damaged = 0
                    elif is_damaged(line):
                        damaged += 1
                        if damaged == 1:
                            yield damaged_line(at, number)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UnusableInput(
                "The record of run {run} cannot be read ({reason}): bring it back from a copy, or move "
                "the run's folder away.",
                run=one_line(self.name),
                reason=one_line(explain(error)),
            ) from None

    def open_events(self) -> BinaryIO:
        """The record, to be read. Raises OSError."""
        return open_file(self.events_file)

    def history(self) -> History:
        return History.of(self.events())

    def thinks(self) -> bool:
        """Whether its data has thinking of its own before replies; False before that is known."""
        return next((event.thinking for event in self.events() if isinstance(event, Plan)), False)

    def is_live(self) -> bool:
        """Whether a session holds this run (and would refuse a second writer)."""
        with self.without_session() as is_free:
            return not is_free

    @contextmanager
    def without_session(self) -> Iterator[bool]:
        """Whether no session holds this run; if so, none can take it before the end of the block.

        The lock is shared, so that several readers may ask at once.
        """
        try:
            handle = os.open(self.folder / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            yield True
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(handle)

    def status(self, history: History | None = None) -> Status:
        """`live` while a session holds the run and it has not ended; `interrupted` if its session is gone unended."""
        ending = (history or self.history()).ended
        if ending is None:
            return "live" if self.is_live() else "interrupted"
        return "failed" if isinstance(ending, Failed) else ending.status

    def session_socket(self) -> Path | None:
        """The socket of the session that holds this run, or None."""
        if not self.is_live():
            return None
        try:
            if not self.socket_file.is_file():  # reading a pipe would not end
                return None
            return Path(json.loads(self.socket_file.read_text())["socket"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def holder(self) -> str:
        """Which session holds this run, in words: its process, machine and since when, as far as it has said so."""
        try:
            if not self.socket_file.is_file():  # reading a pipe would not end
                return _("another session")
            fields = json.loads(self.socket_file.read_text())
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(fields["since"])))
            host = one_line(fields["host"], max_length=80)
            return _("process {pid} on {host} since {since}", pid=int(fields["pid"]), host=host, since=since)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return _("another session")


def damaged_line(at: float, number: int) -> Notice:
    """What stands in the place of one or more damaged lines of a record, of which the first has this number."""
    text = _(
        "The record is damaged from line {line} on, as a power cut or a broken disk leaves it: what stood there is "
        "left out, all else is shown.",
        line=number,
    )
    return Notice(at=at, text=text)


class RunWriter:
    """The one writer of a run folder; holds its lock from creation to `close`. Raises TuituneError, OSError."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.has_ended = False
        """Whether the end of this attempt is recorded."""
        self._lock = open_own(run.folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise TuituneError(
                "Run {run} is in use by {holder}: attach to it, or stop it first.",
                run=one_line(run.name),
                holder=run.holder(),
            ) from None
        try:
            self._events = open_own(run.events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self._end_torn_line()
        except OSError:
            os.close(self._lock)
            raise

    def _end_torn_line(self) -> None:
        """After a power cut the last line may be half there: what comes next begins on a line of its own."""
        with self.run.open_events() as record:
            size = record.seek(0, os.SEEK_END)
            record.seek(max(0, size - 1))
            if size and record.read(1) != b"\n":
                os.write(self._events, b"\n")

    def append(self, event: Event) -> None:
        """Add an event to the record, whole or not at all, so that a reader never sees half of two lines mixed.

        What the user counts on later, a checkpoint or the end, is on disk when this returns. Raises OSError where the
        disk is full.
        """
        line = to_line(event)
        written = os.write(self._events, line)
        if written < len(line):
            os.ftruncate(self._events, os.fstat(self._events).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.run.events_file))
        if isinstance(event, Checkpoint | Finished | Failed):
            os.fsync(self._events)
        self.has_ended |= isinstance(event, Finished | Failed)

    def write(self, name: str, data: str | bytes) -> None:
        write_atomic(self.run.folder / name, data)

    def announce(self, socket: Path) -> None:
        """Say where this session can be reached."""
        fields = {"pid": os.getpid(), "socket": str(socket), "host": platform.node(), "since": time.time()}
        self.write("session.json", json.dumps(fields))

    def close(self) -> None:
        """Give the run back; nothing in the folder is lost."""
        with suppress(OSError):  # without the lock it is not read any more
            self.run.socket_file.unlink()
        os.close(self._events)
        os.close(self._lock)


def create_run(
    recipe: "Recipe",
    runs_folder: Path,
    name: str | None = None,
    environment: dict[str, Any] | None = None,
    resolved: "Recipe | None" = None,
) -> RunWriter:
    """Make a new run folder with the recipe in it, and hold its lock. Raises TuituneError, UnusableInput.

    `resolved` is what of the recipe is settled already.

    The folder gets its name last: a kill leaves no name taken by a folder that is no run.
    """
    try:
        runs_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if name is not None:
            require_usable(name, runs_folder)
        folder = Path(tempfile.mkdtemp(prefix=NEW_RUN, dir=runs_folder))
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            writer = RunWriter(Run(folder))
            undo.callback(writer.close)
            writer.write(writer.run.recipe_file.name, recipe.to_yaml())
            if resolved is not None:
                writer.write(writer.run.resolved_file.name, resolved.to_yaml())
            writer.write("environment.json", json.dumps(environment or {}, indent=2))
            writer.run = Run(_named(folder, name, Path(recipe.data.path).stem))
            undo.pop_all()
        flush(runs_folder)
    except OSError as error:
        reason = error.strerror or "write failed"
        raise TuituneError(
            "No run folder can be made in {folder} ({reason}): choose another with --runs.",
            folder=runs_folder,
            reason=reason,
        ) from None
    return writer


def require_usable(name: str, runs_folder: Path) -> None:
    """Refuse a name that cannot be a new folder's. Raises UnusableInput."""
    if not _NAME.fullmatch(name):
        raise UnusableInput(
            "The run name {name!r} cannot be a folder name: use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit.",
            name=one_line(name, max_length=80),
        )
    if os.path.lexists(runs_folder / name):
        raise _taken(name, runs_folder)


def _taken(name: str, runs_folder: Path) -> UnusableInput:
    if holds_run(runs_folder / name):
        return UnusableInput(
            "A run named {name} exists in {folder}: choose another name.", name=name, folder=runs_folder
        )
    return UnusableInput(
        "A file or folder named {name} exists in {folder}: choose another name.", name=name, folder=runs_folder
    )


def _named(folder: Path, name: str | None, stem: str) -> Path:
    """Give a new run's folder its name: `name`, or one after its data and a number. Raises OSError, UnusableInput."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:40] or "run"
    for candidate in (name,) if name else (f"{base}-{number}" for number in itertools.count(1)):
        final = folder.with_name(candidate)
        if os.path.lexists(final):
            continue
        try:
            os.rename(folder, final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another session has just taken it
                continue
            raise
        return final
    raise _taken(str(name), folder.parent)


def all_runs(runs_folder: Path) -> list[Run]:
    """Every run in the folder, the most recently changed first."""
    try:
        runs = [Run(folder) for folder in runs_folder.iterdir() if holds_run(folder)]
    except OSError:
        return []
    return sorted(runs, key=_changed, reverse=True)


def holds_run(folder: Path) -> bool:
    """Whether there is a recipe or a record in it; also False where another user's folder cannot be looked into."""
    if folder.name.startswith(UNFINISHED):
        return False
    try:
        return (folder / "recipe.yaml").is_file() or (folder / "events.jsonl").is_file()
    except OSError:
        return False


def _changed(run: Run) -> float:
    try:
        return run.events_file.stat().st_mtime
    except OSError:
        return 0.0


def find_run(named: str, runs_folder: Path) -> Run:
    """The run with this name or folder. Raises UnusableInput."""
    for folder in (runs_folder / named, expanded(named)):
        if holds_run(folder):
            return Run(folder.resolve())
    known = [one_line(run.name) for run in all_runs(runs_folder)[:5]] or _("none yet")
    raise UnusableInput(
        "There is no run {run} in {folder} (newest runs: {known}): give a run's name or folder.",
        run=one_line(named, max_length=120),
        folder=runs_folder,
        known=known,
    )
