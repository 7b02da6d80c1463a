"""Asks how long and how fast a run that has begun is trained from here on."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from tuitune.language import N_, _
from tuitune.text import safe_text


class ChangeScreen(ModalScreen[tuple[str, ...] | None]):
    """A field for each of `settings` (recipe field to label and value); `field=value` for those that were changed.

    None where the user gives up or changes nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    ChangeScreen { align: center middle; }
    ChangeScreen > Vertical {
        width: 70; max-width: 96%; height: auto; padding: 1 2; background: $surface; border: round $primary;
    }
    ChangeScreen Input { border: round $foreground 40%; }
    ChangeScreen Horizontal { height: auto; align-horizontal: right; }
    ChangeScreen Button { margin-left: 2; }
    """

    def __init__(self, question: str, settings: dict[str, tuple[str, str]]) -> None:
        super().__init__()
        self._question, self._settings = question, settings

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(safe_text(self._question, max_length=400)))
            for name, (label, value) in self._settings.items():
                entry = Input(value, id=name)
                entry.border_title = Content(label)
                yield entry
            with Horizontal():
                yield Button(Content(_("Go on so")), variant="primary", id="yes")
                yield Button(Content(_("Leave as it is (Esc)")), id="no")

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self._give()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "yes":
            self._give()
        else:
            self.dismiss(None)

    def _give(self) -> None:
        values = {name: self.query_one(f"#{name}", Input).value.strip() for name in self._settings}
        changes = tuple(f"{name}={value}" for name, value in values.items() if value != self._settings[name][1])
        self.dismiss(changes or None)
