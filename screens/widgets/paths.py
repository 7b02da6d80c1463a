"""Giving a path: with completion in the line, or by picking from a tree."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from rich.text import Text, TextType
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import DirectoryTree, Input, Static

from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.text import one_line

_LOOKED_AT = 2000


class PathSuggester(Suggester):
    """Completes the last part of a path with the first entry that begins so."""

    def __init__(self, suits: Callable[[Path], bool]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._suits = suits

    async def get_suggestion(self, value: str) -> str | None:
        folder, _, start = value.rpartition("/")
        place = os.path.expanduser(f"{folder}/" if "/" in value else ".")  # noqa: ASYNC240
        if not start:
            return None
        try:
            with os.scandir(place) as entries:
                names = [
                    entry.name + ("/" if entry.is_dir() else "")
                    for entry, _ in zip(entries, range(_LOOKED_AT), strict=False)
                    if entry.name.startswith(start) and (entry.is_dir() or self._suits(Path(entry.name)))
                ]
        except OSError:
            return None
        name = min((name for name in names if one_line(name) == name), default=None)
        return None if name is None else value[: len(value) - len(start)] + name


class _Tree(DirectoryTree):
    """A tree of folders and the files that suit; names are shown as text, never as markup."""

    def __init__(self, folder: Path, suits: Callable[[Path], bool]) -> None:
        super().__init__(folder)
        self._suits = suits

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [path for path in paths if not path.name.startswith(".") and (path.is_dir() or self._suits(path))]

    def process_label(self, label: TextType) -> Text:
        return Text(one_line(label, max_length=200))


class PickPath(ModalScreen[Path | None]):
    """Asks for a file by a line with completion and by a tree; None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    PickPath { align: center middle; }
    PickPath > Vertical { width: 76; height: 90%; padding: 0 1; background: $surface; border: round $primary; }
    PickPath DirectoryTree { height: 1fr; margin-top: 1; background: transparent; }
    """

    def __init__(self, title: str, folder: Path, suits: Callable[[Path], bool]) -> None:
        super().__init__()
        self._title, self._folder, self._suits = title, folder, suits

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            panel.border_title = Content(self._title)
            panel.border_subtitle = _("Enter picks · Tab moves · Esc closes")
            yield Input(placeholder=_("path"), suggester=PathSuggester(self._suits), compact=True)
            yield _Tree(self._folder, self._suits)
            yield Static(id="picked")

    @on(Input.Changed)
    def _typed(self) -> None:
        self.query_one("#picked", Static).update("")

    @on(Input.Submitted)
    def _given(self, event: Input.Submitted) -> None:
        path = expanded(event.value.strip())
        if event.value.strip() and os.path.isfile(path):  # a `Path` raises where a name is too long
            self.dismiss(path)
            return
        problem = _("That is a folder: give a file in it.") if os.path.isdir(path) else _("There is no such file.")
        self.query_one("#picked", Static).update(Content(problem))

    @on(DirectoryTree.FileSelected)
    def _picked(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(event.path)


def has_suffix(*suffixes: str) -> Callable[[Path], bool]:
    """Whether a path ends in one of the suffixes, a compression's aside."""
    return lambda path: path.name.lower().removesuffix(".gz").endswith(suffixes)
