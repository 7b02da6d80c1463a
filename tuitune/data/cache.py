"""Tokenised rows on disk: written as they are made, found again by the content that made them.

Where the disk takes no more, the same rows go on in memory, and are not found again.
"""

import atexit
import fcntl
import json
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError
from tuitune.language import N_, _, reworded
from tuitune.methods.method import IDS, INPUTS, TEXT
from tuitune.paths import cache_folder, key_of
from tuitune.text import one_line

KEPT = 6
"""Entries in the cache; the least recently used beyond them are deleted, unless a process uses them."""
_MAKING = ".making-"


# Opening the file touches each batch's first pages: few large batches keep a large file's share of memory small.
_BATCH_TOKENS = 4_000_000


def rows_folder() -> Path:
    return cache_folder("tokenised")


@dataclass
class Dropped:
    """Rows left out for one reason: how many, the first few row numbers (from 0), and the first one's own words."""

    count: int = 0
    examples: list[int] = field(default_factory=list)
    first: str = ""
    said: dict[str, Any] = field(default_factory=dict)
    """What these were made of, by which they can be worded in other languages."""

    @property
    def words(self) -> str:
        return reworded(self.first, self.said)


@dataclass
class Rows:
    """Tokenised rows in a file or in memory, with each row's place in the dataset, length and digest of its content."""

    file: Path | None
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    """Row number in the dataset, from 0."""
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens of all its sequences."""
    longest: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens of the longest of its sequences."""
    trained: "array[int]" = field(default_factory=lambda: array("I"))
    """Trained tokens."""
    ended: "array[int]" = field(default_factory=lambda: array("B"))
    """1 where every trained turn's end-of-turn token is trained, or cut off by max_length."""
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """64-bit digest of the content: equal for rows that say the same."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    truncated: int = 0
    """Rows of which the end was cut."""
    table: Any = None
    """pyarrow.Table of the rows where there is no file."""
    unkept: str | None = None
    """Why they will not be found again, as a sentence."""

    def __len__(self) -> int:
        return len(self.numbers)

    def dataset(self) -> Any:
        """The rows as a datasets.Dataset with the columns of their method; memory-mapped where there is a file."""
        import datasets

        if self.file is None:
            # A fingerprint of its own: `datasets` would copy the whole table to make one.
            return datasets.Dataset(self.table, fingerprint=datasets.fingerprint.generate_random_fingerprint())
        return datasets.Dataset.from_file(str(self.file))


_REMEDY = N_("make room there, or set XDG_CACHE_HOME to a folder on another disk.")
_ARRAYS = ("numbers", "lengths", "longest", "trained", "ended", "digests")


class RowsWriter:
    """Writes one cache entry, or keeps the rows in memory where that fails; an unfinished one leaves nothing behind."""

    def __init__(self, key: str, columns: Mapping[str, str]) -> None:
        """`columns` are a method's: name to what it holds."""
        import pyarrow

        self._key = key
        types = {IDS: pyarrow.list_(pyarrow.int32()), TEXT: pyarrow.string()}
        self._schema = pyarrow.schema({name: types[kind] for name, kind in columns.items()})
        self._folder: Path | None = None
        self._file = pyarrow.BufferOutputStream()
        self._problem = ""
        self._written = 0
        self._in_memory: list[Any] = []
        self._waiting: list[Any] = []
        self._waiting_tokens = 0
        self.rows = Rows(None)
        try:
            rows_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = _new_folder(self.rows)
            _unfinished.add(self._folder)
            self.rows.file = self._folder / "rows.arrow"
            self._file = pyarrow.OSFile(str(self.rows.file), "wb")
            self._stream = pyarrow.ipc.new_stream(self._file, self._schema)
        except OSError as error:
            self._go_on_in_memory(error)

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        """Take in rows, by column. Raises TuituneError where neither the disk nor the memory has room for them."""
        import pyarrow

        values = [pyarrow.array(columns[field.name], field.type) for field in self._schema]
        self._waiting.append(pyarrow.record_batch(values, schema=self._schema))
        self._waiting_tokens += sum(len(ids) for name, rows in columns.items() if name.endswith(INPUTS) for ids in rows)
        if self._waiting_tokens > _BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if not self._waiting:
            return
        table = pyarrow.Table.from_batches(self._waiting).combine_chunks()
        self._waiting, self._waiting_tokens = [], 0
        if self.rows.file is not None:
            try:
                self._stream.write_table(table)
                self._written += 1
                return
            except OSError as error:
                self._go_on_in_memory(error)
        self._require_memory(table.nbytes)
        self._in_memory.append(table)

    def _go_on_in_memory(self, error: OSError) -> None:
        """Take what was written back into memory, and give its room on the disk back."""
        import pyarrow

        where, reason = one_line(rows_folder()), os.strerror(error.errno) if error.errno else one_line(error)
        self._problem = _("The tokenised rows cannot be written to {folder} ({reason})", folder=where, reason=reason)
        self.rows.unkept = _(
            "{problem} and are kept in memory for this run alone; {remedy}", problem=self._problem, remedy=_(_REMEDY)
        )
        if self.rows.file is not None and self._written:
            self._require_memory(self.rows.file.stat().st_size)
            with pyarrow.OSFile(str(self.rows.file)) as file, pyarrow.ipc.open_stream(file) as stream:
                self._in_memory = [
                    pyarrow.Table.from_batches([stream.read_next_batch()]) for _batch in range(self._written)
                ]
        self.rows.file = None
        with suppress(OSError):
            self._file.close()  # an open file keeps its room
        self.discard()

    def _require_memory(self, needed_bytes: int) -> None:
        """Half of the memory that is free may hold rows: the model needs the rest."""
        import psutil

        held_bytes = sum(table.nbytes for table in self._in_memory)
        if held_bytes + needed_bytes > psutil.virtual_memory().available:
            raise TuituneError(
                "{problem}, and memory has no room for them either; {remedy}", problem=self._problem, remedy=_(_REMEDY)
            )

    def close(self, *, keep: bool) -> Rows:
        """The finished rows; under their key if they are to be found again, else gone when the process ends."""
        import pyarrow

        self._flush()
        if self.rows.file is not None:
            try:
                self._stream.close()
                self._file.close()
                if keep:
                    return self._publish()
            except OSError as error:
                self._go_on_in_memory(error)
        if self.rows.file is None:
            self.rows.table = pyarrow.concat_tables([self._schema.empty_table(), *self._in_memory])
        return self.rows

    def discard(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            _unfinished.discard(self._folder)

    def _publish(self) -> Rows:
        assert self._folder is not None
        for name in _ARRAYS:
            with (self._folder / name).open("wb") as file:
                getattr(self.rows, name).tofile(file)
        counts = {
            "truncated": self.rows.truncated,
            "dropped": {reason: asdict(dropped) for reason, dropped in self.rows.dropped.items()},
            "bytes": (self._folder / "rows.arrow").stat().st_size,
        }
        (self._folder / "counts.json").write_text(json.dumps(counts))
        final = rows_folder() / self._key
        try:
            self._folder.rename(final)
        except OSError:
            if not (final / "rows.arrow").is_file():
                raise
            _hold(self.rows, final)  # another session was first
            self.discard()
        _unfinished.discard(self._folder)
        self.rows.file = final / "rows.arrow"
        with suppress(OSError):  # another session prunes at the same time
            _prune()
        return self.rows


def find(key: str) -> Rows | None:
    """The cached rows of this key, if the entry is complete; None otherwise."""
    folder = rows_folder() / key
    try:
        rows = Rows(folder / "rows.arrow")
        _hold(rows, folder)
        counts = json.loads((folder / "counts.json").read_text())
        rows.truncated = counts["truncated"]
        rows.dropped = {reason: Dropped(**fields) for reason, fields in counts["dropped"].items()}
        for name in _ARRAYS:
            values = getattr(rows, name)
            with (folder / name).open("rb") as file:
                values.fromfile(file, os.fstat(file.fileno()).st_size // values.itemsize)
        is_complete = (folder / "rows.arrow").stat().st_size == counts["bytes"]
        if not is_complete or len({len(getattr(rows, name)) for name in _ARRAYS}) != 1:
            raise ValueError("the entry is not whole")
        os.utime(folder)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return rows


_DECIDING = ("conversation", "masking", "methods", "data", "chat_template", "hub.split")
"""The modules and packages of tuitune that decide what a row becomes."""


@cache
def code_identity() -> str:
    """A digest of the modules that decide what a row becomes: another version of them makes other rows."""
    sources: list[Path] = []
    for name in _DECIDING:
        spec = find_spec(f"tuitune.{name}")
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        sources += sorted(origin.parent.glob("*.py")) if spec.submodule_search_locations else [origin]
    return key_of(*sources)


_unfinished: set[Path] = set()
"""Folders of this process with rows that are not to be found again, or not yet."""


def discard_unfinished() -> None:
    """Remove the entries that this process did not finish or did not keep. Called when the interpreter ends."""
    for folder in list(_unfinished):
        shutil.rmtree(folder, ignore_errors=True)


atexit.register(discard_unfinished)


def sweep() -> None:
    """Remove the unfinished entries of processes that were killed."""
    for folder in rows_folder().glob(f"{_MAKING}*"):
        _remove(folder)


def _prune() -> None:
    entries = [entry for entry in rows_folder().iterdir() if not entry.name.startswith(".")]
    for entry in sorted(entries, key=lambda entry: -entry.stat().st_mtime)[KEPT:]:
        _remove(entry)


def _new_folder(rows: Rows) -> Path:
    """A folder for unfinished rows; another process's sweep may remove it until it is held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_MAKING, dir=rows_folder()))
        with suppress(FileNotFoundError):
            _hold(rows, folder)
            if folder.is_dir():
                return folder


def _hold(rows: Rows, folder: Path) -> None:
    """Keep every process from removing the folder as long as `rows` are in use. Raises OSError where it is gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    weakref.finalize(rows, os.close, handle)
    with suppress(OSError):  # a file system without locks, on which nothing is removed
        fcntl.flock(handle, fcntl.LOCK_SH)


def _remove(folder: Path) -> None:
    """Delete a folder of the cache, unless a process holds it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
