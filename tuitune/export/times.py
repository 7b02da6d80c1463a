"""How long the parts of an export took on this machine, and so about how long the next ones will take."""

import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError
from tuitune.language import _
from tuitune.paths import cache_folder, open_own
from tuitune.units import about, roughly, size

_KEPT_LINES, _LINE_BYTES = 400, 4096
_ALIKE = 4.0
"""A part is judged by one that was at most so many times larger or smaller: what starts and loads does not scale."""
_TRIED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """A part of an export, such as the merge: how much it works on, and how much of that it writes."""

    name: str
    bytes: int
    written_bytes: int


@dataclass(frozen=True)
class PartTime:
    """How long a part took that worked on so many bytes."""

    name: str
    bytes: int
    seconds: float


def file() -> Path:
    """Where the times of this machine's exports are kept."""
    return cache_folder("exports") / "times.jsonl"


@contextmanager
def timed(name: str, size_bytes: Callable[[], int]) -> Iterator[None]:
    """Keep how long the block takes for a part that works on so many bytes; nothing is kept of one that fails."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    with suppress(OSError, TuituneError):  # it is an estimate for later, and no reason to fail
        line = {"host": platform.node(), "part": name, "bytes": size_bytes(), "seconds": seconds}
        file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = open_own(file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(handle, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def recorded() -> list[PartTime]:
    """The newest times of this machine; what cannot be read is left out."""
    try:
        with os.fdopen(open_own(file(), os.O_RDONLY), "rb") as lines:
            lines.seek(max(0, os.fstat(lines.fileno()).st_size - _KEPT_LINES * _LINE_BYTES))
            newest = lines.read().splitlines()[-_KEPT_LINES:]
    except OSError:
        return []
    times = []
    for line in newest:
        with suppress(ValueError, KeyError, TypeError):
            row: dict[str, Any] = json.loads(line)
            if row["host"] == platform.node() and row["bytes"] > 0 and row["seconds"] > 0:
                times.append(PartTime(str(row["part"]), int(row["bytes"]), float(row["seconds"])))
    return times


def seconds_of(part: Part, times: list[PartTime]) -> float | None:
    """What the part will take, by the newest like it; None where none of such a size was done here."""
    for took in reversed(times):
        if took.name == part.name and part.bytes / _ALIKE <= took.bytes <= part.bytes * _ALIKE:
            return took.seconds * part.bytes / took.bytes
    return None


def written_bytes_a_second(folder: Path) -> float | None:
    """How fast the disk of a folder takes what is written; None where nothing can be written there."""
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    return _speed(existing.stat().st_dev, existing)


@functools.lru_cache(maxsize=8)
def _speed(device: int, folder: Path) -> float | None:
    """Measured once for a folder, as long as it is on the disk with the number `device`."""
    content = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as tried:
            started = time.monotonic()
            for _part in range(_TRIED_BYTES // len(content)):
                tried.write(content)
            tried.flush()
            os.fsync(tried.fileno())
            return _TRIED_BYTES / (time.monotonic() - started)
    except OSError:
        return None


def takes(kind: Mapping[str, Any]) -> str:
    """Time, disk and memory of one kind, whose readiness is given as a dictionary, in words."""
    time, disk = together([kind]), size(kind["disk_bytes"])
    if not kind["memory_bytes"]:
        return _("Takes {time}, {disk} on the disk while it is made.", time=time, disk=disk)
    return _(
        "Takes {time}, {disk} on the disk while it is made, and {memory} of memory.",
        time=time,
        disk=disk,
        memory=size(kind["memory_bytes"]),
    )


def together(kinds: Sequence[Mapping[str, Any]]) -> str:
    """How long kinds take that are made in one export, whose readiness is given as dictionaries, in words."""
    parts = {name: seconds for kind in kinds for name, seconds in kind["parts"].items()}
    return in_words(parts, measured=all(kind["measured"] for kind in kinds))


def in_words(parts: Mapping[str, float], *, measured: bool) -> str:
    """How long parts take together, in words; `measured` says that each was done here before."""
    seconds = sum(parts.values())
    if measured:
        return about(seconds)
    return _("over {time} (writing alone: none like it made here)", time=roughly(seconds))
