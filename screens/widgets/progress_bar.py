"""A bar of how far something is."""

from textual import on
from textual.events import Mount
from textual.widgets import ProgressBar as RestlessProgressBar


class ProgressBar(RestlessProgressBar):
    """Moves when it is told to: Textual's own repaints itself every second, for a time left that is not shown here."""

    def __init__(self, *, id: str) -> None:
        super().__init__(show_eta=False, id=id)

    @on(Mount)
    def _wait_to_be_told(self, event: Mount) -> None:
        event.prevent_default()
