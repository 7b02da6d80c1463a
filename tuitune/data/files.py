"""Reads dataset files row by row in bounded memory: what cannot be read becomes a record saying why, never a crash."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tuitune.errors import UnusableInput
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.hub.datasets import HubFiles

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "hub"]
Compression = Literal["gzip", "zstd"]

MAX_ROW_BYTES = 64 * 2**20
"""A single row longer than this is not read."""
_CHUNK = 2**20
csv.field_size_limit(MAX_ROW_BYTES)
_PEEK = 2**18
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file: its columns, or what is wrong with it."""

    value: dict[str, Any] | None
    error: str | None = None


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
        within = f", the rows under {self.wrapper.name}" if self.wrapper else ""
        first, stop = self.part
        part = f", rows {first:,} to {'the end' if stop is None else f'{stop - 1:,}'}" if self.part != (0, None) else ""
        return names[self.kind] + within + (f", {self.compression}" if self.compression else "") + part


@dataclass(frozen=True)
class Wrapper:
    """The array that holds the rows inside one JSON object: its `name`, and where its `[` stands in bytes."""

    name: str
    start: int


def look(path: Path) -> Container:
    """What kind of file this is. Raises UnusableInput with what to do where it is none that can be read."""
    where = one_line(path, max_length=300)
    try:
        if path.is_dir():
            raise UnusableInput(f"{where} is a folder: give one dataset file inside it.")
        if path.exists() and not path.is_file():
            raise UnusableInput(
                f"{where} is a pipe, socket or device, which may never end: save its rows in a file, and give that."
            )
        with path.open("rb") as file:
            head = file.read(_PEEK)
    except FileNotFoundError:
        raise UnusableInput(f"There is no dataset file {where}: check data.path in the recipe.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, max_length=100)
        raise UnusableInput(
            f"The dataset file {where} cannot be read ({reason}): check it, or give another in data.path."
        ) from None
    if not head:
        raise UnusableInput(f"The dataset file {where} is empty: give a file that holds rows.")
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if compression:
        try:
            with _open(path, compression) as stream:
                head = stream.read(_PEEK)
        except _BROKEN as error:
            raise UnusableInput(
                f"{where} cannot be unpacked ({one_line(error, max_length=100)}): the {compression} file is damaged "
                "or cut short; fetch it again."
            ) from None
    if head.startswith(b"PAR1"):
        return Container(path, "parquet", compression)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Container(path, "arrow", compression)
    if head.startswith(_UTF16):
        raise UnusableInput(f"{where} is UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
    before, head = len(head), head.removeprefix(b"\xef\xbb\xbf")
    start = head.lstrip()
    if not start:
        raise UnusableInput(f"The dataset file {where} holds nothing but white space: give a file that holds rows.")
    if start.startswith(b"["):
        return Container(path, "json", compression)
    if b"\r" in start and b"\n" not in start and len(start.splitlines()) > 1:
        raise UnusableInput(
            f"{where} ends its lines with carriage returns alone: write line feeds (tr '\\r' '\\n' < OLD > NEW)."
        )
    if start.startswith(b"{") and (wrapper := _wrapper(start, before - len(start), whole=before < _PEEK)):
        return Container(path, "json", compression, wrapper=wrapper)
    if start.startswith(b"{") or any(line.lstrip().startswith(b"{") for line in start.splitlines()[:20]):
        return Container(path, "jsonl" if _has_json_line(start, whole=len(head) < _PEEK) else "json", compression)
    delimiter = _delimiter(head)
    if delimiter:
        return Container(path, "tsv" if delimiter == "\t" else "csv", compression, delimiter)
    raise UnusableInput(
        f"{where} is in no known file format (it begins with {one_line(start[:24].decode('utf-8', 'replace'))!r}): "
        "give JSONL, a JSON array, CSV, TSV, Parquet or Arrow."
    )


_WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "dataset", "instances", "samples")


def _wrapper(head: bytes, before: int, *, whole: bool) -> Wrapper | None:
    """The array of rows in a file that is one object, as far as `head` tells; `before` bytes stand in front of it."""
    depth = end = 0
    key, found = b"", None
    for match in _STRUCTURE.finditer(head):
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
            if first and name in _WRAPPERS and found is None:
                found = Wrapper(name, before + match.start())
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(mark, 0)
        if depth == 0:
            # Behind the object must stand nothing: else it is a row among others.
            return found if whole and not head[match.end() :].strip() else None
    return found


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
    for delimiter in sorted("\t,;|", key=lambda each: -lines[0].count(each)):
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


_BROKEN = (OSError, EOFError, zlib.error, ValueError)


def _open(path: Path, compression: Compression | None) -> io.BufferedReader:
    if compression == "gzip":
        return cast(io.BufferedReader, gzip.open(path, "rb"))
    if compression == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), _CHUNK)
    return path.open("rb")


def records(container: Container, *, start: int = 0, unread: bool = False) -> Iterator[Record]:
    """Every row of the container's part in order, from row `start` on; with `unread` only their number is right.

    A broken row is a record with an error; a broken file ends with one.
    """
    first, stop = container.part
    found = _records(container, start=first + start, unread=unread)
    return found if stop is None else islice(found, max(0, stop - first - start))


def count(container: Container) -> int:
    """Rows of the container's part, usable or not; a table says how many it holds, anything else is read through."""
    first, stop = container.part
    if container.kind in ("parquet", "arrow"):
        from tuitune.data.columnar import columnar_count

        if (total := columnar_count(container)) is not None:
            return max(0, (total if stop is None else min(total, stop)) - first)
    return sum(1 for _ in records(container, unread=True))


def unpacked_bytes(container: Container) -> int:
    """About how many bytes a file holds once it is unpacked, from its first ones."""
    import pyarrow

    size = container.path.stat().st_size
    with (
        pyarrow.OSFile(str(container.path)) as packed,
        pyarrow.CompressedInputStream(packed, container.compression) as stream,
    ):
        unpacked, read = len(stream.read(4 * _CHUNK)), packed.tell()
    return unpacked if read >= size else unpacked * size // max(1, read)


def _records(container: Container, *, start: int, unread: bool) -> Iterator[Record]:
    if container.hub is not None:
        yield from islice(_hub(container.hub, unread=unread), start, None)
        return
    if container.kind in ("parquet", "arrow"):
        from tuitune.data.columnar import columnar_records

        yield from islice(columnar_records(container), start, None)
        return
    try:
        with _open(container.path, container.compression) as stream:
            if container.kind == "jsonl":
                yield from _jsonl(stream, start=start, unread=unread)
            else:
                is_json = container.kind == "json"
                found = _json(stream, container.wrapper) if is_json else _csv(stream, container.delimiter)
                yield from islice(found, start, None)
    except EOFError:
        yield Record(None, f"the {container.compression} file is cut short here: fetch it again")
    except _BROKEN as error:
        reason = one_line(error, max_length=120)
        yield Record(None, f"the file cannot be read beyond here ({reason}): fetch it again, or write it anew")


def _hub(hub: "HubFiles", *, unread: bool) -> Iterator[Record]:
    for name, path in zip(hub.files, hub.paths(), strict=True):
        for record in records(look(path), unread=unread):
            several = record.error is not None and len(hub.files) > 1
            yield Record(None, f"{one_line(name, max_length=120)}: {record.error}") if several else record


def lines(stream: Any) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line); None for a line longer than MAX_ROW_BYTES, which is skipped in small pieces."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line


def stored_bytes(rows: list[dict[str, Any]]) -> float:
    """Mean size of these rows as JSON, in bytes."""
    return sum(len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for row in rows) / len(rows)


_UNREAD = Record(None, "not read")


def _jsonl(stream: Any, *, start: int, unread: bool) -> Iterator[Record]:
    index = -1
    for number, line in lines(stream):
        if line is None or not line.isspace():
            index += 1
        if index < start:
            continue
        if unread:
            if line is None or not line.isspace():
                yield _UNREAD
            continue
        if line is None:
            yield Record(None, f"line {number} {TOO_LONG}")
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not raw.isspace():
            yield parse(raw, f"line {number}")


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(raw: bytes, place: str) -> Record:
    """One JSON object as a record; `place` (line or element) is named in the error."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return Record(None, f"{place} is not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}): save it as UTF-8")
    try:
        value = _DECODER.decode(text)
    except _DuplicateKey as error:
        shown = one_line(error, max_length=40)
        return Record(None, f"{place} has the name {shown!r} twice in one object: take one out")
    except json.JSONDecodeError as error:
        column = f", column {error.colno}" if error.lineno == 1 else ""
        reason = one_line(error.msg, max_length=80)
        return Record(None, f"{place}{column} is not valid JSON ({reason}): correct it there")
    except RecursionError:
        return Record(None, f"{place} {_TOO_DEEP}")
    except ValueError:
        return Record(None, f"{place} holds a number of more than 4,300 digits: write it as text")
    if not isinstance(value, dict):
        return Record(None, f"{place} is not an object with named columns: write it as {{name: value, …}}")
    # UTF-8 holds no surrogate; only an escape can spell one.
    if ("\\ud" in text or "\\uD" in text) and any(map(_SURROGATE.search, _texts(value))):
        return Record(None, f"{place} holds half of a character (a lone surrogate such as \\ud83d): write it whole")
    return Record(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _json(stream: Any, wrapper: Wrapper | None) -> Iterator[Record]:
    """The elements of a JSON array, or objects one after another, each spread over any number of lines."""
    if wrapper:
        stream.read(wrapper.start)
    for number, raw in enumerate(_elements(stream), 1):
        if isinstance(raw, str):
            yield Record(None, f"element {number} {raw}")
            return
        record = parse(raw, f"element {number}")
        inner = (record.value or {}).get("row") if wrapper and "row_idx" in (record.value or {}) else None
        # The Hub's own preview writes each row inside `row`, beside its number.
        yield Record(inner) if isinstance(inner, dict) else record


# Possessive (`++`): without it, a string of megabytes takes gigabytes to match.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]|"', re.DOTALL)


_TOO_DEEP = "is nested too deeply: write what is inside as text"
TOO_LONG = f"is longer than {MAX_ROW_BYTES // 2**20} MiB: split it into several rows"
_DEEPEST = 500
"""An unclosed nesting deeper than this is no row whose end is missing."""


def _elements(stream: Any) -> Iterator[bytes | str]:
    """The bytes of each top-level object; what is wrong where one never ends. What is between objects is skipped."""
    buffer = stream.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
    in_array = buffer.lstrip()[:1] == b"["
    scanned = buffer.index(b"[") + 1 if in_array else 0
    depth, begin = 0, scanned
    while True:
        for match in _STRUCTURE.finditer(buffer, scanned):
            mark = match[0]
            if mark == b'"':
                break  # a string that the buffer does not hold whole
            scanned = match.end()
            if mark in (b"{", b"["):
                if depth == 0:
                    begin = match.start()
                depth += 1
            elif mark in (b"}", b"]"):
                depth -= 1
                if depth < 0:
                    return
                if depth == 0:
                    yield buffer[begin:scanned]
                    begin = scanned
        if depth == 0:
            begin = scanned
        if len(buffer) - begin > MAX_ROW_BYTES:
            yield _TOO_DEEP if depth > _DEEPEST else TOO_LONG
            return
        more = stream.read(max(_CHUNK, len(buffer) - begin))
        if not more:
            if depth or buffer[scanned:].strip(b" \t\r\n,]"):
                yield _TOO_DEEP if depth > _DEEPEST else "is cut short (the file ends inside it): fetch the file again"
            return
        buffer, scanned, begin = buffer[begin:] + more, scanned - begin, 0


def _csv(stream: Any, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(_decoded(stream), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = one_line(error, max_length=80)
            yield Record(None, f"line {line} is not valid CSV ({reason}): correct the quotes there")
            continue
        if not cells:
            continue
        if any(_UNDECODED in cell for cell in cells):
            yield Record(None, f"line {line} is not UTF-8: save the file as UTF-8")
        elif any(_SKIPPED in cell for cell in cells):
            yield Record(None, f"line {line} {TOO_LONG}")
        elif header is None:
            header = [cell.strip() for cell in cells]
            if again := [name for place, name in enumerate(header) if name and name in header[:place]]:
                shown = one_line(again[0], max_length=40)
                yield Record(None, f"line {line} names the column {shown!r} twice: rename one of them")
                return
        elif len(cells) != len(header):
            yield Record(
                None,
                f"line {line} has {len(cells)} columns where the header has {len(header)}: "
                "put cells that hold a delimiter or a line break in quotes",
            )
        else:
            yield Record(dict(zip(header, cells, strict=True)))


# Lone surrogates, which no UTF-8 text holds, stand for what could not be read.
_UNDECODED, _SKIPPED = "\udcff", "\udcfe"


def _decoded(stream: Any) -> Iterator[str]:
    first = True
    for _, line in lines(stream):
        if line is None:
            yield _SKIPPED
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            yield raw.decode("utf-8", "replace").replace("\ufffd", _UNDECODED)
