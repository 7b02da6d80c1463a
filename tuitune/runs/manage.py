"""What a user does to a run that is over: give it another name, note something about it, delete it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuitune.atomic import flush, remove, write_atomic
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.runs.folder import Run, find_run, holds_run, require_usable
from tuitune.text import one_line

_RECORD = ("recipe.yaml", "resolved.yaml", "environment.json", "events.jsonl", "session.log", "session.json", ".lock")
_OURS = frozenset([*_RECORD, "summary.json", "note.txt", "adapter", "checkpoints", "exports"])
NOTE_CHARACTERS = 2_000


def find_own_run(named: str, runs_folder: Path) -> Run:
    """The run with this name or folder, as `find_run`, but not through a link. Raises UnusableInput."""
    for folder in (runs_folder / named, expanded(named)):
        if folder.is_symlink():
            raise UnusableInput(
                "{folder} is a link: give the folder that it points to, or remove the link.",
                folder=one_line(folder, max_length=200),
            )
    return find_run(named, runs_folder)


def rename(run: Run, name: str) -> Run:
    """Give the run another name, which is its folder's. Raises UnusableInput, and TuituneError where it is live."""
    require_usable(name, run.folder.parent)
    renamed = Run(run.folder.with_name(name))
    with _left_alone(run, N_("renamed")):
        try:
            os.rename(run.folder, renamed.folder)
            flush(run.folder.parent)
        except OSError as error:
            raise TuituneError(
                "{run} cannot be renamed ({reason}): allow writing in the folder that holds it.",
                code="cannot-be-renamed",
                run=_named(run),
                reason=one_line(explain(error)),
            ) from None
    return renamed


def write_note(run: Run, text: str) -> None:
    """Keep a note of up to 2,000 characters with the run; an empty one removes it. Raises TuituneError."""
    text = text.strip()
    if len(text) > NOTE_CHARACTERS:
        raise UnusableInput(
            "The note has {characters:,} characters: {most:,} are kept at most.",
            characters=len(text),
            most=NOTE_CHARACTERS,
        )
    try:
        if text:
            write_atomic(run.note_file, text.encode(errors="replace") + b"\n")
        else:
            run.note_file.unlink(missing_ok=True)
    except OSError as error:
        raise TuituneError(
            "The note of {run} cannot be written ({reason}): make room there, or allow writing.",
            run=_named(run),
            reason=one_line(explain(error)),
        ) from None


def deletion_question(run: Run) -> str:
    """What is asked before a run is deleted: which files go, those among them that tuitune did not make."""
    size = 0
    others: list[str] = []
    for folder, _folders, files in os.walk(run.folder):  # which follows no link
        for file in files:
            with suppress(OSError):
                size += os.lstat(os.path.join(folder, file)).st_size
    with suppress(OSError):
        others = sorted(path.name for path in run.folder.iterdir() if path.name not in _OURS)
    question = _(
        "Delete {run} for good? Its record, checkpoints, adapter and the exports in its folder go: {megabytes:,.1f} MB "
        "in {folder}.",
        run=_named(run),
        megabytes=size / 10**6,
        folder=one_line(run.folder, max_length=200),
    )
    if not others:
        return question
    names = [one_line(name, max_length=40) for name in others[:5]] + ["…"] * (len(others) > 5)
    return _(
        "{question} Among them is what tuitune did not make, or what you saved: {names}.",
        question=question,
        names=names,
    )


def delete(run: Run) -> None:
    """Delete the run's folder with all that is in it; what its links point to stays.

    Raises UnusableInput where the folder is not one that tuitune made for a run, TuituneError where the run is live or
    the folder cannot be removed.
    """
    folder = run.folder
    is_run_folder = all(os.path.lexists(folder / name) for name in (".lock", "environment.json")) and holds_run(folder)
    if folder.is_symlink() or not is_run_folder:
        raise UnusableInput(
            "{folder} is not a folder that tuitune made for a run, so it is not deleted: remove it yourself.",
            folder=one_line(folder, max_length=200),
        )
    with _left_alone(run, N_("deleted")):
        remove(folder)
    if os.path.lexists(folder):
        raise TuituneError(
            "{run} cannot be deleted: {folder} and its folder must be yours to write.",
            run=_named(run),
            folder=one_line(folder),
        )


@contextmanager
def _left_alone(run: Run, done: str) -> Iterator[None]:
    """Refuse a live run, and let no session take this one before the end of the block. Raises TuituneError."""
    with run.without_session() as is_free:
        if not is_free:
            raise TuituneError(
                "{run} is in use by {holder}, so it is not {done}: stop it first, with `tuitune stop {name}`.",
                run=_named(run),
                holder=run.holder(),
                done=_(done),
                name=one_line(run.name),
            )
        yield


def _named(run: Run) -> str:
    return _("Run {run}", run=one_line(run.name, max_length=80))
