"""`NO_COLOR` on a real pty: no colour leaves the app, and focus, choice and trained tokens are told all the same."""

import re

import pytest

from tests.terminal.terminal import Terminal

_STYLES = re.compile(rb"\x1b\[([0-9;:]*)m")


def reversed_text(terminal: Terminal) -> str:
    """What the screen shows with foreground and background exchanged, line by line."""
    columns = range(terminal.screen.columns)
    lines = (terminal.screen.buffer[row] for row in range(terminal.screen.lines))
    return "\n".join("".join(line[x].data for x in columns if line[x].reverse) for line in lines)


def test_no_colour_leaves_the_app_and_nothing_is_lost_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal("demo")
    try:
        terminal.until("models ·")
        terminal.until(lambda text: "┏" in text and "demo_model" in text)  # the heavy border has the focus
        terminal.until(lambda _: "1 Model" in reversed_text(terminal))
        terminal.press("\x1b[B")  # from the field to the line in it
        terminal.until(lambda text: any("┏" in line and "models ·" in line for line in text.splitlines()))
        terminal.until(lambda text: "demo_model" in reversed_text(terminal), seconds=10)
        terminal.press("\x1b[B")
        terminal.until(lambda text: "Llama-3.2-1B-Instruct" in reversed_text(terminal), seconds=10)
        terminal.press("\x1b[A")
        terminal.until(lambda text: "demo_model" in reversed_text(terminal), seconds=10)
        terminal.press("\r")
        terminal.until(lambda text: "tokens trained" in text and "▸" in text)
        terminal.until(lambda _: "2 Data" in reversed_text(terminal) and "1 Model" not in reversed_text(terminal))
        terminal.press("\x11")
        assert terminal.exit_status() == 0
    finally:
        terminal.close()
    attributes = {code for style in _STYLES.findall(terminal.raw) for code in re.split(rb"[;:]", style)}
    assert attributes <= {b"", b"0", b"1", b"2", b"3", b"4", b"7", b"9"}, attributes
