"""Reads dataset files row by row in bounded memory: what cannot be read becomes a record saying why, never a crash."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tuitune.data.columnar import columnar_count, columnar_records
from tuitune.data.container import BROKEN, STRUCTURE, Container, Wrapper, look, open_file
from tuitune.data.lines import (
    CHUNK,
    ELEMENT,
    LINE,
    MAX_ROW_BYTES,
    SHOWN_CHARACTERS,
    TOO_DEEP,
    TOO_LONG,
    Record,
    lines,
    parse,
    unusable,
)
from tuitune.language import N_, _
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.hub.datasets import HubFiles

csv.field_size_limit(MAX_ROW_BYTES)
_DEEPEST = 500
"""An unclosed nesting deeper than this is no row whose end is missing."""


def records(container: Container, *, start: int = 0, unread: bool = False) -> Iterator[Record]:
    """Every row of the container's part in order, from row `start` on; with `unread` only their number counts.

    A broken row is a record with an error; a broken file ends with one.
    """
    first, stop = container.part
    rows = _records(container, start=first + start, unread=unread)
    return rows if stop is None else islice(rows, max(0, stop - first - start))


def count(container: Container) -> int:
    """Rows of the container's part, usable or not; a table says how many it holds, anything else is read through."""
    first, stop = container.part
    if container.kind in ("parquet", "arrow") and (total := columnar_count(container)) is not None:
        return max(0, (total if stop is None else min(total, stop)) - first)
    return sum(1 for _record in records(container, unread=True))


def unpacked_bytes(container: Container) -> int:
    """About how many bytes a file holds once it is unpacked, from its first ones."""
    import pyarrow

    size = container.path.stat().st_size
    with (
        pyarrow.OSFile(str(container.path)) as packed,
        pyarrow.CompressedInputStream(packed, container.compression) as stream,
    ):
        unpacked, read = len(stream.read(4 * CHUNK)), packed.tell()
    return unpacked if read >= size else unpacked * size // max(1, read)


def _records(container: Container, *, start: int, unread: bool) -> Iterator[Record]:
    if container.hub is not None:
        yield from islice(_hub(container.hub, unread=unread), start, None)
        return
    if container.kind in ("parquet", "arrow"):
        yield from islice(columnar_records(container), start, None)
        return
    try:
        with open_file(container.path, container.compression) as stream:
            if container.kind == "jsonl":
                yield from _jsonl(stream, start=start, unread=unread)
            else:
                is_json = container.kind == "json"
                rows = _json(stream, container.wrapper) if is_json else _csv(stream, container.delimiter)
                yield from islice(rows, start, None)
    except EOFError:
        yield Record(None, _("the {kind} file is cut short here: fetch it again", kind=container.compression))
    except BROKEN as error:
        reason = one_line(error, max_length=120)
        problem = _("the file cannot be read beyond here ({reason}): fetch it again, or write it anew", reason=reason)
        yield Record(None, problem)


def _hub(hub: "HubFiles", *, unread: bool) -> Iterator[Record]:
    for name, path in zip(hub.files, hub.paths(), strict=True):
        for record in records(look(path), unread=unread):
            if record.error is not None and len(hub.files) > 1:
                error = _("{name}: {reason}", name=one_line(name, max_length=120), reason=record.error)
                yield replace(record, error=error)
            else:
                yield record


def stored_bytes(rows: list[dict[str, Any]]) -> float:
    """Mean size of these rows as JSON, in bytes."""
    return sum(len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for row in rows) / len(rows)


_CUT_SHORT = N_("{place} is cut short (the file ends inside it): fetch the file again")
_UNREAD = Record(None, N_("not read"))


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
            yield unusable(TOO_LONG, LINE, number)
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not raw.isspace():
            yield parse(raw, LINE, number)


def _json(stream: Any, wrapper: Wrapper | None) -> Iterator[Record]:
    """The elements of a JSON array, or objects one after another, each spread over any number of lines."""
    if wrapper:
        stream.read(wrapper.start)
    for number, raw in enumerate(_elements(stream), 1):
        if isinstance(raw, str):
            yield unusable(raw, ELEMENT, number)
            return
        record = parse(raw, ELEMENT, number)
        inner = (record.value or {}).get("row") if wrapper and "row_idx" in (record.value or {}) else None
        # The Hub's own preview writes each row inside `row`, beside its number.
        yield Record(inner) if isinstance(inner, dict) else record


def _elements(stream: Any) -> Iterator[bytes | str]:
    """The bytes of each top-level object; what is wrong where one never ends. What is between objects is skipped."""
    buffer = stream.read(CHUNK).removeprefix(b"\xef\xbb\xbf")
    in_array = buffer.lstrip()[:1] == b"["
    scanned = buffer.index(b"[") + 1 if in_array else 0
    depth, begin = 0, scanned
    while True:
        for match in STRUCTURE.finditer(buffer, scanned):
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
            yield TOO_DEEP if depth > _DEEPEST else TOO_LONG
            return
        chunk = stream.read(max(CHUNK, len(buffer) - begin))
        if not chunk:
            if depth or buffer[scanned:].strip(b" \t\r\n,]"):
                yield TOO_DEEP if depth > _DEEPEST else _CUT_SHORT
            return
        buffer, scanned, begin = buffer[begin:] + chunk, scanned - begin, 0


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
            problem = N_("{place} is not valid CSV ({reason}): correct the quotes there")
            yield unusable(problem, LINE, line, reason=reason)
            continue
        if not cells:
            continue
        if any(_UNDECODED in cell for cell in cells):
            yield unusable(N_("{place} is not UTF-8: save the file as UTF-8"), LINE, line)
        elif any(_SKIPPED in cell for cell in cells):
            yield unusable(TOO_LONG, LINE, line)
        elif header is None:
            header = [cell.strip() for cell in cells]
            if repeated := [name for place, name in enumerate(header) if name and name in header[:place]]:
                shown = one_line(repeated[0], max_length=40)
                problem = N_("{place} names the column {column!r} twice: rename one of them")
                yield unusable(problem, LINE, line, column=shown)
                return
        elif len(cells) != len(header):
            problem = N_(
                "{place} has {columns} columns where the header has {names}: put cells that hold a delimiter or a "
                "line break in quotes"
            )
            record = unusable(problem, LINE, line, columns=len(cells), names=len(header))
            yield replace(record, line=delimiter.join(cells)[:SHOWN_CHARACTERS])
        else:
            yield Record(dict(zip(header, cells, strict=True)))


# Lone surrogates, which no UTF-8 text holds, stand for what could not be read.
_UNDECODED, _SKIPPED = "\udcff", "\udcfe"


def _decoded(stream: Any) -> Iterator[str]:
    first = True
    for _number, line in lines(stream):
        if line is None:
            yield _SKIPPED
            continue
        raw = line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError:
            yield raw.decode("utf-8", "replace").replace("\ufffd", _UNDECODED)
