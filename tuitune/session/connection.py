"""One client of a session: what is sent to it, and the lines of a run's record as messages to it."""

import asyncio
import logging
from typing import Any, BinaryIO

from tuitune.language import _
from tuitune.runs.events import Notice, is_damaged, to_json
from tuitune.session.protocol import MAX_LINE_BYTES, encode
from tuitune.session.worker import Job

log = logging.getLogger("tuitune.session")

_CHUNK_BYTES = 2**20
_MOST_UNREAD_BYTES = 4 * MAX_LINE_BYTES


class Client:
    """One connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.jobs: dict[int, Job] = {}
        self.wake = asyncio.Event()
        self.follower: asyncio.Task[None] | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; in place of one that no client could read as it is too long, an error for its command.

        A client that leaves too much unread is dropped, as it all waits in this process's memory.
        """
        line = encode(message)
        if len(line) > MAX_LINE_BYTES:
            problem = _(
                "The answer has {size} MiB and may have {most}: ask for fewer rows, or shorten them.",
                size=len(line) // 2**20,
                most=MAX_LINE_BYTES // 2**20,
            )
            line = encode({"id": message.get("id"), "error": problem, "exit_code": 1})
        if not self.writer.is_closing():
            self.writer.write(line)
            if self.writer.transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
                log.warning("a client that does not read its answers was dropped")
                self.writer.transport.abort()


def whole_lines(record: BinaryIO) -> list[bytes]:
    """The next lines, about a megabyte of them; what is not yet written to its end is left for later."""
    start = record.tell()
    lines = [line for line in record.readlines(_CHUNK_BYTES) if line.endswith(b"\n")]
    record.seek(start + sum(map(len, lines)))
    return lines


def as_message(line: bytes) -> bytes:
    """An event's line of the record as a message to a client."""
    message = b'{"event": ' + line[:-1] + b"}\n"
    if is_damaged(line):
        notice = Notice(text=_("A line of the record is damaged: what stood there is left out, all else is shown."))
    elif len(message) <= MAX_LINE_BYTES:
        return message
    else:
        notice = Notice(
            text=_("An event of {size} MiB is too long to be shown; it is in events.jsonl.", size=len(line) // 2**20)
        )
    return b'{"event": ' + to_json(notice).encode() + b"}\n"
