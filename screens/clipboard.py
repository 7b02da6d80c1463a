"""Copying for terminals near and far: OSC 52, and a file where the terminal does not listen to it."""

from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from textual.app import App

from tuitune.language import _
from tuitune.text import safe_text


def copy(app: App[Any], text: str, what: str) -> None:
    """Copy `text` and say where else it lies, since no terminal tells whether it took it."""
    clean = safe_text(text)
    app.copy_to_clipboard(clean)
    file = user_cache_path("tuitune") / "copied.txt"
    try:
        _write(file, clean)
    except OSError:
        app.notify(_("{what} was given to the terminal's clipboard.", what=what), markup=False)
    else:
        app.notify(
            _("{what} was given to the terminal's clipboard, and is in {file}.", what=what, file=file), markup=False
        )


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
