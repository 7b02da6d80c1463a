"""The curves of a run: a metric over its steps, thinned to what the terminal can show."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from textual.app import ComposeResult
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static
from textual_plot import HiResMode, PlotWidget

from tuitune.events import Step
from tuitune.history import History

Floats = NDArray[np.float64]
MetricName = Literal["loss", "learning_rate", "grad_norm", "tokens_per_second"]


@dataclass(frozen=True)
class Metric:
    """Something measured at each step."""

    name: MetricName
    title: str


METRICS = (
    Metric("loss", "Loss"),
    Metric("learning_rate", "Learning rate"),
    Metric("grad_norm", "Gradient norm"),
    Metric("tokens_per_second", "Tokens per second"),
)
_ROWS = {metric.name: row for row, metric in enumerate(METRICS, 1)}
_SMOOTHED = len(METRICS) + 1
_DECAY = 0.9


class Curves:
    """The steps of a history as arrays that grow with it, so that a long run is not read again at each repaint.

    `smoothed` is the loss as `History.smoothed_losses` smooths it. A value that was not measured is NaN.
    """

    def __init__(self) -> None:
        self._seen: Step | None = None
        self._length = 0
        self._values = np.empty((_SMOOTHED + 1, 1024))
        self._weights = np.empty(1024)

    def follow(self, history: History) -> None:
        """Take in the steps that are new. A history that was rolled back or replaced is read from its start."""
        steps = history.steps
        if self._length > len(steps) or (self._length and steps[self._length - 1] is not self._seen):
            self._length = 0
        while self._values.shape[1] < len(steps):
            self._values = np.concatenate([self._values, np.empty_like(self._values)], axis=1)
            self._weights = np.concatenate([self._weights, np.empty_like(self._weights)])
        for index in range(self._length, len(steps)):
            self._take(index, steps[index])
        self._length = len(steps)
        self._seen = steps[-1] if steps else None

    def _take(self, index: int, step: Step) -> None:
        column = self._values[:, index]
        column[0] = step.step
        for name, row in _ROWS.items():
            value = getattr(step, name)
            column[row] = np.nan if value is None else value
        before = self._weights[index - 1] if index else 0.0
        average = self._values[_SMOOTHED, index - 1] * before if index else 0.0
        self._weights[index] = _DECAY * before + (1 - _DECAY)
        column[_SMOOTHED] = (_DECAY * average + (1 - _DECAY) * column[_ROWS["loss"]]) / self._weights[index]

    def of(self, name: MetricName) -> tuple[Floats, Floats]:
        """Steps and values, without those that were not measured or are not finite."""
        return self._row(_ROWS[name])

    @property
    def smoothed(self) -> tuple[Floats, Floats]:
        return self._row(_SMOOTHED)

    def _row(self, row: int) -> tuple[Floats, Floats]:
        values = self._values[row, : self._length]
        finite = np.isfinite(values)
        return self._values[0, : self._length][finite], values[finite]


def thinned(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """At most `points` of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= max(points, 4):
        return x, y
    stretches = list(pairwise(np.linspace(0, len(x), points // 2 + 1).astype(int)))
    lowest = [start + int(np.argmin(y[start:stop])) for start, stop in stretches]
    highest = [start + int(np.argmax(y[start:stop])) for start, stop in stretches]
    kept = np.unique(np.array(lowest + highest))
    return x[kept], y[kept]


class MetricPlot(Widget):
    """One metric of a history; showing a history that has grown is cheap."""

    DEFAULT_CSS = """
    MetricPlot { layout: vertical; }
    MetricPlot #legend-line { height: 1; padding: 0 1; }
    MetricPlot PlotWidget { height: 1fr; }
    MetricPlot PlotWidget > .plot--axis { color: $foreground 30%; }
    MetricPlot PlotWidget > .plot--tick { color: $text-muted; text-style: none; }
    """

    class Resized(Message):
        """The plot has another size and wants to be shown again."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.metric = METRICS[0]
        self._curves = Curves()

    def compose(self) -> ComposeResult:
        yield Static(id="legend-line")
        yield PlotWidget(allow_pan_and_zoom=False)

    def on_mount(self) -> None:
        plot = self.query_one(PlotWidget)
        plot.can_focus = False
        plot.margin_top, plot.margin_bottom, plot.margin_left = 0, 1, 8

    def on_resize(self, event: Resize) -> None:
        self.post_message(self.Resized())

    def show_next_metric(self) -> None:
        self.metric = METRICS[(METRICS.index(self.metric) + 1) % len(METRICS)]

    def show(self, history: History) -> None:
        self._curves.follow(history)
        plot = self.query_one(PlotWidget)
        plot.clear()
        points = max(8, self.size.width * 2)
        colours = self.app.theme_variables
        line, faint, mark = colours["primary"], "bright_black", colours["warning"]
        legend: list[str | tuple[str, str]] = [(self.metric.title, "bold")]
        if self.metric.name == "loss":
            plot.plot(*thinned(*self._curves.of("loss"), points), line_style=faint, hires_mode=HiResMode.BRAILLE)
            plot.plot(*thinned(*self._curves.smoothed, points), line_style=line, hires_mode=HiResMode.BRAILLE)
            legend += ["   ", ("━ smoothed", "$primary"), "   ", ("━ each step", "$foreground 50%")]
            if held_out := [each for each in history.evaluations if np.isfinite(each.loss)]:
                x = np.array([each.step for each in held_out], dtype=float)
                y = np.array([each.loss for each in held_out], dtype=float)
                plot.scatter(x, y, marker="◆", marker_style=mark)
                legend += ["   ", ("◆ held-out rows", "$warning")]
        else:
            plot.plot(
                *thinned(*self._curves.of(self.metric.name), points), line_style=line, hires_mode=HiResMode.BRAILLE
            )
        self.query_one("#legend-line", Static).update(Content.assemble(*legend), layout=False)
