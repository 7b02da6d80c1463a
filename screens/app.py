"""The app: shows one step at a time, and how it looks."""

import asyncio
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from textual import on
from textual.app import App
from textual.binding import Binding
from textual.color import Color
from textual.events import Resize
from textual.filter import LineFilter, Monochrome, NoColor
from textual.geometry import Size
from textual.screen import Screen
from textual.theme import Theme
from textual.worker import Worker, WorkerState

from screens import attention
from screens.actions import ACTIONS, bind, key_name, name_of
from screens.appearance import HARMLESS, SAFE_DARK, SAFE_LIGHT, Ascii, Plain
from screens.draft import Draft
from screens.line_breaks import break_wide_text
from screens.palette import ActionProvider
from screens.run_link import RunLink
from screens.step_screen import WalkScreen
from screens.steps import STEP_NAMES, StepName
from screens.too_small import TooSmall, fits
from screens.widgets.step_bar import StepBar
from tuitune.errors import explain
from tuitune.language import N_, _, language, use_ascii
from tuitune.runs.events import Failed
from tuitune.runs.folder import Run
from tuitune.settings import Settings, settings_file
from tuitune.text import one_line, safe_text

if TYPE_CHECKING:
    from screens.chat import ChatScreen
    from tuitune.recipe import Recipe


ScreenName = StepName | Literal["home", "history"]
_RECENT_SECONDS = 30.0


class TuituneApp(App[int]):
    """The six-step assistant. `link` holds the draft, the session and the run on show."""

    TITLE = "tuitune"
    CSS_PATH = "app.tcss"
    COMMANDS = {ActionProvider}  # noqa: RUF012
    BINDINGS = bind("leave", "endings", *(f"show_{step}" for step in STEP_NAMES))
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    def __init__(
        self,
        recipe: "Recipe | None" = None,
        *,
        runs_folder: Path,
        attach: Run | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        break_wide_text()
        self.settings = settings or Settings()
        use_ascii(self.settings.ascii)
        for theme in (SAFE_DARK, SAFE_LIGHT):
            self.register_theme(theme)
        if self.settings.theme in self.available_themes:
            self.theme = self.settings.theme
        if self.settings.reduced_motion:
            self.animation_level = "none"
        self.started_with_recipe = recipe is not None
        self.link = RunLink(self, recipe, runs_folder, attach)
        self._wanted_step: ScreenName | None = None

    # --- starting and leaving ---------------------------------------------------------------------------------

    def on_mount(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit, 0)
        self.link.open()
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        attention.keep_title(self)
        attention.set_title(self, "tuitune")
        self.call_later(self._show_first)  # until the app is mounted, all that is drawn is thrown away

    async def _show_first(self) -> None:
        first: ScreenName = "model" if self.started_with_recipe else "home"
        await self.push_screen(self._screen("train" if self.link.run else first))
        await self._suit(self.size)  # the first size may have been told of before there was a screen
        self.call_after_refresh(self.link.begin)  # what need not be done before the first paint

    async def on_unmount(self) -> None:
        attention.restore_title(self)
        await self.link.close()

    def action_leave(self) -> None:
        self.exit(0)

    def action_help_quit(self) -> None:
        """Say what Ctrl+C does; called where no text is selected for it to copy."""
        leave, stop = key_name(ACTIONS["leave"]), key_name(ACTIONS["start_stop"])
        text = _("Ctrl+C copies what is selected and ends nothing. {leave} leaves the app.", leave=leave)
        if self.link.is_training:
            text = _(
                "Ctrl+C copies what is selected and ends nothing. {leave} leaves the app; the run goes on then. "
                "{stop} on its dashboard stops it.",
                leave=leave,
                stop=stop,
            )
        self.notify(text, markup=False)

    def action_endings(self) -> None:
        from screens.endings import EndingsScreen

        if self.screen is self.step_screen:
            self.push_screen(EndingsScreen(self.link, self.settings))

    def notify_problem(self, error: BaseException | str) -> None:
        text = explain(error) if isinstance(error, BaseException) else error
        self.notify(text, severity="error", markup=False, timeout=10)

    @on(Worker.StateChanged)
    def tell_of_failure(self, event: Worker.StateChanged) -> None:
        """Show the error of a failed worker that nobody else handled, in a sentence and never as a traceback."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.log.error(event.worker.error)
            self.notify_problem(event.worker.error)

    def get_key_display(self, binding: Binding) -> str:
        """A key as footer and help both name it."""
        return name_of(binding.key)

    # --- how it looks -----------------------------------------------------------------------------------------

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = [HARMLESS, *super().get_line_filters()]
        if self.no_color:
            filters = [line_filter for line_filter in filters if not isinstance(line_filter, Monochrome | NoColor)] + [
                Plain(Color.parse(self.theme_variables["background"]))
            ]
        return [*filters, Ascii()] if self.settings.ascii else filters

    def _keep_theme(self, theme: Theme) -> None:
        self.settings.theme = theme.name
        self.settings.save()

    async def changed_language(self) -> None:
        """Keep the language that was chosen, and have what is shown beside home made again in it."""
        self.settings.language = language()
        self.settings.save()
        await self._forget("history", "model", "data", "lora", "train", "export")
        if self.is_screen_installed("step-chat"):
            cast("ChatScreen", self.get_screen("step-chat")).change_language()  # what was said there stays

    def action_toggle_ascii(self) -> None:
        use_ascii(not self.settings.ascii)
        self._toggle("ascii", N_("ASCII only"), N_("Lines and glyphs"))
        self.post_message(RunLink.RunChanged())  # what the run costs is worded anew

    def action_toggle_motion(self) -> None:
        self._toggle("reduced_motion", N_("No animation"), N_("Animations"))
        self.animation_level = "none" if self.settings.reduced_motion else "full"

    def action_toggle_notifications(self) -> None:
        self._toggle("notifications", N_("A run's end is notified"), N_("A run's end is not notified"))

    def _toggle(self, setting: str, on: str, off: str) -> None:
        value = not getattr(self.settings, setting)
        setattr(self.settings, setting, value)
        self.settings.save()
        self.notify(_(on) if value else _(off))
        self.refresh_css(animate=False)
        self.screen.refresh(layout=True)

    # --- the steps --------------------------------------------------------------------------------------------

    def _screen(self, step: ScreenName) -> Screen[Any]:
        """The screen of a step or of Home, made and its module imported when it is first shown."""
        name = f"step-{step}"
        if not self.is_screen_installed(name):
            self.install_screen(_made(step), name)
        return self.get_screen(name)

    async def show_step(self, step: ScreenName) -> None:
        """Go to a step, if it can be gone to; else say why not."""
        if why_not := self.why_not_step(step):
            self.notify(why_not, severity="warning", markup=False)
            return
        if isinstance(self.screen, TooSmall):
            self._wanted_step = step
            return
        while len(self.screen_stack) > 2:
            await self.pop_screen()
        await self.switch_screen(self._screen(step))

    def why_not_step(self, step: ScreenName) -> str | None:
        from tuitune.train.checkpoints import checkpoints_of  # and with it hashlib: not before the first paint

        link = self.link
        match step:
            case "train" if link.run is None and not link.is_training:
                return _("There is no run yet: start it from the settings.")
            case "chat" | "export" if link.run is None:
                return _("There is nothing trained yet: start a run from the settings.")
            case "chat" | "export" if link.is_training:
                return _("The run is still training: this opens when it has finished.")
            case "chat" | "export" if link.run and not link.run.adapter.is_dir() and not checkpoints_of(link.run):
                return _("This run has no adapter: it ended before one was saved.")
        return None

    async def action_show_home(self) -> None:
        await self.show_step("home")

    async def action_show_history(self) -> None:
        await self.show_step("history")

    async def action_show_model(self) -> None:
        await self.show_step("model")

    async def action_show_data(self) -> None:
        await self.show_step("data")

    async def action_show_lora(self) -> None:
        await self.show_step("lora")

    async def action_show_train(self) -> None:
        await self.show_step("train")

    async def action_show_chat(self) -> None:
        await self.show_step("chat")

    async def action_show_export(self) -> None:
        await self.show_step("export")

    @property
    def step_screen(self) -> WalkScreen | None:
        """The step, or Home, that is shown, whatever lies over it."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, WalkScreen)), None)

    async def on_resize(self, event: Resize) -> None:
        await self._suit(event.size)

    async def _suit(self, size: Size) -> None:
        """Cover the screens in a terminal that is too small for them, and uncover them in one that is not."""
        small = isinstance(self.screen, TooSmall)
        if not fits(size) and not small:
            await self.push_screen(TooSmall())
        elif fits(size) and small:
            await self.pop_screen()
            if self._wanted_step:
                step, self._wanted_step = self._wanted_step, None
                await self.show_step(step)

    # --- the run and its session ------------------------------------------------------------------------------

    async def new_run(self, recipe: "Recipe | None", step: StepName = "model") -> None:
        """Begin choosing, at `step`: a recipe's fields, or none."""
        self.link.draft = Draft(recipe)
        await self._forget_choices()
        await self.show_step(step)

    async def open_run(self, folder: Path) -> None:
        """Show a run: a live one through its session, another one from its record. Raises UnusableInput."""
        if await self.link.show(Run(folder)):
            await self._forget_choices()
        await self.show_step("train")

    async def start_run(self) -> None:
        """Train the draft. Raises UnusableInput before anything is started."""
        self.link.start_run()
        await self._forget("chat", "export")  # what was said and made there belongs to the run before

    async def moved_run(self, folder: Path, run: Run | None) -> None:
        """A run has moved from `folder`, or was deleted (None): where it is the one on show, follow it."""
        if self.link.moved(folder, run):
            await self._forget("chat", "export")

    async def _forget_choices(self) -> None:
        """Have the screens that show the draft or the run made again from the new ones."""
        await self._forget("model", "data", "lora", "chat", "export")

    async def _forget(self, *steps: ScreenName) -> None:
        for step in steps:
            if self.is_screen_installed(name := f"step-{step}") and not self.get_screen(name).is_current:
                await self.get_screen(name).remove()
                self.uninstall_screen(name)

    @on(RunLink.StateChanged)
    def _show_state(self) -> None:
        screen = self.step_screen
        if screen and screen.query(StepBar):  # of which it has none before it is composed, and while the app ends
            screen.show_state()

    @on(RunLink.RunChanged)
    def _pass_on(self) -> None:
        for screen in self.screen_stack:  # of which there is none while the app ends
            if screen is self.step_screen or isinstance(screen, TooSmall):
                screen.post_message(RunLink.RunChanged())

    @on(RunLink.NotReached)
    def _tell_why(self, message: RunLink.NotReached) -> None:
        self.notify_problem(message.error)

    @on(RunLink.Lost)
    def _tell_of_loss(self, message: RunLink.Lost) -> None:
        """Say that the session was lost, unless the dashboard or the caller that waited for an answer says it."""
        on_dashboard = message.training and self.step_screen is not None and self.step_screen.STEP == "train"
        if not on_dashboard and (message.training or not message.told):
            self.notify_problem(_("{ending}; a new one is being started.", ending=message.ending))

    @on(RunLink.RunEnded)
    def _call_user(self, message: RunLink.RunEnded) -> None:
        """A run has ended: say so to someone who looks elsewhere, unless it ended before the app came."""
        state = "failed" if isinstance(message.event, Failed) else message.event.status
        text = _("{run} {state}", run=message.run or _("the run"), state=_(state))
        attention.set_title(self, f"tuitune: {text}")
        if self.settings.notifications and time.time() - message.event.at < _RECENT_SECONDS:
            attention.call(self, text)

    @on(RunLink.EndingTold)
    def _show_countdown(self, message: RunLink.EndingTold) -> None:
        """Show on every screen the command that is about to be run; once it runs it cannot be cancelled."""
        from screens.endings import CountdownScreen

        shown = next((screen for screen in self.screen_stack if isinstance(screen, CountdownScreen)), None)
        ending = message.ending
        if ending is None or ending["state"] == "running":
            if shown is not None:
                shown.close()
        elif shown is not None:
            shown.show(ending)
        elif ending["state"] == "counting" and not isinstance(self.screen, TooSmall):
            self.push_screen(CountdownScreen(self.link, ending))


def _made(step: ScreenName) -> WalkScreen:
    """A new screen of a step or of Home; its module is imported when it is first made."""
    match step:
        case "home":
            from screens.home import HomeScreen

            return HomeScreen()
        case "history":
            from screens.history import HistoryScreen

            return HistoryScreen()
        case "model":
            from screens.model import ModelScreen

            return ModelScreen()
        case "data":
            from screens.data import DataScreen

            return DataScreen()
        case "lora":
            from screens.lora import LoraScreen

            return LoraScreen()
        case "train":
            from screens.train import TrainScreen

            return TrainScreen()
        case "chat":
            from screens.chat import ChatScreen

            return ChatScreen()
        case "export":
            from screens.export import ExportScreen

            return ExportScreen()


def watch_terminal(fileno: int) -> None:
    """End this process at once when its terminal goes away; the session and its run live on.

    Poll with no events asked for wakes only on a hang-up, where reading would spin.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(fileno, 0)
        poll.poll()
        os._exit(129)

    threading.Thread(target=watch, name="terminal", daemon=True).start()


def run_app(
    recipe: "Recipe | None",
    runs_folder: Path,
    attach: Run | None,
    *,
    ascii_only: bool = False,
    reduced_motion: bool = False,
) -> int:
    """Show the app until the user leaves it; the exit code of the command.

    `ascii_only` and `reduced_motion` add to what the user's settings say.
    """
    watch_terminal(sys.stdin.fileno())
    gc.freeze()  # what is imported stays
    for name in ("COLUMNS", "LINES"):  # what a shell exported is no longer true once the window is resized
        os.environ.pop(name, None)
    settings = Settings.load(settings_file())
    settings.ascii |= ascii_only
    settings.reduced_motion |= reduced_motion
    app = TuituneApp(recipe, runs_folder=runs_folder, attach=attach, settings=settings)
    result = app.run()
    if (run := app.link.run) is not None and app.link.is_training:
        from tuitune.commands.viewer import own_command

        back = own_command("attach", run.folder)
        text = _("Run {run} goes on. Come back to it with: {command}", run=one_line(run.name), command=back)
        print(text)  # wrapped by nothing
    elif run is not None and (ending := app.link.ending) is not None and ending["state"] == "counting":
        from tuitune.commands.viewer import own_command

        cancels = own_command("then", run.folder, "--cancel")
        text = _(
            "In {seconds:.0f} s this is run: {command}. To cancel it: {cancels}",
            seconds=ending["seconds"] or 0,
            command=safe_text(ending["command"]),
            cancels=cancels,
        )
        print(text)
    return result if result is not None else app.return_code or 0
