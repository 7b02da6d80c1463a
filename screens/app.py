"""The app: holds the draft recipe, the session and the run's history, and shows one step at a time."""

import asyncio
import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual import on
from textual.app import App
from textual.binding import Binding
from textual.color import Color
from textual.events import Resize
from textual.filter import LineFilter, Monochrome, NoColor
from textual.message import Message
from textual.screen import Screen
from textual.theme import Theme
from textual.worker import Worker, WorkerState

from screens import attention
from screens.actions import ActionProvider, bind, name_of
from screens.appearance import HARMLESS, SAFE_DARK, SAFE_LIGHT, Ascii, Plain
from screens.draft import Draft
from screens.settings import Settings, settings_file
from screens.steps import StepName
from screens.too_small import TooSmall, fits
from tuitune.errors import TuituneError, explain
from tuitune.events import Event, Failed, Finished, Started
from tuitune.history import History
from tuitune.run import Run, all_runs
from tuitune.session.client import Session, SessionLost
from tuitune.text import one_line

if TYPE_CHECKING:
    from screens.home import HomeScreen
    from screens.step_screen import StepScreen
    from tuitune.recipe import Recipe


ScreenName = StepName | Literal["home"]
AGAIN = "Enter on the settings trains again."
_RECENT_SECONDS = 30.0
_REDRAW_SECONDS = 0.2
_SPARED_STEPS = 5_000


class TuituneApp(App[int]):
    """The six-step assistant. `session` works in the background; `history` is what is known of `run`."""

    TITLE = "tuitune"
    CSS_PATH = "app.tcss"
    COMMANDS = {ActionProvider}  # noqa: RUF012
    BINDINGS = bind("leave")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    class RunChanged(Message):
        """New events of the run, or a new run."""

    class RecordRead(Message):
        """The whole history of a run that no session holds."""

        def __init__(self, history: History) -> None:
            super().__init__()
            self.history = history

    def __init__(
        self,
        recipe: "Recipe | None" = None,
        *,
        runs_folder: Path,
        attach: Run | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or Settings()
        for theme in (SAFE_DARK, SAFE_LIGHT):
            self.register_theme(theme)
        if self.settings.theme in self.available_themes:
            self.theme = self.settings.theme
        if self.settings.reduced_motion:
            self.animation_level = "none"
        self.runs_folder = runs_folder
        self.draft = Draft(recipe)
        self.started_with_recipe = recipe is not None
        self.run_shown: Run | None = attach
        self.history = History()
        self.session_state = "starting…"
        self.run_problem: str | None = None
        """Why the run could not start or went on no longer, where no event says it."""
        self._wanted_step: ScreenName | None = None

    # --- starting and leaving ---------------------------------------------------------------------------------

    async def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.exit, 0)
        self._session: asyncio.Future[Session] = loop.create_future()
        if self.run_shown is None and not self.started_with_recipe:
            self.run_shown = next((run for run in all_runs(self.runs_folder)[:20] if run.is_live()), None)
        first: ScreenName = "model" if self.started_with_recipe else "home"
        await self.push_screen(self._screen("train" if self.run_shown else first))
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        attention.keep_title(self)
        attention.set_title(self, "tuitune")
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """What need not be done before the first paint."""
        if self.run_shown is not None:
            with contextlib.suppress(TuituneError):  # its record can be shown all the same
                self.draft = Draft(self.run_shown.recipe())
        self._start()

    def _start(self) -> None:
        """Start or reach a session, and keep it."""
        self._keeper = self.run_worker(self._keep_session(), name="session", exit_on_error=False)

    async def on_unmount(self) -> None:
        """Let the session go: a run goes on, an idle session ends."""
        attention.restore_title(self)
        if self._session.done() and self._session.exception() is None:
            await self._session.result().close()

    def action_leave(self) -> None:
        self.exit(0)

    def notify_problem(self, error: BaseException | str) -> None:
        text = explain(error) if isinstance(error, BaseException) else error
        self.notify(text, severity="error", markup=False, timeout=10)

    @on(Worker.StateChanged)
    def _worker_failed(self, event: Worker.StateChanged) -> None:
        """What no screen took care of is said, and never shown as a traceback."""
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
            filters = [each for each in filters if not isinstance(each, Monochrome | NoColor)] + [
                Plain(Color.parse(self.theme_variables["background"]))
            ]
        return [*filters, Ascii()] if self.settings.ascii else filters

    def _keep_theme(self, theme: Theme) -> None:
        self.settings.theme = theme.name
        self.settings.save()

    def action_toggle_ascii(self) -> None:
        self._toggle("ascii", "ASCII only", "Lines and glyphs")

    def action_toggle_motion(self) -> None:
        self._toggle("reduced_motion", "No animation", "Animations")
        self.animation_level = "none" if self.settings.reduced_motion else "full"

    def action_toggle_notifications(self) -> None:
        self._toggle("notifications", "A run's end is notified", "A run's end is not notified")

    def _toggle(self, setting: str, on: str, off: str) -> None:
        value = not getattr(self.settings, setting)
        setattr(self.settings, setting, value)
        self.settings.save()
        self.notify(on if value else off)
        self.refresh_css(animate=False)
        self.screen.refresh(layout=True)

    # --- the steps --------------------------------------------------------------------------------------------

    def _screen(self, step: ScreenName) -> Screen[Any]:
        """The screen of a step or of Home, made and its module imported when it is first shown."""
        name = f"step-{step}"
        if not self.is_screen_installed(name):
            match step:
                case "home":
                    from screens.home import HomeScreen as Made
                case "model":
                    from screens.model import ModelScreen as Made  # type: ignore[assignment]
                case "data":
                    from screens.data import DataScreen as Made  # type: ignore[assignment]
                case "lora":
                    from screens.lora import LoraScreen as Made  # type: ignore[assignment]
                case "train":
                    from screens.train import TrainScreen as Made  # type: ignore[assignment]
                case "chat":
                    from screens.chat import ChatScreen as Made  # type: ignore[assignment]
                case "export":
                    from screens.export import ExportScreen as Made  # type: ignore[assignment]
            self.install_screen(Made(), name)
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
        match step:
            case "train" if self.run_shown is None and not self.is_training:
                return "There is no run yet: start it from the settings."
            case "chat" | "export" if self.run_shown is None:
                return "There is nothing trained yet: start a run from the settings."
            case "chat" | "export" if self.is_training:
                return "The run is still training: this opens when it has finished."
            case "chat" | "export" if not (self.run_shown and self.run_shown.adapter.is_dir()):
                return "This run has no adapter: it ended before one was saved."
        return None

    async def action_show_home(self) -> None:
        await self.show_step("home")

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
    def step_screen(self) -> "StepScreen | HomeScreen | None":
        """The step, or Home, that is shown, whatever lies over it."""
        return next((screen for screen in reversed(self.screen_stack) if hasattr(screen, "show_state")), None)

    async def on_resize(self, event: Resize) -> None:
        small = isinstance(self.screen, TooSmall)
        if not fits(event.size) and not small:
            await self.push_screen(TooSmall())
        elif fits(event.size) and small:
            await self.pop_screen()
            if self._wanted_step:
                step, self._wanted_step = self._wanted_step, None
                await self.show_step(step)

    # --- the session ------------------------------------------------------------------------------------------

    async def _keep_session(self) -> None:
        """Start or reach the session, follow its run, and say so when it is lost."""
        try:
            session = await self._reach_session()
        except (TuituneError, OSError) as error:
            self._session.set_exception(error)
            self._session.exception()  # each caller of `call` is told; none of them may have come yet
            self._set_state("no session")
            self.notify_problem(error)
            return
        self._session.set_result(session)
        while not session.lost.is_set():
            try:
                status = await session.call("status")
            except TuituneError:
                break
            if status["ready"]:
                break
            self._set_state("loading libraries…")
            await asyncio.sleep(0.3)
        self._set_state("ready")
        await session.lost.wait()
        self._set_state("session lost")
        self._session = asyncio.get_running_loop().create_future()
        said = self._asking > 0
        if self.is_training:
            said = getattr(self.step_screen, "STEP", None) == "train"
            self.run_problem = f"The session process has ended unexpectedly. {self.what_is_saved()} {AGAIN}"
            self.post_message(self.RunChanged())
        if not said:
            self.notify_problem("The session process has ended unexpectedly; a new one is being started.")
        self.call_later(self._start)

    async def _reach_session(self) -> Session:
        run = self.run_shown
        if run is None or not run.is_live():
            if run is not None:
                self.run_worker(self._reading(run), thread=True, exit_on_error=False)
            return await Session.start()
        session = await Session.attach(run)
        self._live = True
        await session.follow(self._receive)
        return session

    async def new_run(self, recipe: "Recipe | None") -> None:
        """Begin choosing: a recipe's fields, or none."""
        self.draft = Draft(recipe)
        await self._forget_choices()
        await self.show_step("model")

    async def open_run(self, folder: Path) -> None:
        """Show a run: a live one through its session, another one from its record. Raises UnusableInput."""
        run = Run(folder)
        if self.run_shown != run:
            draft, busy = Draft(run.recipe()), self.is_training
            self.run_shown, self.history, self.run_problem, self._live = run, History(), None, False
            self.draft = draft
            await self._forget_choices()
            if run.is_live() or busy:
                await self.change_session()
            else:
                self.run_worker(self._reading(run), thread=True, exit_on_error=False)
        await self.show_step("train")

    async def _forget_choices(self) -> None:
        """Have the screens that show the draft or the run made again from the new ones."""
        await self._forget("model", "data", "lora", "chat", "export")

    async def _forget(self, *steps: StepName) -> None:
        for step in steps:
            if self.is_screen_installed(name := f"step-{step}") and not self.get_screen(name).is_current:
                await self.get_screen(name).remove()
                self.uninstall_screen(name)

    async def change_session(self) -> None:
        """Leave this session, which goes on if it trains and else ends, for the one of the shown run."""
        self._keeper.cancel()
        if self._session.done() and self._session.exception() is None:
            await self._session.result().close()
        self._session = asyncio.get_running_loop().create_future()
        self._set_state("starting…")
        self._start()

    def what_is_saved(self) -> str:
        """What of the shown run is on disk, in one sentence."""
        run = self.run_shown
        if run is None:
            return "Nothing had been saved yet."
        if self.history.checkpoints:
            return f"Saved in {run.folder}: the checkpoint of step {self.history.checkpoints[-1].step}."
        return f"No checkpoint had been saved yet; the record is in {run.folder}."

    async def call(
        self, command: str, on_part: Callable[[dict[str, Any]], None] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """A session command, once there is a session; one that could not start is tried again. Raises TuituneError."""
        if self._session.done() and self._session.exception() is not None:
            self._session = asyncio.get_running_loop().create_future()
            self._start()
        session = await asyncio.shield(self._session)
        self._asking += 1
        try:
            return await session.call(command, on_part=on_part, **arguments)
        finally:
            self._asking -= 1

    _asking = 0
    """How many wait for the session's answer, and will say so themselves should it be lost."""

    def _set_state(self, state: str) -> None:
        if state != self.session_state:
            self.session_state = state
            if screen := self.step_screen:
                screen.show_state()

    # --- the run ----------------------------------------------------------------------------------------------

    @property
    def is_training(self) -> bool:
        """Whether the shown run is going, or about to."""
        return self._live and self.history.ended is None and self.run_problem is None

    _live = False
    """Whether the shown run's events come from a session, or will, and not from its record alone."""

    def start_run(self) -> None:
        """Train the draft. Raises UnusableInput before anything is started."""
        data = self.draft.as_data()
        self.run_shown, self.history, self.run_problem = None, History(), None
        self._live = True
        self.run_worker(self._train(data), name="train", exit_on_error=False)

    async def _train(self, recipe: dict[str, Any]) -> None:
        await self._forget("chat", "export")  # what was said and made there belongs to the run before
        try:
            await self.call("train", on_part=self._run_begun, recipe=recipe, runs=str(self.runs_folder.absolute()))
        except SessionLost:
            pass  # said by whoever keeps the session
        except TuituneError as error:
            self.run_problem = str(error)
        finally:
            self.post_message(self.RunChanged())

    def _run_begun(self, part: dict[str, Any]) -> None:
        self.run_shown = Run(Path(part["run"]))
        self.run_worker(self._session.result().follow(self._receive), name="follow", exit_on_error=False)

    def _receive(self, event: Event) -> None:
        """Take an event of the session's run in; called in the event loop, possibly many times a second."""
        if isinstance(event, Started) and event.attempt == 1:
            self.history = History()
        self.history.add(event)
        if isinstance(event, Finished | Failed):
            self._call_user(event)
        if not self._changed:
            self._changed = True
            self.set_timer(_REDRAW_SECONDS, self._tell_of_change)

    def _call_user(self, event: Finished | Failed) -> None:
        """A run has ended: say so to someone who looks elsewhere, unless it ended before the app came."""
        name = self.run_shown.name if self.run_shown else "the run"
        ending = "failed" if isinstance(event, Failed) else event.status
        attention.set_title(self, f"tuitune: {name} {ending}")
        if self.settings.notifications and time.time() - event.at < _RECENT_SECONDS:
            attention.call(self, f"{name} {ending}")

    _changed = False
    _spared = 0

    def _tell_of_change(self) -> None:
        self._changed = False
        if len(self.history.steps) > self._spared + _SPARED_STEPS:
            self._spared = len(self.history.steps)
            gc.freeze()  # the garbage collector need not look at a long record again and again: it would stall keys
        if screen := self.step_screen:
            screen.post_message(self.RunChanged())

    @on(RunChanged)
    def _pass_on(self, message: RunChanged) -> None:
        if screen := self.step_screen:
            screen.post_message(message)

    def _reading(self, run: Run) -> Callable[[], bool]:
        """Thread work: read the record of a run that no session holds, then hand it over."""
        return lambda: self.post_message(self.RecordRead(run.history()))

    @on(RecordRead)
    def _use_record(self, message: RecordRead) -> None:
        self.history = message.history
        self._tell_of_change()


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
    settings = Settings.load(settings_file())
    settings.ascii |= ascii_only
    settings.reduced_motion |= reduced_motion
    app = TuituneApp(recipe, runs_folder=runs_folder, attach=attach, settings=settings)
    result = app.run()
    if app.run_shown is not None and app.is_training:
        from tuitune.headless import own_command

        back = own_command("attach", app.run_shown.folder)
        print(f"Run {one_line(app.run_shown.name)} goes on. Come back to it with: {back}")  # wrapped by nothing
    return result if result is not None else app.return_code or 0
