"""What is shown instead of everything else in a terminal that is too small to show it well."""

from textual.app import ComposeResult
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import Static

COLUMNS, LINES = 80, 24


def fits(size: Size) -> bool:
    return size.width >= COLUMNS and size.height >= LINES


class TooSmall(ModalScreen[None]):
    """Says what size is needed and goes away by itself once the terminal has it."""

    DEFAULT_CSS = """
    TooSmall { align: center middle; background: $background; }
    TooSmall Static { width: auto; max-width: 100%; text-align: center; }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="size")

    def on_mount(self) -> None:
        self._show()

    def on_resize(self) -> None:
        self._show()

    def _show(self) -> None:
        size = self.app.size
        self.query_one("#size", Static).update(
            f"tuitune needs {COLUMNS}×{LINES} characters.\nThis terminal has {size.width}×{size.height}.\n\n"
            "Enlarge it to go on. A run that is going goes on meanwhile.\n^q leaves."
        )
