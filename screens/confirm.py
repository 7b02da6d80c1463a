"""A question that is answered with yes or no."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tuitune.language import N_, _
from tuitune.text import safe_text


class ConfirmScreen(ModalScreen[bool]):
    """Asks `question`; Esc means no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", N_("No")),
        Binding("y", "answer(True)", N_("Yes")),
        Binding("left,right", "app.focus_next", show=False),
    ]
    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen > Vertical {
        width: 70; max-width: 96%; height: auto; padding: 1 2; background: $surface; border: round $primary;
    }
    ConfirmScreen Horizontal { height: auto; margin-top: 1; align-horizontal: right; }
    ConfirmScreen Button { margin-left: 2; }
    """

    def __init__(self, question: str, yes: str = N_("Yes"), no: str = N_("No"), *, yes_first: bool = True) -> None:
        """`yes_first`: Enter means yes; False where it cannot be undone."""
        super().__init__()
        self._question, self._yes, self._no = question, yes, no
        self._yes_first = yes_first

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(safe_text(self._question, max_length=1000)))
            with Horizontal():
                yield Button(Content(f"{_(self._yes)} (y)"), variant="primary", id="yes")
                yield Button(Content(f"{_(self._no)} (n)"), id="no")

    def on_mount(self) -> None:
        self.query_one("#yes" if self._yes_first else "#no").focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
