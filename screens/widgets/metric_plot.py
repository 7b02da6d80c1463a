"""The curves of a run: a metric over its steps, thinned to what the terminal can show."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from screens.widgets.axes import LEFT, Axes, Curve
from tuitune.language import N_, _
from tuitune.methods import METHODS, Method
from tuitune.runs.events import Step
from tuitune.runs.history import History


@dataclass(frozen=True)
class Metric:
    """Something measured at each step."""

    name: str
    title: str


METRICS = (
    Metric("loss", N_("Loss")),
    Metric("learning_rate", N_("Learning rate")),
    Metric("grad_norm", N_("Gradient norm")),
    Metric("tokens_per_second", N_("Tokens per second")),
    Metric("gpu", N_("GPU, %")),
)
_OF_STEPS = METRICS[:-1]
_ROWS = {metric.name: row for row, metric in enumerate(_OF_STEPS, 1)}
_SMOOTHED = len(_OF_STEPS) + 1
_DECAY = 0.9
_ROOMY = 46
"""Cells from which on the legend stands apart."""


class Curves:
    """The steps of a history as arrays that grow with it, so that a long run is not read again at each repaint.

    `smoothed` is the loss's bias-corrected exponential moving average (Kingma & Ba 2015, section 3). A value that was
    not measured is NaN.
    """

    def __init__(self) -> None:
        self._seen: Step | None = None
        self._length = 0
        self._of_method: dict[str, tuple[array[float], array[float]]] = {}
        """Name of the method's own figure to the steps that have it, and its values."""
        self._values = np.empty((_SMOOTHED + 1, 1024))
        self._weights = np.empty(1024)

    def follow(self, history: History) -> None:
        """Take in the steps that are new. A history that was rolled back or replaced is read from its start."""
        steps = history.steps
        if self._length > len(steps) or (self._length and steps[self._length - 1] is not self._seen):
            self._length = 0
            self._of_method = {}
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
        for name, figure in step.metrics.items():
            steps, values = self._of_method.setdefault(name, (array("d"), array("d")))
            steps.append(step.step)
            values.append(figure)
        before = self._weights[index - 1] if index else 0.0
        average = self._values[_SMOOTHED, index - 1] * before if index else 0.0
        self._weights[index] = _DECAY * before + (1 - _DECAY)
        column[_SMOOTHED] = (_DECAY * average + (1 - _DECAY) * column[_ROWS["loss"]]) / self._weights[index]

    def of(self, name: str) -> Curve:
        """Steps and values, without those that were not measured or are not finite."""
        if name in _ROWS:
            return self._row(_ROWS[name])
        steps, values = self._of_method.get(name, ((), ()))
        return np.array(steps, dtype=float), np.array(values, dtype=float)

    @property
    def smoothed(self) -> Curve:
        return self._row(_SMOOTHED)

    def _row(self, row: int) -> Curve:
        steps, values = self._values[0, : self._length], self._values[row, : self._length]
        finite = np.isfinite(values)
        return (steps, values) if finite.all() else (steps[finite], values[finite])


@dataclass(frozen=True)
class Picture:
    """A drawn plot: braille codes (rows × columns of cells, 0 where empty) of two curves, marks, and the axes."""

    faint: NDArray[np.int64]
    line: NDArray[np.int64]
    marks: frozenset[tuple[int, int]]
    axes: Axes


def draw(faint: Curve, line: Curve, marks: Curve, columns: int, rows: int) -> Picture:
    """The curves in `columns` × `rows` cells."""
    axes = Axes.around((faint, line, marks), columns, rows)
    return Picture(axes.braille(faint), axes.braille(line), frozenset(axes.cells(marks)), axes)


_NOTHING: Curve = (np.empty(0), np.empty(0))


def _curve(steps: Sequence[int], values: Sequence[float]) -> Curve:
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def metrics_of(history: History) -> tuple[Metric, ...]:
    """The metrics that a history has: the loss, the method's own figures, and the GPU's where one was measured."""
    loss, *others = METRICS if history.loads else _OF_STEPS
    measured = history.steps[0].metrics.keys() | history.steps[-1].metrics.keys() if history.steps else ()
    own = method_of_history(history).metrics if measured else ()
    drawn = [Metric(metric.name, _(metric.title).capitalize()) for metric in own if metric.name in measured]
    if history.learns_from_rewards:  # whose loss says nothing of progress
        return (*drawn, loss, *others)
    return (loss, *drawn, *others)


def method_of_history(history: History) -> Method:
    """What the run learns from; a record that does not tell, or a name of a later version, is of replies to imitate."""
    return METHODS.get(history.plan.method if history.plan else "sft", METHODS["sft"])


class MetricPlot(Widget):
    """One metric of a history; showing a history that has grown is cheap."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"plot--line", "plot--faint", "plot--mark", "plot--axis", "plot--title"}
    DEFAULT_CSS = """
    MetricPlot > .plot--line { color: $primary; }
    MetricPlot > .plot--faint { color: $foreground 45%; }
    MetricPlot > .plot--mark { color: $text-warning; }
    MetricPlot > .plot--axis { color: $foreground 60%; }
    MetricPlot > .plot--title { text-style: bold; }
    MetricPlot:nocolor > .plot--line { text-style: bold; }
    MetricPlot:nocolor > .plot--faint { text-style: dim; }
    """

    def __init__(self, curves: Curves) -> None:
        """`curves` may be those of several plots of one history."""
        super().__init__()
        self.metric = METRICS[0]
        self._curves = curves
        self._memory = self._busy = self._marks = _NOTHING
        self._picture: Picture | None = None

    def show(self, history: History, metric: Metric) -> None:
        self.metric = metric
        self._curves.follow(history)
        if metric.name == "gpu":
            loads = history.loads
            known = [load for load in loads if load.busy is not None]
            self._memory = _curve([load.step for load in loads], [load.memory for load in loads])
            self._busy = _curve([load.step for load in known], [load.busy or 0.0 for load in known])
        held_out = [
            (evaluation.step, evaluation.metrics.get(metric.name, np.nan)) for evaluation in history.evaluations
        ]
        if metric.name == "loss" and not history.learns_from_rewards:
            held_out = [(evaluation.step, evaluation.loss) for evaluation in history.evaluations]
        known_marks = [mark for mark in held_out if np.isfinite(mark[1])]
        self._marks = _curve([step for step, _value in known_marks], [value for _step, value in known_marks])
        self._picture = None
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._picture = None

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        columns, rows = width - LEFT - 1, height - 3
        if columns < 4 or rows < 2:
            return Strip.blank(width)
        if self._picture is None or self._picture.line.shape != (rows, columns):
            self._picture = self._draw(columns, rows)
        if y == 0:
            segments = self._title()
        elif y <= rows:
            segments = self._row(self._picture, y - 1)
        else:
            segments = [Segment(self._picture.axes.below(y - rows - 1), self._style("axis"))]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _draw(self, columns: int, rows: int) -> Picture:
        if self.metric.name == "loss":
            return draw(self._curves.of("loss"), self._curves.smoothed, self._marks, columns, rows)
        if self.metric.name == "gpu":
            return draw(self._busy, self._memory, _NOTHING, columns, rows)
        return draw(_NOTHING, self._curves.of(self.metric.name), self._marks, columns, rows)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"plot--{name}")

    def _title(self) -> list[Segment]:
        gap = "   " if self.size.width >= _ROOMY else " "
        segments = [Segment(f" {_(self.metric.title)}", self._style("title"))]
        if self.metric.name == "loss":
            segments.append(Segment(f"{gap}━ {_('smoothed')}", self._style("line")))
            segments.append(Segment(f"{gap}━ {_('each step')}", self._style("faint")))
            if len(self._marks[0]):
                segments.append(Segment(f"{gap}◆ {_('held-out')}", self._style("mark")))
        elif self.metric.name == "gpu":
            segments.append(Segment(f"{gap}━ {_('memory')}", self._style("line")))
            segments.append(Segment(f"{gap}━ {_('load')}", self._style("faint")))
        return segments

    def _row(self, picture: Picture, row: int) -> list[Segment]:
        segments = [Segment(picture.axes.left_of(row), self._style("axis"))]
        styles = {kind: self._style(kind) for kind in ("line", "faint", "mark")}
        codes = np.where(picture.line[row] > 0, picture.line[row] | picture.faint[row], picture.faint[row])
        text, kind = "", "faint"
        for column, code in enumerate(codes):
            marked = (row, column) in picture.marks
            cell_kind = "mark" if marked else "line" if picture.line[row, column] else "faint" if code else kind
            if cell_kind != kind:
                segments.append(Segment(text, styles[kind]))
                text, kind = "", cell_kind
            text += "◆" if marked else chr(0x2800 + int(code)) if code else " "
        segments.append(Segment(text, styles[kind]))
        return segments
