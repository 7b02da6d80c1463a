"""Which files and folders a chat looks things up in."""

import os
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from screens.widgets.paths import PathSuggester
from tuitune.documents.names import is_document
from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.text import one_line


class DocumentsScreen(ModalScreen[list[Path] | None]):
    """The paths as they are to be from now on; None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", N_("Close")),
        Binding("delete", "remove", N_("Remove")),
    ]
    DEFAULT_CSS = """
    DocumentsScreen { align: center middle; }
    DocumentsScreen > Vertical {
        width: 76; max-width: 96%; height: auto; max-height: 90%; padding: 0 1;
        background: $surface; border: round $primary;
    }
    DocumentsScreen OptionList { height: auto; max-height: 8; border: none; background: transparent; margin-top: 1; }
    DocumentsScreen Static { color: $foreground 70%; margin-top: 1; }
    DocumentsScreen #wrong { color: $text-error; display: none; }
    """

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self._paths = list(paths)

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            panel.border_title = _("Documents to look things up in")
            panel.border_subtitle = _("Enter attaches, on an empty line takes them · Del removes · Esc closes")
            yield Input(placeholder=_("a file or folder"), suggester=PathSuggester(is_document), compact=True)
            yield Static(id="wrong")
            yield OptionList(markup=False)
            yield Static(
                Content(
                    _(
                        "Text, Markdown, HTML, PDF and source code. For each question the passages that fit "
                        "best are found and given to the model."
                    )
                )
            )

    def on_mount(self) -> None:
        self._show()

    def _show(self) -> None:
        shown = self.query_one(OptionList)
        shown.clear_options()
        shown.add_options([one_line(path, max_length=200) for path in self._paths])
        shown.display = bool(self._paths)

    @on(Input.Submitted)
    def _given(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not text:
            self.dismiss(self._paths)
            return
        path = expanded(text).absolute()
        wrong = self.query_one("#wrong", Static)
        wrong.display = not os.path.exists(path)  # a `Path` raises where a name is too long
        if wrong.display:
            wrong.update(Content(_("There is no such file or folder.")))
            return
        if path not in self._paths:
            self._paths.append(path)
        event.input.value = ""
        self._show()

    def action_remove(self) -> None:
        """Remove the marked path, or the last one."""
        if self._paths:
            marked = self.query_one(OptionList).highlighted
            del self._paths[marked if marked is not None else -1]
            self._show()
