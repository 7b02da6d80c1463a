"""Runs as the lines of a table that fits the terminal: what home lists."""

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content

from screens.run_state import ago, rough, state_style, state_text
from screens.widgets.fit import fit
from tuitune.language import N_, _
from tuitune.runs.summary import Summary, data_names, held_out_text, model_name, steps_text
from tuitune.text import one_line

_HEADS = (
    N_("state"),
    N_("name"),
    N_("model"),
    N_("data"),
    N_("steps"),
    N_("held-out loss"),
    N_("ago"),
    N_("took"),
)
_LEAST = {"name": 12, "model": 8, "data": 8}
_MOST = {"name": 40, "model": 40, "data": 32}
_RIGHT = ("steps", "held-out loss", "ago", "took")
_GAP = "  "


class RunTable:
    """The widths of the columns for some runs in a line of `width` cells, and the lines."""

    def __init__(self, runs: Sequence[Summary], width: int) -> None:
        self._cells = {str(run.folder): _cells(run) for run in runs}
        self._widths = {
            head: max([cell_len(_(head)), *(cell_len(cells[head]) for cells in self._cells.values())])
            for head in _HEADS
        }
        if self._needed() > width:
            self._widths["state"] = 1  # the glyph alone: the word is told of the run under the cursor
        for head in ("data", "model"):
            if self._needed() > width:
                del self._widths[head]
        self._share(width)

    def _needed(self) -> int:
        """Cells of a line with name, model and data as short as they can be."""
        return sum(min(cells, _LEAST.get(head, cells)) for head, cells in self._widths.items()) + self._gaps

    @property
    def _gaps(self) -> int:
        return len(_GAP) * (len(self._widths) - 1)

    def _share(self, width: int) -> None:
        """Give name, model and data what is left, each at most what it needs."""
        needs = {head: min(self._widths[head], most) for head, most in _MOST.items() if head in self._widths}
        widths = {head: min(need, _LEAST[head]) for head, need in needs.items()}
        left = width - self._needed()
        while left > 0 and (short := [head for head in widths if widths[head] < needs[head]]):
            for head in short[:left]:
                widths[head] += 1
            left -= min(left, len(short))
        self._widths |= widths

    def heads(self) -> Content:
        """The line above the runs."""
        heads = self._fitted({head: _(head) for head in _HEADS})
        return Content.styled(_GAP.join(heads.values()), "$foreground 60%")

    def line(self, run: Summary) -> Content:
        """One run; its state in colour, too."""
        cells = self._fitted(self._cells[str(run.folder)])
        styles = {"state": state_style(run), "name": "bold"}
        return Content(_GAP).join(Content.styled(text, styles.get(head, "")) for head, text in cells.items())

    def _fitted(self, cells: dict[str, str]) -> dict[str, str]:
        glyph_only = self._widths["state"] == 1
        fitted = {head: fit(cells[head], width, right=head in _RIGHT) for head, width in self._widths.items()}
        if glyph_only:
            fitted["state"] = " " if cells["state"] == _("state") else cells["state"][:1]
        return fitted


def _cells(run: Summary) -> dict[str, str]:
    return {
        "state": state_text(run),
        "name": one_line(run.name, max_length=80),
        "model": model_name(run),
        "data": data_names(run),
        "steps": steps_text(run),
        "held-out loss": held_out_text(run),
        "ago": _("now") if run.status == "live" else ago(run),
        "took": rough(run.seconds) if run.seconds else "",
    }
