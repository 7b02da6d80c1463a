"""What kind of file a dataset is, seen from its first bytes."""

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from tuitune.data.lines import CHUNK
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.hub.datasets import HubFiles

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "hub"]
Compression = Literal["gzip", "zstd"]

_PEEK = 2**18
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Possessive (`++`): without it, a string of megabytes takes gigabytes to match.
STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]|"', re.DOTALL)


@dataclass(frozen=True)
class Container:
    """How a file holds its rows, seen from its first bytes."""

    path: Path
    kind: Kind
    compression: Compression | None = None
    delimiter: str = ","
    wrapper: "Wrapper | None" = None
    hub: "HubFiles | None" = None
    """Of a Hub dataset: the files that hold its rows."""
    part: tuple[int, int | None] = (0, None)
    """The rows of the file that are read: from the first, and up to, not including, the second."""

    @property
    def text(self) -> str:
        """For a person: `JSONL, gzip`."""
        names = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "arrow": "Arrow"}
        names["hub"] = "Hugging Face Hub"
        parts: list[str] = [names[self.kind]]
        if self.wrapper:
            parts.append(_("the rows under {name}", name=self.wrapper.name))
        if self.compression:
            parts.append(self.compression)
        first, stop = self.part
        if stop is not None:
            parts.append(_("rows {first:,} to {last:,}", first=first + 1, last=stop))
        elif first:
            parts.append(_("rows {first:,} to the end", first=first + 1))
        return _("{parts}", parts=parts)


@dataclass(frozen=True)
class Wrapper:
    """The array that holds the rows inside one JSON object: its `name`, and where its `[` stands in bytes."""

    name: str
    start: int


def look(path: Path) -> Container:
    """What kind of file this is. Raises UnusableInput, saying what to do, for a kind that cannot be read."""
    where = one_line(path, max_length=300)
    try:
        if path.is_dir():
            raise UnusableInput("{where} is a folder: give one dataset file inside it.", where=where)
        if path.exists() and not path.is_file():
            raise UnusableInput(
                "{where} is a pipe, socket or device, which may never end: save its rows in a file, and give that.",
                where=where,
            )
        with path.open("rb") as file:
            head = file.read(_PEEK)
    except FileNotFoundError:
        raise UnusableInput("There is no dataset file {where}: check data.path in the recipe.", where=where) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, max_length=100)
        raise UnusableInput(
            "The dataset file {where} cannot be read ({reason}): check it, or give another in data.path.",
            where=where,
            reason=reason,
        ) from None
    if not head:
        raise UnusableInput("The dataset file {where} is empty: give a file that holds rows.", where=where)
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if compression:
        try:
            with open_file(path, compression) as stream:
                head = stream.read(_PEEK)
        except BROKEN as error:
            raise UnusableInput(
                "{where} cannot be unpacked ({reason}): the {compression} file is damaged or cut short; fetch it "
                "again.",
                where=where,
                reason=one_line(error, max_length=100),
                compression=compression,
            ) from None
    if head.startswith(b"PAR1"):
        return Container(path, "parquet", compression)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Container(path, "arrow", compression)
    if head.startswith(_UTF16):
        raise UnusableInput("{where} is UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8).", where=where)
    before, head = len(head), head.removeprefix(b"\xef\xbb\xbf")
    start = head.lstrip()
    if not start:
        raise UnusableInput(
            "The dataset file {where} holds nothing but white space: give a file that holds rows.", where=where
        )
    if start.startswith(b"["):
        return Container(path, "json", compression)
    if b"\r" in start and b"\n" not in start and len(start.splitlines()) > 1:
        raise UnusableInput(
            "{where} ends its lines with carriage returns alone: write line feeds (tr '\\r' '\\n' < OLD > NEW).",
            where=where,
        )
    if start.startswith(b"{") and (wrapper := _wrapper(start, before - len(start), whole=before < _PEEK)):
        return Container(path, "json", compression, wrapper=wrapper)
    if start.startswith(b"{") or any(line.lstrip().startswith(b"{") for line in start.splitlines()[:20]):
        return Container(path, "jsonl" if _has_json_line(start, whole=len(head) < _PEEK) else "json", compression)
    delimiter = _delimiter(head)
    if delimiter:
        return Container(path, "tsv" if delimiter == "\t" else "csv", compression, delimiter)
    if before < _PEEK and b"\n" not in start.rstrip() and path.suffix.lower() in (".csv", ".tsv"):
        raise UnusableInput("{where} has a line of column names and no row: add rows below it.", where=where)
    raise UnusableInput(
        "{where} is in no known file format (it begins with {beginning!r}): give JSONL, a JSON array, CSV, "
        "TSV, Parquet or Arrow.",
        where=where,
        beginning=one_line(start[:24].decode("utf-8", "replace")),
    )


_WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset", "instances", "samples")


def _wrapper(head: bytes, offset: int, *, whole: bool) -> Wrapper | None:
    """The array of rows in a file that is one object, as far as `head` tells; `offset` bytes stand in front of it."""
    depth = end = 0
    key, wrapper = b"", None
    for match in STRUCTURE.finditer(head):
        mark = match[0]
        if len(mark) > 1:
            if depth == 1:
                key, end = mark, match.end()
            continue
        if depth == 1 and mark == b"[" and head[end : match.start()].strip() == b":":
            first = _first_names(head[match.end() : match.end() + 4096])
            if first & {"role", "from"}:
                return None  # a row, with the turns of a conversation
            name = key[1:-1].decode("ascii", "replace")
            if first and name in _WRAPPERS and wrapper is None:
                wrapper = Wrapper(name, offset + match.start())
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(mark, 0)
        if depth == 0:
            # Behind the object must stand nothing: else it is a row among others.
            return wrapper if whole and not head[match.end() :].strip() else None
    return wrapper


def _first_names(inside: bytes) -> set[str]:
    """The first two names in the object that an array begins with; none where it begins with something else."""
    if not inside.lstrip().startswith(b"{"):
        return set()
    names = re.finditer(rb'"((?:[^"\\]++|\\.)*+)"\s*+:', inside)
    return {match[1].decode("ascii", "replace") for match in islice(names, 2)}


def _has_json_line(head: bytes, *, whole: bool) -> bool:
    lines = head.split(b"\n")
    if len(lines) == 1:
        return True
    for line in lines if whole else lines[:-1]:
        try:
            if isinstance(json.loads(line), dict):
                return True
        except (ValueError, RecursionError):
            continue
    # No line is an object by itself. `{` alone on the first line is a JSON text spread over lines.
    return len(lines[0].strip()) > 1 and not lines[0].rstrip().endswith((b"{", b"[", b","))


def _delimiter(head: bytes) -> str | None:
    text = head.decode("utf-8", "replace").replace("\0", "")
    lines = text.splitlines()
    if not lines:
        return None
    for delimiter in sorted("\t,;|", key=lambda character: -lines[0].count(character)):
        if delimiter not in lines[0]:
            continue
        rows = _first_rows(text[:65536], delimiter)
        if len(rows) < 2:
            continue
        fitting = sum(len(row) == len(rows[0]) for row in rows[1:])
        if len(rows[0]) > 1 and fitting * 2 >= len(rows) - 1 > 0:
            return delimiter
    # A single column of text under its name is a CSV file too.
    return "," if len(lines) > 1 and re.fullmatch(r"[\w .-]{1,40}", lines[0]) else None


def _first_rows(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows: list[list[str]] = []
    while len(rows) < 20:
        try:
            rows.append(next(reader))
        except StopIteration:
            break
        except csv.Error:
            continue
    return rows


BROKEN = (OSError, EOFError, zlib.error, ValueError)


def open_file(path: Path, compression: Compression | None) -> io.BufferedReader:
    if compression == "gzip":
        return cast(io.BufferedReader, gzip.open(path, "rb"))
    if compression == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), CHUNK)
    return path.open("rb")
