"""The bar on top: the six steps, where the user is among them, and what the session is doing."""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static

from screens.steps import STEPS, Step, StepName
from tuitune.language import _


class StepTab(Static):
    """One step's name; a click asks to go there."""

    class Chosen(Message):
        def __init__(self, step: StepName) -> None:
            super().__init__()
            self.step = step

    def __init__(self, step: Step, number: int, current: bool) -> None:
        super().__init__(Content(f"{number} {_(step.title)}"), classes="-current" if current else "")
        self.step = step
        self.tooltip = _("Go to {title}", title=_(step.title))

    @on(Click)
    def _choose(self) -> None:
        self.post_message(self.Chosen(self.step.name))


class StepBar(Horizontal):
    """The six steps with the current one marked; `state` on the right is what the session is doing."""

    DEFAULT_CSS = """
    StepBar {
        height: 1;
        background: $panel;
        StepTab { width: auto; padding: 0 1; color: $text-muted; }
        StepTab:hover { color: $text; text-style: underline; }
        StepTab.-current { color: $button-color-foreground; background: $primary; text-style: bold; }
        #session-state { width: 1fr; text-align: right; padding: 0 1; color: $text-muted; }
    }
    """

    def __init__(self, current: StepName | None) -> None:
        super().__init__()
        self.current = current

    def compose(self) -> ComposeResult:
        for number, step in enumerate(STEPS, 1):
            yield StepTab(step, number, step.name == self.current)
        yield Static(id="session-state")

    def show_state(self, state: str) -> None:
        self.query_one("#session-state", Static).update(Content(_(state)))
