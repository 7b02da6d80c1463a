"""Calling for the user: the bell, the terminal's title, and a notification when the terminal is not looked at."""

from typing import Any

from textual.app import App

from tuitune.endings import terminal


def set_title(app: App[Any], text: str) -> None:
    """The title of the terminal's window; `restore_title` gives the former one back."""
    _write(app, terminal.title(text))


def keep_title(app: App[Any]) -> None:
    _write(app, "\x1b[22;2t")


def restore_title(app: App[Any]) -> None:
    _write(app, "\x1b[23;2t")


def call(app: App[Any], text: str) -> None:
    """Ring, and have the terminal notify where nobody looks."""
    app.bell()
    if not app.app_focus:
        _write(app, terminal.notification(text))


def _write(app: App[Any], sequence: str) -> None:
    driver = app._driver
    if driver is not None and not app.is_headless:
        driver.write(sequence)
        driver.flush()
