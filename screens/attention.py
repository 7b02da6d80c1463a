"""Calling for the user: the bell, the terminal's title, and a notification when the terminal is not looked at."""

from typing import Any

from textual.app import App

from tuitune.text import one_line


def set_title(app: App[Any], text: str) -> None:
    """The title of the terminal's window; `restore_title` gives the former one back."""
    _write(app, f"\x1b]2;{_payload(text)}\x07")


def keep_title(app: App[Any]) -> None:
    _write(app, "\x1b[22;2t")


def restore_title(app: App[Any]) -> None:
    _write(app, "\x1b[23;2t")


def call(app: App[Any], text: str) -> None:
    """Ring, and notify through OSC 9 and OSC 777 where nobody looks."""
    app.bell()
    if not app.app_focus:
        said = _payload(text)
        _write(app, f"\x1b]9;{said}\x07\x1b]777;notify;tuitune;{said}\x07")


def _payload(text: str) -> str:
    """What may stand inside a control sequence: one line without controls or the separators of OSC 777."""
    return one_line(text, max_length=120).replace(";", ",")


def _write(app: App[Any], sequence: str) -> None:
    driver = app._driver
    if driver is not None and not app.is_headless:
        driver.write(sequence)
        driver.flush()
