"""What was read of documents before, by their content, in the user's cache: only what has changed is read again."""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuitune.documents.passage import Passage
from tuitune.paths import cache_folder

_VERSION = 1
"""Of the way documents are read and split: what was stored by another one is read again."""
_KEPT_SECONDS = 60 * 86_400
_STORED = ("text", "heading", "start_line", "end_line", "page")
_TABLES = """
create table if not exists file (path text primary key, size integer, changed integer, digest text);
create table if not exists document (digest text primary key, passages blob, used real);
create table if not exists vector (model text, digest text, vectors blob, primary key (model, digest));
"""


class Store:
    """A database of the user's cache; one that cannot be used is begun anew, and one that cannot be written is none."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or cache_folder("documents")
        self._file = folder / f"documents-{_VERSION}.sqlite"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = _opened(self._file)
        except (OSError, sqlite3.Error):
            self._database = self._begun_anew()

    def _begun_anew(self) -> sqlite3.Connection:
        """An empty database in place of one that cannot be used."""
        try:
            for part in ("", "-wal", "-shm"):
                self._file.with_name(self._file.name + part).unlink(missing_ok=True)
            return _opened(self._file)
        except (OSError, sqlite3.Error):
            return _opened(Path(":memory:"))

    def _row(self, query: str, *values: str) -> Any:
        """The first row that answers a query; None where there is none, or the database turns out to be spoilt."""
        try:
            return self._database.execute(query, values).fetchone()
        except sqlite3.OperationalError:  # another process has it, or the disk fails
            return None
        except sqlite3.DatabaseError:
            self._database.close()
            self._database = self._begun_anew()
            return None

    def digest_of(self, path: Path, file_status: os.stat_result) -> str | None:
        """The digest of a file that is as large and as old as it was; None where it must be read."""
        row = self._row("select size, changed, digest from file where path = ?", _name(path))
        return row[2] if row and row[:2] == (file_status.st_size, file_status.st_mtime_ns) else None

    def passages(self, digest: str, file: str) -> list[Passage] | None:
        """What a document of this digest holds, as of the file `file`; None where it is not known."""
        row = self._row("select passages from document where digest = ?", digest)
        if row is None:
            return None
        try:
            return [Passage(**{**fields, "file": file}) for fields in json.loads(zlib.decompress(row[0]))]
        except (ValueError, TypeError, zlib.error):
            return None

    def keep(self, path: Path, file_status: os.stat_result, digest: str, passages: list[Passage]) -> None:
        packed = zlib.compress(json.dumps([_fields(passage) for passage in passages], ensure_ascii=False).encode(), 1)
        with suppress(sqlite3.Error, UnicodeEncodeError):
            self._database.execute("insert or replace into document values (?, ?, ?)", (digest, packed, time.time()))
            self.keep_place(path, file_status, digest)

    def keep_place(self, path: Path, file_status: os.stat_result, digest: str) -> None:
        """Record which document lies at a path."""
        row = (_name(path), file_status.st_size, file_status.st_mtime_ns, digest)
        with suppress(sqlite3.Error):
            self._database.execute("insert or replace into file values (?, ?, ?, ?)", row)

    def vectors(self, model: str, digest: str) -> NDArray[np.float32] | None:  # (passages, width)
        row = self._row("select vectors from vector where model = ? and digest = ?", model, digest)
        if row is None:
            return None
        width = int.from_bytes(row[0][:4], "little")
        return np.frombuffer(row[0], np.float16, offset=4).reshape(-1, width).astype(np.float32)

    def keep_vectors(self, model: str, digest: str, vectors: NDArray[np.float32]) -> None:
        packed = vectors.shape[1].to_bytes(4, "little") + vectors.astype(np.float16).tobytes()
        with suppress(sqlite3.Error):
            self._database.execute("insert or replace into vector values (?, ?, ?)", (model, digest, packed))

    def settle(self, digests: Iterable[str]) -> None:
        """Have all on disk, and let go of documents that nobody has used for two months."""
        now = time.time()
        with suppress(sqlite3.Error):
            self._database.executemany("update document set used = ? where digest = ?", ((now, d) for d in digests))
            self._database.execute("delete from document where used < ?", (now - _KEPT_SECONDS,))
            for table in ("file", "vector"):
                self._database.execute(f"delete from {table} where digest not in (select digest from document)")
            self._database.commit()

    def close(self) -> None:
        self._database.close()


def _opened(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(str(file), timeout=5)
    with suppress(OSError):
        file.chmod(0o600)
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = normal")
    database.executescript(_TABLES)
    return database


def _name(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _fields(passage: Passage) -> dict[str, object]:
    """What a document's passage is by itself, whatever file it is found in."""
    return {name: getattr(passage, name) for name in _STORED}
