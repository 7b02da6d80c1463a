"""Step 4: the run, as its events tell it."""

from collections.abc import Iterator
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.widgets import ContentSwitcher, Static

from screens.actions import bind
from screens.change import ChangeScreen
from screens.confirm import ConfirmScreen
from screens.dashboard import headline, messages, numbers, pace, phases, samples
from screens.run_link import AGAIN, RunLink
from screens.step_screen import StepScreen
from screens.widgets.metric_plot import Curves, MetricPlot, metrics_of
from screens.widgets.progress_bar import ProgressBar
from tuitune.errors import TuituneError
from tuitune.language import N_, _, in_language
from tuitune.runs.events import Failed, Finished
from tuitune.runs.folder import Run
from tuitune.runs.monitor import Monitor
from tuitune.runs.warning import RunWarning
from tuitune.session.run_requests import Change, Pause, Save
from tuitune.text import one_line, safe_text

_PANES = {"messages": N_("Messages"), "samples": N_("Sample replies"), "log": N_("Log")}
_STOP_QUESTIONS = {
    "stop": N_("Stop the run after this step? A checkpoint and the adapter are saved."),
    "now": N_("Stop the run at once? The step under way is given up, and no adapter is saved."),
}
_LOG_BYTES = 16_384
_MOST_PLOTS = 4
_LEAST_PLOT = Size(42, 10)
_NUMBERS_WIDTH = 30


class _Middle(Horizontal):
    """Curves and figures side by side, which tells when its room has changed: how much is shown depends on that."""

    class Resized(Message):
        """The room for curves and figures is another one."""

    def on_resize(self) -> None:
        self.post_message(self.Resized())


class TrainScreen(StepScreen):
    """The dashboard: a pure drawing of the run's history, and the tail of its log."""

    STEP = "train"
    CSS_PATH = "train.tcss"
    BINDINGS = bind(
        *("start_stop", "resume", "pause", "change", "save_checkpoint"),
        *("next_metric", "next_pane", "replies_before", "replies_after"),
    )

    class LogRead(Message):
        """The end of the run's log, read in a thread."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[str, Content] = {}
        self._state: tuple[object, ...] = ()
        self._stopping: dict[tuple[Run | None, int], str] = {}
        """What is said of an attempt of a run that was asked to stop here."""
        self._pane_chosen = False
        self._front = ""
        """The pane that has come to the front by itself."""
        self._curves = Curves()
        self._first_metric = 0
        self._monitor = Monitor()
        self._warnings: list[RunWarning] = []
        self._replies: tuple[Run | None, int | None] = (None, None)
        """The run and the step whose sample replies were chosen; the newest where it is None or another run."""

    def body(self) -> ComposeResult:
        yield Static(id="headline")
        with Horizontal(id="progress"):
            yield ProgressBar(id="bar")
            yield Static(id="pace")
        with _Middle(id="middle"):
            yield Static(id="phases")
            with Grid(id="plots"):
                for _plot in range(_MOST_PLOTS):
                    yield MetricPlot(self._curves)
            yield Static(id="numbers")
        with ContentSwitcher(id="lower", initial="messages"):
            for pane in _PANES:
                with VerticalScroll(id=pane):
                    yield Static(id=f"{pane}-text")

    def on_mount(self) -> None:
        self._title_pane()
        self.set_interval(1, self._tick)

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.draw()

    @on(_Middle.Resized)
    @on(RunLink.RunChanged)
    def _changed(self) -> None:
        self.draw()

    def _tick(self) -> None:
        """What moves by the clock and not by events."""
        if self.is_current and self.tuitune.link.is_training:
            self._draw_headline()
            if self.query_one("#lower", ContentSwitcher).current == "log":
                self._read_log()

    def _draw_headline(self) -> None:
        link = self.tuitune.link
        self._put(
            "headline",
            headline(
                link.history,
                link.run,
                is_training=link.is_training,
                problem=link.problem,
                stopping=self._stopping.get(self._attempt),
                warnings=self._warnings,
                width=self.query_one("#headline").size.width,
            ),
        )

    def _put(self, name: str, content: Content, *, layout: bool = False) -> None:
        """Show the content in a Static, unless it shows it already; with `layout` where its size may change."""
        if self._drawn.get(name) != content:
            self._drawn[name] = content
            self.query_one(f"#{name}", Static).update(content, layout=layout)

    def draw(self) -> None:
        """Show the history as it now is."""
        link, history = self.tuitune.link, self.tuitune.link.history
        self._warnings = self._monitor.warnings(link.run, history)
        self._draw_headline()
        bar = self.query_one(ProgressBar)
        bar.display = bool(history.total_steps)
        bar.update(total=history.total_steps or 1, progress=history.step)
        self._put("pace", pace(history, problem=link.problem))
        plots, listed = self.query_one("#plots", Grid), self.query_one("#phases", Static)
        plots.display = bool(history.steps)
        listed.display = not plots.display
        if plots.display:
            self._draw_plots(plots)
        else:
            padding = listed.styles.padding.height
            room = max(0, self.query_one("#middle").size.height - padding)
            self._put("phases", phases(history, room), layout=True)
        self._put("numbers", numbers(history, self.query_one("#numbers").size.height))
        self._put("messages-text", messages(history, self._warnings), layout=True)
        self._put("samples-text", samples(history, self._reply_step), layout=True)
        self._title_pane()
        state = (link.run, link.is_training, history.started, bool(history.steps), history.ended, link.problem)
        if state != self._state:
            self._state = state
            if self.query_one("#lower", ContentSwitcher).current == "log":  # else that of another run may stand there
                self._read_log()
            self.show_problem(self._problem())
            self.refresh_bindings()
        pane = self._front_pane()
        if not self._pane_chosen and pane != self._front:
            self._front = pane
            self._show_pane(pane)

    def _draw_plots(self, plots: Grid) -> None:
        """One plot, or two or four where there is room, of the metrics from the chosen one on."""
        history, room = self.tuitune.link.history, self.query_one("#middle").size
        columns = 2 if room.width - _NUMBERS_WIDTH >= 2 * _LEAST_PLOT.width else 1
        rows = 2 if columns == 2 and room.height >= 2 * _LEAST_PLOT.height else 1
        plots.styles.grid_size_columns, plots.styles.grid_size_rows = columns, rows
        metrics = metrics_of(history)
        for place, plot in enumerate(plots.query(MetricPlot)):
            plot.display = place < columns * rows
            if plot.display:
                plot.show(history, metrics[(self._first_metric + place) % len(metrics)])

    def _front_pane(self) -> str:
        """The pane with the newest entry: sample replies, or messages about the run."""
        history = self.tuitune.link.history
        if isinstance(history.ended, Failed):
            return "messages"
        newest_reply_at = max((reply.at for reply in history.replies if reply.step), default=0.0)
        warned = (warning.at for warning in self._warnings if warning.is_lasting)
        newest_message_at = max([0.0, *(notice.at for notice in history.notices), *warned])
        return "samples" if newest_reply_at > newest_message_at else "messages"

    def _problem(self) -> str | None:
        """Why the run ended without an adapter, or what to do with one whose session is gone."""
        link, history = self.tuitune.link, self.tuitune.link.history
        if isinstance(history.ended, Failed):
            return in_language(history.ended.message)
        if link.problem is None and history.started and history.ended is None and not link.is_training:
            saved = link.what_is_saved()
            return _("The session of this run ended before the run did. {saved} {again}", saved=saved, again=_(AGAIN))
        return in_language(link.problem)

    # --- actions ----------------------------------------------------------------------------------------------

    def why_not(self, action: str) -> str | None:
        if action in ("start_stop", "save_checkpoint", "pause") and not self.tuitune.link.is_training:
            return _("No run is training.")
        if action == "change" and not (self.tuitune.link.run and self.tuitune.link.history.steps):
            return _("No step is done yet.")
        if action in ("replies_before", "replies_after") and not self.tuitune.link.history.reply_steps():
            return _("No sample prompt has been answered in training yet.")
        if action == "resume":
            return self._why_not_resume()
        if action == "next_metric" and not self.tuitune.link.history.steps:
            return _("No step is done yet.")
        if action == "go_on":
            return self.tuitune.why_not_step("chat")
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The footer has Stop and Pause for a run that goes, Resume for one that ended early: 80 columns are few."""
        if action == "resume" and self._why_not_resume() is not None:
            return False
        if (
            action in ("start_stop", "pause", "save_checkpoint")
            and self.tuitune.link.run
            and not self.tuitune.link.is_training
        ):
            return False
        return super().check_action(action, parameters)

    def _why_not_resume(self) -> str | None:
        link = self.tuitune.link
        if link.run is None or link.is_training:
            return _("The run is going.") if link.is_training else _("There is no run yet.")
        if isinstance(link.history.ended, Finished) and link.history.ended.status == "done":
            return _("The run is done; e trains it further.")
        return None if link.history.started else _("The run has not begun.")

    @property
    def _attempt(self) -> tuple[Run | None, int]:
        """The run on show, and which attempt at it."""
        link = self.tuitune.link
        return link.run, link.history.started.attempt if link.history.started else 0

    def action_resume(self) -> None:
        self._stopping.pop(self._attempt, None)  # until the next attempt has begun, this one is on show
        self.tuitune.link.resume_run()

    @property
    def _reply_step(self) -> int | None:
        run, step = self._replies
        return step if run == self.tuitune.link.run else None

    def action_replies_before(self) -> None:
        self._show_replies(-1)

    def action_replies_after(self) -> None:
        self._show_replies(1)

    def _show_replies(self, places: int) -> None:
        """Show the replies of the step `places` further among those that were measured; the last means the newest."""
        steps = self.tuitune.link.history.reply_steps()
        shown = steps.index(self._reply_step) if self._reply_step in steps else len(steps) - 1
        place = max(0, min(shown + places, len(steps) - 1)) if self._shows("samples") else shown
        self._replies = (self.tuitune.link.run, steps[place] if place < len(steps) - 1 else None)
        self._pane_chosen = True
        self._show_pane("samples")
        self.draw()

    def _shows(self, pane: str) -> bool:
        return self.query_one("#lower", ContentSwitcher).current == pane

    @work(exit_on_error=False)
    async def action_pause(self) -> None:
        question = _("Pause the run after this step? A checkpoint is saved, and the GPU's memory is given back.")
        link = self.tuitune.link
        if not await self.app.push_screen_wait(ConfirmScreen(question, N_("Pause"), N_("Go on training"))):
            return
        try:
            if link.is_training and (await link.call(Pause(link.run.name if link.run else None)))["pausing"]:
                self._stopping[self._attempt] = N_("Stopping after this step, for a while")
                self._draw_headline()
        except TuituneError as error:
            self.show_problem(error)

    @work(exit_on_error=False)
    async def action_change(self) -> None:
        """Ask for other steps and another rate, and have the run go on so: at once, or by resuming it."""
        link, run = self.tuitune.link, self.tuitune.link.run
        assert run is not None, "there is a run to change"
        try:
            train = run.resolved().train
            length = ("max_steps", _("Steps in all"), f"{train.max_steps}")
            if train.max_steps == -1:
                length = ("num_train_epochs", _("Epochs in all"), f"{train.num_train_epochs:g}")
            name, label, value = length
            rate = (_("Peak learning rate"), f"{train.learning_rate:g}")
            settings: dict[str, tuple[str, str]] = {name: (label, value), "learning_rate": rate}
            question = _(
                "{steps:,} steps of {run} are done. How should it go on?",
                steps=link.history.step,
                run=one_line(run.name, max_length=40),
            )
            changes = await self.app.push_screen_wait(ChangeScreen(question, settings))
            if changes is None or run != link.run:
                return
            if link.is_training:
                await link.call(Change(run.name, changes))
            else:
                self._stopping.pop(self._attempt, None)
                link.resume_run(changes)
        except TuituneError as error:
            self.show_problem(error)

    def action_next_metric(self) -> None:
        self._first_metric += 1
        self.draw()

    def action_next_pane(self) -> None:
        switcher = self.query_one("#lower", ContentSwitcher)
        names = list(_PANES)
        self._pane_chosen = True
        self._show_pane(names[(names.index(switcher.current or names[-1]) + 1) % len(names)])

    def _show_pane(self, pane: str) -> None:
        self.query_one("#lower", ContentSwitcher).current = pane
        self.query_one(f"#{pane}").focus()  # so that the arrows scroll it
        self._title_pane()
        if pane == "log":
            self._read_log()

    def _title_pane(self) -> None:
        switcher = self.query_one("#lower", ContentSwitcher)
        title = _(_PANES[switcher.current or "messages"])
        if self._shows("samples") and (steps := self.tuitune.link.history.reply_steps()):
            title = _("Sample replies after {steps:,} steps", steps=self._reply_step or steps[-1])
        switcher.border_title = Content(title)
        others = " · ".join(_(pane) for name, pane in _PANES.items() if name != switcher.current)
        keys = [f"l: {others}"]
        if self._shows("samples") and self._several_replies:
            keys.insert(0, _(", and . : other steps"))
        switcher.border_subtitle = Content(" · ".join(keys))

    @property
    def _several_replies(self) -> bool:
        return len(self.tuitune.link.history.reply_steps()) > 1

    @work(exclusive=True, group="stop", exit_on_error=False)  # a session that does not answer holds up no key
    async def action_start_stop(self) -> None:
        link = self.tuitune.link
        # Only who has asked for a stop and asks again means `now`: two viewers may ask once each.
        command = "now" if self._attempt in self._stopping else "stop"
        question = ConfirmScreen(_(_STOP_QUESTIONS[command]), N_("Stop"), N_("Go on training"))
        if not await self.app.push_screen_wait(question) or not link.is_training:
            return
        try:
            answer = await link.stop(now=command == "now")
        except TuituneError as error:
            self.show_problem(error)
            return
        if link.is_training:
            stops_now = answer["stopping"] == "now"
            self._stopping[self._attempt] = (
                N_("Stopping now") if stops_now else N_("Stopping after this step; s again: now")
            )
            self._draw_headline()

    @work(exit_on_error=False)
    async def action_save_checkpoint(self) -> None:
        try:
            run = self.tuitune.link.run
            await self.tuitune.link.call(Save(run.name if run else None))
        except TuituneError as error:
            self.show_problem(error)
        else:
            self.notify(_("A checkpoint is saved after this step."))

    # --- the log ----------------------------------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="log", exit_on_error=False)
    def _read_log(self) -> None:
        run = self.tuitune.link.run
        if run is not None:
            self.post_message(self.LogRead("\n".join(_tail(run.log_file))))

    @on(LogRead)
    def _show_log(self, message: LogRead) -> None:
        self.query_one("#log-text", Static).update(Content(safe_text(message.text)))
        self.query_one("#log", VerticalScroll).scroll_end(animate=False)


def _tail(file: Path) -> Iterator[str]:
    """The last lines of a file; of a line that was overwritten with carriage returns, what stood there last."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _LOG_BYTES))
            text = opened.read().decode(errors="replace")
    except OSError:
        yield _("No log has been written yet.")
        return
    if not text.strip():
        yield _("The libraries have printed nothing yet.")
        return
    for line in text.splitlines()[-200:] if "\r" not in text else text.split("\n")[-200:]:
        yield line.rstrip("\r").rpartition("\r")[2][:1000]
