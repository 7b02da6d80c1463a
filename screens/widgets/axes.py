"""The axes of a plot in characters, and curves in braille dots on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]
"""Steps, which rise, and a finite value at each."""

LEFT = 8
"""Columns left of the plot, for the values."""
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


@dataclass(frozen=True)
class Axes:
    """`columns` × `rows` cells of 2 × 4 dots, and what their ends stand for."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    columns: int
    rows: int

    @classmethod
    def around(cls, curves: Sequence[Curve], columns: int, rows: int) -> "Axes":
        """Axes on which all of the curves have room."""
        x_range = _range([x[[0, -1]] for x, _ in curves if len(x)])
        y_range = _range([np.array([y.min(), y.max()]) for _, y in curves if len(y)])
        return cls(x_range, y_range, columns, rows)

    def across(self, x: Floats) -> Floats:
        """Columns of dots."""
        return (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0]) * (2 * self.columns - 1)

    def down(self, y: Floats) -> Floats:
        """Rows of dots, from the top."""
        return (self.y_range[1] - y) / (self.y_range[1] - self.y_range[0]) * (4 * self.rows - 1)

    def cells(self, curve: Curve) -> list[tuple[int, int]]:
        """Row and column of each point."""
        x, y = curve
        rows, columns = self.down(y).round(), self.across(x).round()
        return [(int(row) // 4, int(column) // 2) for row, column in zip(rows, columns, strict=True)]

    def braille(self, curve: Curve) -> NDArray[np.int64]:
        """The connected curve as braille codes (rows × columns of cells, 0 where empty).

        Of many points in one column of dots all between the lowest and the highest is drawn, so that no spike is lost.
        """
        x, y = curve
        width = 2 * self.columns
        borders = self.x_range[0] + (np.arange(width) - 0.5) / (width - 1) * (self.x_range[1] - self.x_range[0])
        starts = np.unique(np.searchsorted(x, borders))
        starts = starts[starts < len(x)]
        if not len(starts):
            return np.zeros((self.rows, self.columns), dtype=np.int64)
        places = self.across(x[starts]).round().astype(int)
        highest, lowest = np.maximum.reduceat(y, starts), np.minimum.reduceat(y, starts)
        return _braille(places, self.down(highest), self.down(lowest), width, 4 * self.rows)

    def left_of(self, row: int) -> str:
        """What stands left of a row: each fourth one has its value."""
        low, high = self.y_range
        labelled = row % 4 == 0
        label = _label(high - (high - low) * row / max(1, self.rows - 1), low, high) if labelled else ""
        return f"{label:>{LEFT - 1}} {'┤' if labelled else '│'}"

    def below(self, line: int) -> str:
        """What stands below the rows: the axis, then the steps at its ends and in its middle."""
        if line == 0:
            return " " * LEFT + "└" + "─" * self.columns
        first, last = self.x_range
        left, right, middle = f"{first:,.0f}", f"{last:,.0f}", f"{(first + last) / 2:,.0f}"
        inner = self.columns - len(left) - len(right)
        return " " * (LEFT + 1) + left + (middle.center(inner) if inner > len(middle) + 2 else " " * inner) + right


def _label(value: float, low: float, high: float) -> str:
    """`value` in at most LEFT - 1 characters, with as many decimals as every other value from `low` to `high`.

    Where these lie close together there are more, as far as there is room, so that two labels differ.
    """
    largest = max(abs(low), abs(high))
    if not 1e-3 <= largest < 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    digits = len(f"{largest:.0f}")
    decimals = max(0, min(4, 4 - digits))
    needed = math.ceil(-math.log10((high - low) / 3))
    room = LEFT - 2 - digits - (low < 0)
    return f"{value:.{max(decimals, min(needed, room))}f}"


def _range(ends: list[Floats]) -> tuple[float, float]:
    """The lowest and the highest value, half a unit further apart on both sides where they are equal."""
    if not ends:
        return 0.0, 1.0
    low, high = float(min(pair[0] for pair in ends)), float(max(pair[1] for pair in ends))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _braille(at: NDArray[np.int64], top: Floats, bottom: Floats, width: int, height: int) -> NDArray[np.int64]:
    """A connected curve as braille codes of its cells, from its extent in each of the columns of dots `at`."""
    dots = np.zeros((height, width), dtype=bool)
    columns = np.arange(at[0], at[-1] + 1)
    high, low = np.interp(columns, at, top).round(), np.interp(columns, at, bottom).round()
    high[1:], low[1:] = np.minimum(high[1:], low[:-1]), np.maximum(low[1:], high[:-1])
    rows = np.arange(height)[:, None]
    dots[:, columns[0] : columns[-1] + 1] = (rows >= high) & (rows <= low)
    cells = dots.reshape(height // 4, 4, width // 2, 2)
    return np.asarray(np.einsum("rdcs,ds->rc", cells, _DOTS))
