"""The loss curve: raw, smoothed and held-out, thinned to what the terminal can show."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from textual.app import ComposeResult
from textual.events import Resize
from textual.message import Message
from textual.widget import Widget
from textual_plot import HiResMode, PlotWidget

from tuitune.history import History

Floats = NDArray[np.float64]


class Curve:
    """The steps of a history as arrays that grow with it; only new steps are looked at.

    `smoothed` is the bias-corrected exponential moving average of `History.smoothed_losses`.
    """

    DECAY = 0.9

    def __init__(self) -> None:
        self._length = 0
        self._arrays = np.empty((3, 1024))
        self._weights = np.empty(1024)
        self._last: Any = None

    def follow(self, history: History) -> None:
        """Take in the steps that are new; a history that was rolled back is read again from there."""
        steps = history.steps
        kept = min(self._length, len(steps))
        while kept and self._arrays[0, kept - 1] >= (steps[kept].step if kept < len(steps) else float("inf")):
            kept -= 1
        if kept and kept <= len(steps) and self._last is not None and self._arrays[0, kept - 1] != steps[kept - 1].step:
            kept = 0
        if kept == self._length and kept and self._last is not steps[kept - 1]:
            kept = 0
        while self._arrays.shape[1] < len(steps):
            self._arrays = np.concatenate([self._arrays, np.empty_like(self._arrays)], axis=1)
            self._weights = np.concatenate([self._weights, np.empty_like(self._weights)])
        for index in range(kept, len(steps)):
            step = steps[index]
            weight = self._weights[index - 1] if index else 0.0
            average = self._arrays[2, index - 1] * weight if index else 0.0
            self._weights[index] = self.DECAY * weight + (1 - self.DECAY)
            self._arrays[:, index] = (
                step.step,
                step.loss,
                (self.DECAY * average + (1 - self.DECAY) * step.loss) / self._weights[index],
            )
        self._length = len(steps)
        self._last = steps[-1] if steps else None

    @property
    def steps(self) -> Floats:
        return self._arrays[0, : self._length]

    @property
    def losses(self) -> Floats:
        return self._arrays[1, : self._length]

    @property
    def smoothed(self) -> Floats:
        return self._arrays[2, : self._length]


def thinned(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """At most `points` of the curve: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(x) <= points or points < 4:
        return x, y
    edges = np.linspace(0, len(x), points // 2 + 1).astype(int)
    lowest = [start + int(np.argmin(y[start:stop])) for start, stop in pairwise(edges)]
    highest = [start + int(np.argmax(y[start:stop])) for start, stop in pairwise(edges)]
    kept = np.unique(np.array(lowest + highest))
    return x[kept], y[kept]


class LossPlot(Widget):
    """Draws a history's losses; cheap to call again with a history that has grown."""

    class Resized(Message):
        """The plot has another size and wants to be drawn again."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._curve = Curve()

    def compose(self) -> ComposeResult:
        yield PlotWidget(allow_pan_and_zoom=False)

    def on_mount(self) -> None:
        plot = self.query_one(PlotWidget)
        plot.can_focus = False
        plot.margin_top, plot.margin_bottom, plot.margin_left = 0, 1, 7

    def on_resize(self, event: Resize) -> None:
        self.post_message(self.Resized())

    def show(self, history: History) -> None:
        self._curve.follow(history)
        plot = self.query_one(PlotWidget)
        plot.clear()
        points = max(8, self.size.width * 2)
        colours = self.app.theme_variables
        if len(self._curve.steps):
            steps, losses = thinned(self._curve.steps, self._curve.losses, points)
            plot.plot(
                steps,
                losses,
                line_style="bright_black",
                hires_mode=HiResMode.BRAILLE,
            )
            steps, losses = thinned(self._curve.steps, self._curve.smoothed, points)
            plot.plot(steps, losses, line_style=colours["primary"], hires_mode=HiResMode.BRAILLE)
        if history.evaluations:
            x = np.array([each.step for each in history.evaluations], dtype=float)
            y = np.array([each.loss for each in history.evaluations], dtype=float)
            plot.scatter(x, y, marker="◆", marker_style=colours["warning"])
