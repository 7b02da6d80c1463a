"""What home and the six step screens have in common: the bar, the line for problems, going on and back."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static
from textual.worker import Worker

from screens.actions import bind
from screens.steps import STEP, STEP_NAMES, StepName
from screens.widgets.footer import Footer
from screens.widgets.step_bar import StepBar, StepTab
from tuitune.errors import explain
from tuitune.language import _
from tuitune.text import safe_text

if TYPE_CHECKING:
    from screens.app import TuituneApp


class WalkScreen(Screen[None]):
    """A place of the walk, with a StepBar and a Static named `problem`."""

    STEP: ClassVar[StepName | None] = None
    """The wizard's step that this is; None on home and on what is beside the steps."""
    ABOUT: ClassVar[str] = ""
    """What its help says first, where it is no step."""

    @property
    def tuitune(self) -> "TuituneApp":
        return cast("TuituneApp", self.app)

    def show_state(self) -> None:
        """Show what the session is doing; called by the app whenever that changes."""
        self.query_one(StepBar).show_state(self.tuitune.link.state)

    def show_problem(self, problem: BaseException | str | None) -> None:
        """One sentence in the screen's line above the footer, or none."""
        line = self.query_one("#problem", Static)
        text = explain(problem) if isinstance(problem, BaseException) else problem or ""
        line.update(Content(safe_text(text, max_length=600)))
        line.display = bool(text)

    def why_not(self, action: str) -> str | None:
        """Why an action of the registry cannot be done now; None where it can."""
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return None if self.why_not(action) else True

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        """Update the footer, and show an error that the worker left unhandled."""
        self.refresh_bindings()
        self.tuitune.tell_of_failure(event)

    @on(StepTab.Chosen)
    async def _show_chosen(self, message: StepTab.Chosen) -> None:
        await self.tuitune.show_step(message.step)

    def action_explain(self) -> None:
        from screens.help import HelpScreen

        self.app.push_screen(HelpScreen(self, self.focused))


class StepScreen(WalkScreen):
    """A step of the wizard. Subclasses compose their `body` and say what `action_go_on` needs."""

    STEP: ClassVar[StepName]
    BINDINGS = bind("go_on", "go_back", "explain", "fold")

    def compose(self) -> ComposeResult:
        yield StepBar(self.STEP)
        with Vertical(id="about"):
            yield Static(Content(_(STEP[self.STEP].lead)), id="lead")
            yield Static(Content(_(STEP[self.STEP].about)), id="paragraph")
        with Vertical(id="body"):
            yield from self.body()
        yield Static(id="problem")
        yield Footer()

    def body(self) -> ComposeResult:
        raise NotImplementedError

    def on_screen_resume(self) -> None:
        self.show_state()
        self.query_one("#about").display = not self.tuitune.settings.folded

    async def action_go_on(self) -> None:
        await self.tuitune.show_step(STEP_NAMES[STEP_NAMES.index(self.STEP) + 1])

    async def action_go_back(self) -> None:
        position = STEP_NAMES.index(self.STEP)
        if position:
            await self.tuitune.show_step(STEP_NAMES[position - 1])
        else:
            await self.tuitune.action_show_home()

    def action_fold(self) -> None:
        settings = self.tuitune.settings
        settings.folded = not settings.folded
        settings.save()
        self.query_one("#about").display = not settings.folded
