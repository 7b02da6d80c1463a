"""Messages between client and session, and where their socket lies."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError
from tuitune.language import Sentence, reworded, said
from tuitune.paths import own_folder, temporary_folder

MAX_LINE_BYTES = 32 * 2**20
_YOUNG_SECONDS = 60
_LOG_KEPT_SECONDS = 86_400


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line; what its sentences were made of stands in `said`, with where each of them is."""
    if sentences := list(_sentences(message, [])):
        message = {**message, "said": sentences}
    return json.dumps(message, ensure_ascii=True).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line, with its sentences in the language of this process. Raises ValueError."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    sentences = message.pop("said", [])
    with contextlib.suppress(TypeError, ValueError, LookupError):  # of another shape: the English ones do
        for (*path, last), data in sentences:
            holder: Any = message
            for step in path:
                holder = holder[step]
            if isinstance(holder[last], str):
                holder[last] = reworded(holder[last], data)
    return message


def _sentences(value: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], dict[str, Any]]]:
    """The sentences anywhere in a message: the keys and indices that lead there, and what each was made of."""
    if isinstance(value, Sentence):
        yield path, said(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, Sentence | dict | list | tuple):
                yield from _sentences(item, [*path, key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, Sentence | dict | list | tuple):
                yield from _sentences(item, [*path, index])


def peer(writer: asyncio.StreamWriter) -> tuple[int | None, int | None]:
    """Process and user id of the other side of a Unix socket; None where the platform cannot say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None, None
    pid, uid, _group = struct.unpack(
        "3i", writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    )
    return pid, uid


def runtime_folder() -> Path:
    """A folder only this user can enter, for sockets and the sessions' own logs. Raises TuituneError."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if base.is_absolute() and base.is_dir() and os.access(base, os.W_OK | os.X_OK):
        return own_folder(base / "tuitune")
    return temporary_folder()


def new_socket_path() -> Path:
    """A path for a new session's socket, short enough for a Unix socket address (107 bytes)."""
    path = runtime_folder() / f"{os.urandom(6).hex()}.sock"
    if len(os.fsencode(path)) > 107:
        raise TuituneError(
            "{folder} is too long for a socket: set XDG_RUNTIME_DIR to a shorter folder.", folder=path.parent
        )
    return path


def forget_dead_sessions() -> None:
    """Remove the sockets of sessions that were killed, and the logs that sessions left longer ago than a day."""
    for path in runtime_folder().glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # one that is suspended may have as many waiting for it as can
            try:
                if time.time() - path.stat().st_mtime < _YOUNG_SECONDS:
                    continue  # it may be about to listen
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:  # gone by itself, or not ours to judge
                continue
    for log in runtime_folder().glob("*.log"):
        with contextlib.suppress(OSError):
            if not log.with_suffix(".sock").exists() and time.time() - log.stat().st_mtime > _LOG_KEPT_SECONDS:
                log.unlink()
