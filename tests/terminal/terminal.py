"""A real pseudo-terminal with a screen that can be read: what a user sees, key by key."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

from tests.command import COMMAND

ENTER, ESC, TAB, UP, DOWN = "\r", "\x1b", "\t", "\x1b[A", "\x1b[B"
CTRL_C, CTRL_E, CTRL_N, CTRL_Q, CTRL_T = "\x03", "\x05", "\x0e", "\x11", "\x14"


class _Stream:
    """What is written to a screen, which takes styles from memory.

    They are most of what the app writes, and the emulator's parser takes them character by character.
    """

    _STYLES = re.compile(rb"(\x1b\[[\d;:]*m)")
    _BEGINNING = re.compile(rb"\x1b(\[[\d;:]*)?\Z")

    def __init__(self, screen: pyte.Screen) -> None:
        self._screen = screen
        self._stream = pyte.ByteStream(screen)
        self._after: dict[tuple[pyte.screens.Char, bytes], pyte.screens.Char] = {}
        self._begun = b""

    def feed(self, data: bytes) -> None:
        data = self._begun + data
        begun = self._BEGINNING.search(data)  # its end comes with the next read
        self._begun = begun[0] if begun else b""
        for piece in self._STYLES.split(data[: len(data) - len(self._begun)]):
            if not piece.startswith(b"\x1b[") or not piece.endswith(b"m"):
                self._stream.feed(piece)
                continue
            key = (self._screen.cursor.attrs, piece)
            if key not in self._after:
                self._stream.feed(piece)
                self._after[key] = self._screen.cursor.attrs
            self._screen.cursor.attrs = self._after[key]


class Terminal:
    """`tuitune` with `arguments` on a pty of `columns`×`rows`."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = _Stream(self.screen)
        self._lines: list[str] = []
        self.raw = b""
        self.child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *arguments],
            dimensions=(rows, columns),
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests run under nohup
        )

    @property
    def text(self) -> str:
        """What it shows, line by line."""
        if len(self._lines) != self.screen.lines:
            self._lines = [""] * self.screen.lines
            self.screen.dirty.update(range(self.screen.lines))
        for number in self.screen.dirty & set(range(self.screen.lines)):  # some are below a screen that has shrunk
            row = self.screen.buffer[number]  # pyte's own `display` gives up on characters that it cannot measure
            self._lines[number] = "".join(row[column].data for column in range(self.screen.columns)).rstrip()
        self.screen.dirty.clear()
        return "\n".join(self._lines)

    def until(self, wanted: str | Callable[[str], bool], seconds: float = 60) -> str:
        """Read until the screen shows `wanted`; returns the screen. Raises AssertionError with the screen."""
        shows = wanted if callable(wanted) else lambda text: wanted in text
        end = time.monotonic() + seconds
        while not shows(self.text):
            if time.monotonic() > end:
                raise AssertionError(f"{wanted!r} did not appear; the screen shows:\n{self.text}")
            self._read()
        return self.text

    def _read(self) -> None:
        try:
            data = self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            raise AssertionError(f"the app ended; its last screen was:\n{self.text}") from None
        self.raw += data
        self._stream.feed(data)

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def resize(self, columns: int, rows: int) -> None:
        self.child.setwinsize(rows, columns)
        self.screen.resize(rows, columns)

    def hang_up(self) -> None:
        """What a lost connection does: the terminal goes away and the app gets SIGHUP."""
        self.child.kill(signal.SIGHUP)

    def exit_status(self, seconds: float = 20) -> int | None:
        """Wait for the app to end by itself."""
        end = time.monotonic() + seconds
        while self.child.isalive():
            assert time.monotonic() < end, f"the app does not end; the screen shows:\n{self.text}"
            try:
                self.child.read_nonblocking(65536, timeout=0.1)
            except (pexpect.TIMEOUT, pexpect.EOF):
                time.sleep(0.02)
        status: int | None = self.child.exitstatus
        return status

    def close(self) -> None:
        self.child.close(force=True)


def started(terminals: list[Terminal], *arguments: str, columns: int = 80, rows: int = 24) -> Terminal:
    """A terminal that is closed with the others of the test."""
    terminal = Terminal(*arguments, columns=columns, rows=rows)
    terminals.append(terminal)
    return terminal


def write_recipe(folder: Path, text: str) -> str:
    """The path of a recipe file made of `text`."""
    file = folder / "recipe.yaml"
    file.write_text(text)
    return str(file)
