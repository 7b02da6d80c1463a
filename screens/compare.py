"""Runs beside each other: their losses on one plot, and where their recipes differ."""

from collections.abc import Sequence

import numpy as np
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message
from textual.widgets import DataTable, Static

from screens.actions import bind
from screens.run_state import state_of
from screens.step_screen import WalkScreen
from screens.widgets.axes import Curve
from screens.widgets.fit import fit
from screens.widgets.footer import Footer
from screens.widgets.metric_plot import Curves
from screens.widgets.overlay_plot import LETTERS, STYLES, OverlayPlot
from screens.widgets.step_bar import StepBar
from tuitune.errors import TuituneError
from tuitune.language import N_, _
from tuitune.runs.compare import Difference, differences, why_not_comparable
from tuitune.runs.folder import Run
from tuitune.runs.summary import Summary, cost_text, duration_text, held_out_text, steps_text
from tuitune.text import one_line

MOST_RUNS = len(LETTERS)
_VALUE_CHARACTERS = 60


class CompareScreen(WalkScreen):
    """Two to six runs, each with a letter."""

    CSS_PATH = "compare.tcss"
    BINDINGS = bind("next_losses", "go_back", "explain")
    ABOUT = N_(
        "Each run has a letter. A lower held-out loss is better: it is measured on rows that were not trained. "
        "The table names every field in which the recipes differ."
    )

    class Loaded(Message):
        """What the records and recipes say, read in a thread."""

        def __init__(self, held_out: list[Curve], training: list[Curve], differences: list[Difference] | str) -> None:
            super().__init__()
            self.held_out = held_out
            self.training = training
            self.differences = differences

    def __init__(self, runs: Sequence[Summary]) -> None:
        super().__init__()
        self._runs = runs
        self._curves: dict[str, list[Curve]] = {}

    def compose(self) -> ComposeResult:
        yield StepBar(None)
        yield Static(Content("\n").join(map(_legend, self._runs, LETTERS, STYLES)), id="legend")
        yield OverlayPlot(id="overlay")
        yield Static(id="comparable")
        table: DataTable[Text] = DataTable(id="differences", cursor_type="row", show_cursor=False)
        table.tooltip = _("The fields in which the recipes differ; the arrow keys scroll.")
        yield table
        yield Static(id="problem")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(OverlayPlot).show(_("Reading the records…"), ())
        self.query_one(DataTable).focus()
        self._load()

    def on_screen_resume(self) -> None:
        self.show_state()

    @work(thread=True, exit_on_error=False)
    def _load(self) -> None:
        held_out, training = [], []
        for summary in self._runs:
            try:
                history = Run(summary.folder).history()
            except TuituneError:  # the list says already that it cannot be read
                held_out.append(_curve([]))
                training.append(_curve([]))
                continue
            curves = Curves()
            curves.follow(history)
            training.append(curves.smoothed)
            held_out.append(_curve([(event.step, event.loss) for event in history.evaluations]))
        self.post_message(self.Loaded(held_out, training, self._differences()))

    def _differences(self) -> list[Difference] | str:
        """Where the recipes differ, or why they cannot be compared."""
        try:
            return differences([Run(summary.folder) for summary in self._runs])
        except TuituneError as error:
            return error.sentence

    @on(Loaded)
    def _show_loaded(self, message: Loaded) -> None:
        self._curves = {"held-out": message.held_out, "training": message.training}
        measured = sum(len(steps) > 1 for steps, _losses in message.held_out)
        self._show_curves("held-out" if measured == len(self._runs) else "training")
        comparable = self.query_one("#comparable", Static)
        table = self.query_one(DataTable)
        if isinstance(message.differences, str):
            table.display = False
            comparable.update(_("Their recipes cannot be compared."))
            self.show_problem(message.differences)
            return
        why_not = why_not_comparable(message.differences)
        same = "" if message.differences else _("Their recipes are the same.")
        comparable.update(Content.styled(f"! {why_not}", "$text-warning") if why_not else Content(same))
        comparable.display = bool(why_not or same)
        table.display = bool(message.differences)
        table.add_columns(_("recipe field"), *LETTERS[: len(self._runs)])
        for difference in message.differences:
            values = [one_line(value, max_length=_VALUE_CHARACTERS) for value in difference.values]
            table.add_row(*map(Text, [difference.field, *values]))
        table.styles.height = table.row_count + 1  # its own count of them comes later, and could be drawn too late

    def _show_curves(self, name: str) -> None:
        self._shown = name
        titles = {"held-out": _("Held-out loss over steps"), "training": _("Training loss over steps, smoothed")}
        title = titles[name]
        if all(len(steps) == 0 for steps, _losses in self._curves[name]):
            title = _("{title}: nothing was measured", title=title)
        self.query_one(OverlayPlot).show(title, self._curves[name])

    def action_next_losses(self) -> None:
        if self._curves:
            self._show_curves("training" if self._shown == "held-out" else "held-out")

    async def action_go_back(self) -> None:
        await self.app.pop_screen()


def _legend(run: Summary, letter: str, style: str) -> Content:
    held_out = held_out_text(run)
    measured = _("held-out {loss}", loss=held_out) if held_out else ""
    facts = [steps_text(run), measured, duration_text(run), cost_text(run)]
    return Content.assemble(
        (f"{letter} ", f"bold {style}"),
        (fit(one_line(run.name, max_length=18), 19), "bold"),
        state_of(run),
        " · ".join(filter(None, facts)),
    )


def _curve(points: list[tuple[int, float]]) -> Curve:
    """The points whose value is finite, as arrays."""
    array = np.array([point for point in points if np.isfinite(point[1])], dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]
