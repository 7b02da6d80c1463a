"""Step 4: the run, as its events tell it."""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import ProgressBar, Static

from screens.actions import bind
from screens.step_screen import StepScreen
from screens.units import duration, gib
from screens.widgets.loss_plot import LossPlot
from tuitune.errors import TuituneError
from tuitune.events import Failed, Finished
from tuitune.history import History
from tuitune.text import one_line


class TrainScreen(StepScreen):
    """The dashboard: a pure drawing of the run's history."""

    STEP = "train"
    CSS_PATH = "train.tcss"
    BINDINGS = bind("start_stop", "save_checkpoint")

    def body(self) -> ComposeResult:
        yield Static(id="headline")
        with Horizontal(id="progress"):
            yield ProgressBar(show_eta=False, id="bar")
            yield Static(id="pace")
        yield LossPlot(id="loss")
        yield Static(id="numbers")
        yield Static(id="notice")

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.draw()

    async def on_tuitune_app_run_changed(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Show the history as it now is."""
        history = self.tuitune.history
        self.query_one("#headline", Static).update(self._headline(history))
        self.query_one(ProgressBar).update(total=history.total_steps or None, progress=history.step)
        self.query_one("#pace", Static).update(_pace(history))
        self.query_one(LossPlot).show(history)
        self.query_one("#numbers", Static).update(self._numbers(history))
        notice = self.query_one("#notice", Static)
        notice.update(Content(one_line(history.notices[-1].text, max_length=300)) if history.notices else "")
        ended = history.ended
        problem = ended.message if isinstance(ended, Failed) else self.tuitune.run_problem
        self.show_problem(problem)
        self.refresh_bindings()

    def _headline(self, history: History) -> Content:
        run = self.tuitune.run_shown
        name = run.name if run else "new run"
        ended = history.ended
        if isinstance(ended, Finished):
            state = f"✔ {ended.status} after {ended.step} steps in {duration(ended.seconds)} · Enter: chat"
        elif ended is not None or self.tuitune.run_problem:
            state = "✘ failed"
        elif history.phase is not None:
            phase = history.phase
            count = f" {phase.done:,}/{phase.total:,}" if phase.done is not None and phase.total else ""
            state = f"▶ {phase.text}{count}"
        else:
            state = "◌ waiting for the session"
        return Content.assemble((one_line(name, max_length=80), "bold"), "  ", one_line(state, max_length=200))

    def _numbers(self, history: History) -> Content:
        parts: list[str] = []
        if history.steps:
            last = history.steps[-1]
            parts.append(f"loss {last.loss:.4f}")
            if last.learning_rate is not None:
                parts.append(f"learning rate {last.learning_rate:.2e}")
            if last.grad_norm is not None:
                parts.append(f"grad norm {last.grad_norm:.2f}")
            if last.tokens_per_second is not None:
                parts.append(f"{last.tokens_per_second:,.0f} tokens/s")
            parts.append(f"epoch {last.epoch:.2f}")
        if sample := history.sample:
            if sample.gpu_total_bytes:
                parts.append(f"GPU {gib(sample.gpu_used_bytes or 0)} of {gib(sample.gpu_total_bytes)}")
            parts.append(f"RAM {gib(sample.host_used_bytes)} of {gib(sample.host_total_bytes)}")
        return Content("  ·  ".join(parts))

    # --- actions ----------------------------------------------------------------------------------------------

    def why_not(self, action: str) -> str | None:
        if action in ("start_stop", "save_checkpoint") and not self.tuitune.is_training:
            return "No run is training."
        if action == "go_on":
            return self.tuitune.why_not_step("chat")
        return None

    async def action_start_stop(self) -> None:
        await self._command("stop")

    async def action_save_checkpoint(self) -> None:
        await self._command("save")

    async def _command(self, command: str) -> None:
        try:
            answer = await self.tuitune.call(command)
        except TuituneError as error:
            self.show_problem(error)
            return
        if command == "stop":
            self.notify(f"Stopping {answer.get('stopping', '')}.", markup=False)
        else:
            self.notify("A checkpoint is saved after this step.")

    @on(LossPlot.Resized)
    def _redraw(self) -> None:
        self.draw()


def _pace(history: History) -> str:
    if not history.total_steps:
        return ""
    left = history.seconds_left
    return f"step {history.step:,} of {history.total_steps:,}" + (
        f" · {duration(left)} left" if left is not None else ""
    )
