"""What is shown instead of everything else in a terminal that is too small to show it well."""

from typing import TYPE_CHECKING, cast

from textual import on
from textual.app import ComposeResult
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import Static

from screens.run_link import RunLink
from tuitune.language import _

if TYPE_CHECKING:
    from screens.app import TuituneApp

COLUMNS, LINES = 80, 20


def fits(size: Size) -> bool:
    return size.width >= COLUMNS and size.height >= LINES


class TooSmall(ModalScreen[None]):
    """One line on the run on show, and what size is needed; goes away by itself once the terminal has it."""

    DEFAULT_CSS = """
    TooSmall { align: center middle; background: $background; }
    TooSmall Static { width: 100%; text-align: center; }
    TooSmall #live { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="live")
        yield Static(id="size")

    def on_mount(self) -> None:
        self._show()

    def on_resize(self) -> None:
        self._show()

    @on(RunLink.RunChanged)
    def _show(self) -> None:
        size, link = self.app.size, cast("TuituneApp", self.app).link
        live = self.query_one("#live", Static)
        live.display = link.run is not None
        if link.run is not None:
            from screens.dashboard import live_line  # and with it numpy and pydantic: not before the first paint

            is_training, problem = link.is_training, link.problem
            live.update(live_line(link.history, link.run, is_training=is_training, problem=problem, width=size.width))
        self.query_one("#size", Static).update(
            _(
                "tuitune needs {columns}×{lines} characters.\nThis terminal has {width}×{height}.\n\n"
                "Enlarge it to go on. A run that is going goes on meanwhile.\n^q leaves.",
                columns=COLUMNS,
                lines=LINES,
                width=size.width,
                height=size.height,
            )
        )
