"""Where exports are made: a folder held against other exports, a private place in it, and room for what it takes."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuitune.atomic import recover
from tuitune.errors import TuituneError
from tuitune.text import one_line

_STAGING = ".tuitune-making-"  # no name that a user may have given to something else in the folder


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the export folder against a second export; what a killed one left is tidied. Raises TuituneError."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TuituneError(
            "The export folder {folder} cannot be used ({reason}): choose another folder.",
            folder=one_line(out),
            reason=error.strerror,
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TuituneError(
                "Another export is writing to {folder}: wait for it, or choose another folder.", folder=one_line(out)
            ) from None
        for leftover in out.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        recover(out)
        yield
    finally:
        os.close(handle)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A private empty folder beside the exports, gone afterwards whatever happened in it."""
    folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exports_in(out: Path) -> list[Path]:
    """The files and folders of exports in a folder, as their names say; whether they are some, their mark tells."""
    if not out.is_dir():
        return []
    return sorted(
        path for path in out.iterdir() if not path.name.startswith(".") and (path.is_dir() or path.suffix == ".gguf")
    )


def size(path: Path) -> int:
    """Bytes in a file, or in all files of a folder."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def require_space(folder: Path, needed_bytes: int, work: str) -> None:
    """Refuse before anything is written where the disk cannot hold it. Raises TuituneError."""
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise TuituneError(
            "{work} needs {needed} on the disk of {folder}, which has {free} free: make room, or choose a folder on "
            "another disk.",
            work=work,
            needed=_gb(needed_bytes),
            folder=one_line(folder),
            free=_gb(free_bytes),
        )


def require_memory(needed_bytes: int, work: str) -> None:
    """Refuse before memory runs out and the system ends the process without a word. Raises TuituneError."""
    import psutil

    free_bytes = psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise TuituneError(
            "{work} needs {needed} of memory, and {free} are free: end other programs, or export the adapter and merge "
            "it on a larger machine.",
            work=work,
            needed=_gb(needed_bytes),
            free=_gb(free_bytes),
        )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"
