"""Help on a screen: the focused field, its keys, what the step does, its words, and the keys of every screen."""

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

from screens.actions import available, key_name
from screens.glossary import words_on
from screens.steps import STEP

if TYPE_CHECKING:
    from screens.step_screen import WalkScreen


class HelpScreen(ModalScreen[None]):
    """Explains a step screen; any of Esc, Enter, F1 and ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,f1,question_mark,q", "dismiss", "Close")]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll {
        width: 76; max-width: 96%; height: auto; max-height: 90%;
        background: $surface; border: round $primary; padding: 1 2;
    }
    HelpScreen Static { margin-bottom: 1; }
    """

    def __init__(self, step_screen: "WalkScreen", focused: Widget | None) -> None:
        super().__init__()
        self._step_screen = step_screen
        self._focused = focused

    def compose(self) -> ComposeResult:
        name = self._step_screen.STEP
        step = STEP[name] if name else None
        with VerticalScroll() as panel:
            panel.border_title = f"{step.title}: help" if step else "Help"
            panel.border_subtitle = "Esc closes"
            if self._focused is not None and isinstance(self._focused.tooltip, str | Content):
                yield Static(Content.assemble(("This field  ", "bold"), Content(str(self._focused.tooltip))))
            here, elsewhere = self._lines()
            yield Static(Content("\n").join(here))
            if about := step.about if step else self._step_screen.ABOUT:
                yield Static(Content(about))
            words = [
                Content.assemble((word, "bold"), f": {meaning}") for word, meaning in words_on(self._step_screen.STEP)
            ]
            yield Static(Content("\n").join([Content.styled("Words", "bold $text-accent"), *words]))
            yield Static(Content("\n").join([Content.styled("Everywhere", "bold $text-accent"), *elsewhere]))

    def _lines(self) -> tuple[list[Content], list[Content]]:
        """What can be done on this screen, and everywhere; with the keys first, then what the palette alone has."""
        here: list[Content] = []
        elsewhere: list[Content] = []
        for action, node in available(self._step_screen):
            why_not = self._step_screen.why_not(action.name)
            key = key_name(action) if action.key else "palette"
            text = f"{action.label}: {action.help}" + (f" Not now: {why_not}" if why_not else "")
            lines = elsewhere if node is self._step_screen.app else here
            lines.append(Content.assemble((f"{key:<9}", "bold"), text))
        return here, elsewhere
