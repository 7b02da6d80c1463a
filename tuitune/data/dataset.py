"""A dataset, opened: what its format is, how many rows it has, and its rows as conversations."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tuitune.data.files import Container, Record, look, records, stored_bytes
from tuitune.data.formats import Format, read, recognise
from tuitune.data.hub import hub_files
from tuitune.errors import UnusableInput
from tuitune.recipe import HUB, DataSection
from tuitune.template import THINKING, Conversation, Sample, UnusableRow
from tuitune.text import one_line

LOOKED_AT = 100
"""Rows from which a format is recognised."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row `index` (from 0) of a dataset: what it holds, or in `error` why it cannot be used."""

    index: int
    raw: dict[str, Any] | None
    sample: Sample | None
    error: str | None

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
        return one_line(self.path.name, max_length=120)

    @property
    def identity(self) -> Path | list[Any]:
        """What makes the rows: a file, or the commit and names of a Hub dataset's files."""
        hub = self.container.hub
        return self.path if hub is None else [hub.name, hub.commit, hub.files]

    def __len__(self) -> int:
        """Rows, usable or not; the first call reads through the file."""
        if self._length is None:
            self._length = sum(1 for _ in records(self.container, unread=True))
        return self._length

    def estimated_rows(self) -> int | None:
        """About how many rows there are, from the file's size and its first rows; None where that says nothing."""
        if self._length is not None:
            return self._length
        if self.container.hub is not None:
            return self.container.hub.rows
        if self.container.compression or self.container.kind not in ("jsonl", "json", "csv", "tsv"):
            return None
        return round(self.path.stat().st_size / self._mean_bytes) if self._mean_bytes else None

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The rows from `start` up to, not including, `stop`."""
        found = records(self.container, start=start)
        for index, record in enumerate(islice(found, None if stop is None else max(0, stop - start)), start):
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
            return Row(index, None, None, record.error)
        try:
            return Row(index, record.value, read(record.value, self.format), None)
        except UnusableRow as error:
            return Row(index, record.value, None, str(error))


def container_of(data: DataSection) -> Container:
    """The file or Hub dataset that holds the recipe's rows. Raises UnusableInput, saying what to do."""
    if not data.path.startswith(HUB):
        return look(Path(data.path))
    found = hub_files(data)
    return Container(Path(found.name), "hub", hub=found)


def open_dataset(data: DataSection) -> Dataset:
    """The recipe's dataset. Raises UnusableInput, saying what to do, where no row of it can be read."""
    container = container_of(data)
    where = one_line(container.path.name, max_length=120)
    first = list(islice(records(container), LOOKED_AT))
    good = [record.value for record in first if record.value is not None]
    if not good:
        problem = next((record.error for record in first if record.error), "it holds no rows: add some")
        raise UnusableInput(
            f"{where} ({container.text}) has no readable row: {problem}; or give another file in data.path."
        )
    return Dataset(container, recognise(good, data.columns, where), stored_bytes(good))
