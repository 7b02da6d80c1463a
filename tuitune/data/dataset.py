"""A dataset, opened: what its format is, how many rows it has, and its rows as conversations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from tuitune.conversation import THINKING, Conversation, Sample, UnusableRow
from tuitune.data.container import Container, look
from tuitune.data.files import count, records, stored_bytes, unpacked_bytes
from tuitune.data.formats import Format, read, recognise
from tuitune.data.lines import SHOWN_CHARACTERS, Record
from tuitune.errors import UnusableInput
from tuitune.hub.datasets import HubFiles, hub_files
from tuitune.hub.split import split_name, split_rows
from tuitune.language import _
from tuitune.recipe_sections import HUB, DataSection
from tuitune.text import one_line

LOOKED_AT = 100
"""Rows from which a format is recognised."""
_QUICK, _QUICK_PACKED, _QUICK_HUB = 200 * 2**20, 8 * 2**20, 20 * 2**20
"""Bytes of a file, a compressed file and a Hub dataset whose rows are counted for a summary, not estimated."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row `index` (from 0) of a dataset: what it holds, or in `error` why it cannot be used."""

    index: int
    raw: dict[str, Any] | None
    sample: Sample | None
    error: str | None
    line: str = ""
    """What stands in the file, or its beginning, where `raw` could not be read from it."""

    def as_in_file(self) -> str:
        """The row as it stands in the file, or its beginning, for a person who wants to see what is wrong with it."""
        if self.raw is None:
            return self.line
        return json.dumps(self.raw, ensure_ascii=False, default=str)[:SHOWN_CHARACTERS]

    @property
    def messages(self) -> Conversation | None:
        return self.sample.messages if self.sample else None


class Dataset:
    """The rows of a file, read anew on each pass, in bounded memory."""

    def __init__(self, container: Container, form: Format, mean_bytes: float) -> None:
        self.container = container
        self.format = form
        self._mean_bytes = mean_bytes
        self._length: int | None = None

    @property
    def path(self) -> Path:
        return self.container.path

    @property
    def name(self) -> str:
        """The file's name, for a person."""
        return _shown(self.path)

    @property
    def identity(self) -> list[Any]:
        """What makes the rows: a file, or the commit and names of a Hub dataset's files, and the part that is read."""
        hub = self.container.hub
        return [self.path if hub is None else [hub.name, hub.commit, hub.files], self.container.part]

    def __len__(self) -> int:
        """Rows, usable or not; the first call reads through the file."""
        if self._length is None:
            self._length = count(self.container)
        return self._length

    def quick_rows(self) -> tuple[int, bool]:
        """How many rows there are, and whether that is an estimate; no file is read or downloaded for long for it."""
        estimate = None if self._is_quick() else self.estimated_rows()
        return (len(self), False) if estimate is None else (estimate, True)

    def _is_quick(self) -> bool:
        """Whether the rows can be counted within a moment."""
        container = self.container
        if container.hub is not None:
            return container.hub.rows is None and sum(container.hub.bytes or [_QUICK_HUB + 1]) <= _QUICK_HUB
        if container.kind in ("parquet", "arrow"):
            return True
        return self.path.stat().st_size <= (_QUICK_PACKED if container.compression else _QUICK)

    def estimated_rows(self) -> int | None:
        """About how many rows there are, from the file's size and its first rows; None where these do not tell."""
        if self._length is not None:
            return self._length
        first, stop = self.container.part
        rows = self._estimated_whole()
        if rows is None:
            return None if stop is None else stop - first
        return max(0, rows - first if stop is None else min(rows, stop) - first)

    def _estimated_whole(self) -> int | None:
        container = self.container
        if container.hub is not None:
            return container.hub.rows or self._estimated_hub(container.hub)
        if container.kind in ("parquet", "arrow"):
            return _count(replace(container, part=(0, None)))
        size = unpacked_bytes(container) if container.compression else self.path.stat().st_size
        return round(size / self._mean_bytes) if self._mean_bytes else None

    def _estimated_hub(self, hub: HubFiles) -> int:
        """From the rows of the first file, which is here as the format was seen in it, and the sizes of all."""
        first = Dataset(look(next(hub.paths())), self.format, self._mean_bytes)
        times = sum(hub.bytes) / max(1, hub.bytes[0]) if hub.bytes else len(hub.files)
        return round(first.quick_rows()[0] * times)

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The rows from `start` up to, not including, `stop`."""
        count = None if stop is None else max(0, stop - start)
        for index, record in enumerate(islice(records(self.container, start=start), count), start):
            yield self._row(index, record)

    def brings_thinking(self) -> bool:
        """Whether one of the first rows has a reply with thinking of its own (a reasoning field or a <think> block)."""
        return any(
            turn["role"] == "assistant"
            and bool(turn.get("reasoning_content") or THINKING.search(turn["content"] or ""))
            for row in self.rows(stop=LOOKED_AT)
            for turn in row.messages or []
        )

    def _row(self, index: int, record: Record) -> Row:
        if record.value is None:
            return Row(index, None, None, record.error, record.line)
        try:
            sample = replace(read(record.value, self.format), columns=record.value)
            return Row(index, record.value, sample, None)
        except UnusableRow as error:
            return Row(index, record.value, None, error.sentence)


def sections(data: DataSection) -> list[DataSection]:
    """The recipe's datasets, each as a section of its own: data.path, then data.also."""
    return [data, *(data.model_copy(update=section.model_dump()) for section in data.also)]


def eval_section(data: DataSection) -> DataSection | None:
    """The dataset of data.eval_path or data.eval_split; None where neither is given."""
    if data.eval_path is None and data.eval_split is None:
        return None
    path = data.eval_path or data.path
    # A slice of the training rows says nothing of another dataset's.
    split = data.eval_split or (split_name(data.split) if path.startswith(HUB) else "train")
    revision = data.revision if path == data.path else data.eval_revision
    return data.model_copy(update={"path": path, "split": split, "revision": revision})


def told_apart(names: list[str]) -> list[str]:
    """The names; a name that occurs more than once gets its place (from 1) appended."""
    return [
        name if names.count(name) == 1 else _("{name} (dataset {place})", name=name, place=place)
        for place, name in enumerate(names, start=1)
    ]


def container_of(data: DataSection) -> Container:
    """The file or Hub dataset that holds the recipe's rows. Raises UnusableInput, saying what to do."""
    if data.path.startswith(HUB):
        hub = hub_files(data)
        container = Container(Path(hub.name), "hub", hub=hub)
    else:
        container = look(Path(data.path))
        if (name := split_name(data.split)) != "train":
            raise UnusableInput(
                "data.split names the split {split!r}, and {file} is one file: leave data.split out, or "
                "write train[100:200] for a part of it.",
                split=one_line(name, max_length=80),
                file=_shown(container.path),
            )
    return replace(container, part=split_rows(data.split, lambda: _count(container)))


def _count(container: Container) -> int:
    if container.hub is not None:
        return container.hub.rows or _counted(container, 0, 0)
    state = container.path.stat()
    return _counted(container, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _counted(container: Container, size: int, modified: int) -> int:
    """Rows of the whole file, read through once for each state (size in bytes, time in ns) that it is found in."""
    return count(container)


def _shown(path: Path) -> str:
    return one_line(path.name, max_length=120)


def open_dataset(data: DataSection) -> Dataset:
    """The recipe's dataset. Raises UnusableInput, saying what to do, where no row of it can be read."""
    container = container_of(data)
    where = _shown(container.path)
    first = list(islice(records(container), LOOKED_AT))
    good = [record.value for record in first if record.value is not None]
    if not good:
        problem = next((record.error for record in first if record.error), _("it holds no rows: add some"))
        raise UnusableInput(
            "{file} ({kind}) has no readable row: {problem}; or give another file in data.path.",
            file=where,
            kind=container.text,
            problem=problem,
        )
    return Dataset(container, recognise(good, data.columns, where), stored_bytes(good))
