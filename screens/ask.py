"""Asks for one line of text."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input

from tuitune.language import N_


class AskScreen(ModalScreen[str | None]):
    """A question with an answer to begin from; None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    AskScreen { align: center middle; }
    AskScreen Input { width: 60; border: round $primary; }
    """

    def __init__(self, question: str, answer: str) -> None:
        super().__init__()
        self._question, self._answer = question, answer

    def compose(self) -> ComposeResult:
        entry = Input(self._answer)
        entry.border_title = Content(self._question)
        yield entry

    @on(Input.Submitted)
    def _given(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())
