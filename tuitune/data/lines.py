"""One row out of a line of JSON, of any length and with anything in it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuitune.language import N_, _
from tuitune.text import one_line

SHOWN_CHARACTERS = 4000
MAX_ROW_BYTES = 16 * 2**20
"""A single row longer than this is not read: it has more tokens than any context, and showing them takes gigabytes."""
CHUNK = 2**20
LINE, ROW, ELEMENT = N_("line {number}"), N_("row {number}"), N_("element {number}")
"""Where a row stands in a file."""
TOO_DEEP = N_("{place} is nested too deeply: write what is inside as text")
TOO_LONG = N_("{place} is longer than {most} MiB: split it into several rows")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file: its columns, or what is wrong with it."""

    value: dict[str, Any] | None
    error: str | None = None
    line: str = ""
    """Of a row that cannot be read, its first SHOWN_CHARACTERS."""


def unusable(problem: str, place: str, number: int, **values: Any) -> Record:
    """A row that is not read, as there is a `problem` (a pattern) with the row of this number."""
    return Record(None, _(problem, place=_(place, number=number), most=MAX_ROW_BYTES // 2**20, **values))


def lines(stream: Any) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line); None for a line longer than MAX_ROW_BYTES, which is skipped in small pieces."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _value in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(raw: bytes, place: str, number: int) -> Record:
    """One JSON object as a record; `place` (LINE, ROW or ELEMENT) and its number are named in the error."""
    record = _parse(raw, place, number)
    if record.error is None:
        return record
    return Record(None, record.error, raw[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")[:SHOWN_CHARACTERS])


def _parse(raw: bytes, place: str, number: int) -> Record:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        problem = N_("{place} is not UTF-8 (byte 0x{byte:02x} at column {column}): save it as UTF-8")
        return unusable(problem, place, number, byte=byte, column=error.start + 1)
    try:
        value = _DECODER.decode(text)
    except _DuplicateKey as error:
        shown = one_line(error, max_length=40)
        return unusable(
            N_("{place} has the name {name!r} twice in one object: take one out"), place, number, name=shown
        )
    except json.JSONDecodeError as error:
        reason = one_line(error.msg, max_length=80)
        if error.lineno > 1:
            return unusable(N_("{place} is not valid JSON ({reason}): correct it there"), place, number, reason=reason)
        problem = N_("{place}, column {column} is not valid JSON ({reason}): correct it there")
        return unusable(problem, place, number, reason=reason, column=error.colno)
    except RecursionError:
        return unusable(TOO_DEEP, place, number)
    except ValueError:
        return unusable(N_("{place} holds a number of more than 4,300 digits: write it as text"), place, number)
    if not isinstance(value, dict):
        problem = N_("{place} is not an object with named columns: write it as {{name: value, …}}")
        return unusable(problem, place, number)
    # UTF-8 holds no surrogate; only an escape can spell one.
    if ("\\ud" in text or "\\uD" in text) and any(map(_SURROGATE.search, _texts(value))):
        problem = N_("{place} holds half of a character (a lone surrogate such as \\ud83d): write it whole")
        return unusable(problem, place, number)
    return Record(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
