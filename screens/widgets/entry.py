"""A line to write in that leaves Enter to its screen, where it goes on as everywhere."""

from textual.binding import Binding
from textual.widgets import Input


class Entry(Input, inherit_bindings=False):
    """An input without a key of its own for Enter."""

    BINDINGS = [binding for binding in Input.BINDINGS if not (isinstance(binding, Binding) and binding.key == "enter")]  # noqa: RUF012
