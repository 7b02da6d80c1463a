"""A box that keys can scroll."""

from textual.containers import VerticalScroll


class Scrolled(VerticalScroll):
    """Takes the focus where there is more in it than is seen, so that the arrows show the rest; else Tab passes it."""

    @property
    def focusable(self) -> bool:
        return super().focusable and self.max_scroll_y > 0
