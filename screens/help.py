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
from screens.widgets.fit import fit
from tuitune.language import N_, _

if TYPE_CHECKING:
    from screens.step_screen import WalkScreen


class HelpScreen(ModalScreen[None]):
    """Explains a step screen; any of Esc, Enter, F1 and ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,f1,question_mark,q", "dismiss", N_("Close"))]
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
            panel.border_title = _("{title}: help", title=_(step.title)) if step else _("Help")
            panel.border_subtitle = _("Esc closes")
            if self._focused is not None and isinstance(self._focused.tooltip, str | Content):
                yield Static(Content.assemble((_("This field"), "bold"), "  ", Content(str(self._focused.tooltip))))
            here, elsewhere = self._lines()
            yield Static(Content("\n").join(here))
            if about := step.about if step else self._step_screen.ABOUT:
                yield Static(Content(_(about)))
            words = [
                Content.assemble((word, "bold"), _(": {meaning}", meaning=meaning))
                for word, meaning in words_on(self._step_screen.STEP)
            ]
            yield Static(Content("\n").join([Content.styled(_("Words"), "bold $text-accent"), *words]))
            yield Static(Content("\n").join([Content.styled(_("Everywhere"), "bold $text-accent"), *elsewhere]))

    def _lines(self) -> tuple[list[Content], list[Content]]:
        """What can be done on this screen, and everywhere; with the keys first, then what the palette alone has."""
        here: list[Content] = []
        elsewhere: list[Content] = []
        for action, node in available(self._step_screen):
            why_not = self._step_screen.why_not(action.name)
            key = key_name(action) if action.key else _("palette")
            text = [_("{title}: {text}", title=_(action.label), text=_(action.help))]
            if why_not:
                text.append(_("Not now: {reason}", reason=why_not))
            lines = elsewhere if node is self._step_screen.app else here
            lines.append(Content.assemble((fit(key, 9), "bold"), " ".join(text)))
        return here, elsewhere
