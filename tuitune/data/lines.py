"""One row out of a line of JSON, of any length and with anything in it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tuitune.text import one_line

SHOWN_CHARACTERS = 4000
MAX_ROW_BYTES = 64 * 2**20
"""A single row longer than this is not read."""
CHUNK = 2**20
TOO_DEEP = "is nested too deeply: write what is inside as text"
TOO_LONG = f"is longer than {MAX_ROW_BYTES // 2**20} MiB: split it into several rows"


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file: its columns, or what is wrong with it."""

    value: dict[str, Any] | None
    error: str | None = None
    line: str = ""
    """Of a row that cannot be read, its first SHOWN_CHARACTERS."""


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
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(raw: bytes, place: str) -> Record:
    """One JSON object as a record; `place` (line or element) is named in the error."""
    record = _parse(raw, place)
    if record.error is None:
        return record
    return Record(None, record.error, raw[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")[:SHOWN_CHARACTERS])


def _parse(raw: bytes, place: str) -> Record:
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
        return Record(None, f"{place} {TOO_DEEP}")
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
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
