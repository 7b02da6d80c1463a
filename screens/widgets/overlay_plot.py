"""Several runs' curves on one plot, told apart by letter, by dashes and by colour."""

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from screens.widgets.axes import LEFT, Axes, Curve

LETTERS = "ABCDEF"
STYLES = ("$primary", "$warning", "$success", "$error", "$accent", "$foreground")
_DASHES = ((1, 0), (3, 1), (1, 1), (6, 2), (2, 2), (1, 3))
"""Cells drawn and left out, in turn."""
_APART = 18
"""Cells between two letters on a long curve."""


class OverlayPlot(Widget):
    """Up to six curves; each bears its letter where it was measured, or now and then where that is everywhere."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"overlay--{letter.lower()}" for letter in LETTERS),
        "overlay--axis",
        "overlay--title",
    }
    DEFAULT_CSS = "\n".join(
        [
            *(
                f"OverlayPlot > .overlay--{letter.lower()} {{ color: {style}; }}"
                for letter, style in zip(LETTERS, STYLES, strict=True)
            ),
            "OverlayPlot > .overlay--axis { color: $foreground 60%; }",
            "OverlayPlot > .overlay--title { text-style: bold; }",
        ]
    )

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = ""
        self._curves: Sequence[Curve] = ()
        self._axes: Axes | None = None
        self._cells: list[list[tuple[str, str]]] = []

    def show(self, title: str, curves: Sequence[Curve]) -> None:
        """Draw these curves, one of each letter; one without points is not drawn."""
        self._title, self._curves, self._axes = title, curves, None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        columns, rows = width - LEFT - 1, height - 3
        if columns < 4 or rows < 2:
            return Strip.blank(width)
        if self._axes is None or (self._axes.columns, self._axes.rows) != (columns, rows):
            self._axes = Axes.around(self._curves, columns, rows)
            self._cells = cells_of(self._curves, self._axes)
        if y == 0:
            segments = [self._segment(f" {self._title}", "title")]
        elif y <= rows:
            row = [self._segment(text, kind) for text, kind in self._cells[y - 1]]
            segments = [self._segment(self._axes.left_of(y - 1), "axis"), *row]
        else:
            segments = [self._segment(self._axes.below(y - rows - 1), "axis")]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _segment(self, text: str, kind: str) -> Segment:
        return Segment(text, self.get_component_rich_style(f"overlay--{kind}"))


def cells_of(curves: Sequence[Curve], axes: Axes) -> list[list[tuple[str, str]]]:
    """Each row's characters with the letter of their curve in lower case, which is the name of its style."""
    cells = [[(" ", "axis")] * axes.columns for _ in range(axes.rows)]
    letters: list[tuple[int, int, str]] = []
    for number, (curve, letter) in enumerate(zip(curves, LETTERS, strict=False)):
        codes = axes.braille(curve)
        drawn, left_out = _DASHES[number]
        for row, column in zip(*codes.nonzero(), strict=True):
            before = cells[row][column][0]
            if column % (drawn + left_out) < drawn:
                code = int(codes[row, column]) | (0 if before == " " else ord(before) - 0x2800)
                cells[row][column] = (chr(0x2800 + code), letter.lower())
        letters += [(row, column, letter) for row, column in _places(axes.cells(curve), number)]
    for row, column, letter in letters:  # above all lines, and beside each other where curves meet
        open_columns = (other for other in range(column, axes.columns) if cells[row][other][0] not in LETTERS)
        cells[row][next(open_columns, column)] = (letter, letter.lower())
    return cells


def _places(points: list[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Where a curve bears its letter: at all of a few points, else at its end and now and then before."""
    if len(points) <= _APART:
        return points
    of_column = {column: (row, column) for row, column in points}
    regular = [place for column, place in of_column.items() if (column + 5 * number) % _APART == 0]
    return [*regular, points[-1]]
