"""Writing a reply as it should have been."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from screens.widgets.prompt import Prompt
from tuitune.language import N_, _
from tuitune.text import safe_text


class CorrectScreen(ModalScreen[str | None]):
    """The better reply; None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    CorrectScreen { align: center middle; }
    CorrectScreen > Vertical {
        width: 76; max-width: 96%; height: auto; max-height: 80%; background: $surface; border: round $primary;
    }
    CorrectScreen Prompt { height: auto; min-height: 4; }
    """

    def __init__(self, reply: str) -> None:
        super().__init__()
        self._reply = reply

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            panel.border_title = _("The reply as it should be")
            panel.border_subtitle = _("Enter keeps it · Ctrl+J breaks the line · Esc closes")
            entry = Prompt(_("the reply"), id="better")
            entry.text = safe_text(self._reply)
            yield entry

    def on_mount(self) -> None:
        entry = self.query_one(Prompt)
        entry.move_cursor(entry.document.end)
        entry.focus()

    @on(Prompt.Sent)
    def _given(self, message: Prompt.Sent) -> None:
        self.dismiss(message.text or None)
