"""What is kept of a chat, in its run's folder: transcripts, and rows that can be trained on."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from tuitune.atomic import flush, write_atomic
from tuitune.chat.conversation import Dialogue
from tuitune.errors import TuituneError, explain
from tuitune.paths import open_own
from tuitune.text import one_line

GOOD = "good.jsonl"
"""Replies that were good or were corrected, as rows of messages."""
PREFERENCES = "preferences.jsonl"
"""Replies that were chosen against others."""


def keep_row(run: Path, name: str, row: dict[str, Any]) -> tuple[Path, bool]:
    """Add a row to a file of the run's chats; the file, and whether the row was new. Raises TuituneError."""
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    file = _folder(run) / name
    try:
        if file.is_file() and line in file.read_bytes().splitlines(keepends=True):
            return file, False
        handle = open_own(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            _append(handle, line)
        finally:
            os.close(handle)
        flush(file.parent)
    except OSError as error:
        raise _not_kept(file, error) from None
    return file, True


def save_transcript(run: Path, dialogue: Dialogue) -> Path:
    """Write the branch as JSONL, a row for each side, and as Markdown; returns the JSONL file. Raises TuituneError."""
    file = _folder(run) / time.strftime("%Y-%m-%d_%H-%M-%S.jsonl")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in dialogue.rows()]
    try:
        write_atomic(file, "".join(lines).encode("utf-8", "replace"))
        write_atomic(file.with_suffix(".md"), dialogue.markdown(run).encode("utf-8", "replace"))
    except OSError as error:
        raise _not_kept(file, error) from None
    return file


def _append(handle: int, line: bytes) -> None:
    """Add a line, whole or not at all; one that a power cut left half written is ended first. Raises OSError."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def _folder(run: Path) -> Path:
    folder = run / "chats"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _not_kept(folder, error) from None
    if folder.is_symlink():
        raise TuituneError("{folder} is a link, through which nothing is written: remove it.", folder=one_line(folder))
    return folder


def _not_kept(file: Path, error: OSError) -> TuituneError:
    return TuituneError(
        "{file} cannot be written ({reason}): make room there, or allow writing.",
        file=one_line(file),
        reason=explain(error),
    )
