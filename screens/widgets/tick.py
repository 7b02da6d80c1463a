"""Ticks that are told apart by their glyph and not by colour alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.widgets import Checkbox, OptionList
from textual.widgets.option_list import Option

from tuitune.language import N_


class Tick(Checkbox, inherit_bindings=False):
    """A checkbox as `[✔]` or `[ ]`, which are told apart without colour; it leaves Enter to its screen."""

    BINDINGS = [Binding("space", "toggle_button", N_("Tick"), show=False)]  # noqa: RUF012
    BUTTON_LEFT = BUTTON_RIGHT = ""
    DEFAULT_CSS = """
    Tick { min-width: 5; }
    Tick > .toggle--button, Tick.-on > .toggle--button {
        color: $text; background: transparent; text-style: bold;
    }
    Tick:focus > .toggle--label { text-style: bold underline; background: transparent; color: $text; }
    """

    @property
    def BUTTON_INNER(self) -> str:  # type: ignore[override]
        return "[✔]" if self.value else "[ ]"


@dataclass(frozen=True)
class Line:
    """A line that can be ticked; one that is not `ready` can be read only."""

    name: str
    text: Content
    ready: bool = True


class ChoiceList(OptionList, inherit_bindings=False):
    """An option list that leaves Enter to its screen."""

    BINDINGS = [  # noqa: RUF012
        Binding("down", "cursor_down", show=False),
        Binding("up", "cursor_up", show=False),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
    ]


class TickList(ChoiceList):
    """Lines ticked with the space bar."""

    BINDINGS = [Binding("space", "select", N_("Tick"), show=False)]  # noqa: RUF012

    class Ticked(Message):
        """A line was ticked, or not any more."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, markup=False)
        self._rows: list[Line] = []
        self.ticked: set[str] = set()

    def show(self, lines: Iterable[Line], ticked: Iterable[str]) -> None:
        self._rows, self.ticked = list(lines), set(ticked)
        self.clear_options()
        self.add_options(Option(self._prompt(line), id=line.name) for line in self._rows)

    def _prompt(self, line: Line) -> Content:
        box = ("[✔] ", "bold $text-success") if line.name in self.ticked else ("[ ] " if line.ready else "    ", "")
        return Content.assemble(box, line.text)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        line = next(line for line in self._rows if line.name == event.option.id)
        if not line.ready:
            return
        self.ticked ^= {line.name}
        self.replace_option_prompt(line.name, self._prompt(line))
        self.post_message(self.Ticked())
