"""Which of several GPUs the session works on."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tuitune.language import N_, _
from tuitune.machine.hardware import Gpu
from tuitune.text import one_line
from tuitune.units import gib


class PickGpu(ModalScreen[int | None]):
    """The cards, the emptiest first; gives the index of the chosen one, None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    PickGpu { align: center middle; }
    PickGpu OptionList { width: 72; max-width: 96%; height: auto; max-height: 80%; border: round $primary; }
    """

    def __init__(self, cards: list[Gpu], chosen: int | None) -> None:
        super().__init__()
        self._cards = sorted(cards, key=lambda card: -card.free_bytes)
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        cards = OptionList(*(Option(card_line(card, card.index == self._chosen)) for card in self._cards), markup=False)
        cards.border_title = _("Which GPU? Enter loads the libraries anew for it")
        yield cards

    @on(OptionList.OptionSelected)
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._cards[event.option_index].index)


def card_line(card: Gpu, chosen: bool) -> Content:
    """One card on one line; `chosen` marks the one that the session works on."""
    return Content.assemble(
        (f"GPU {card.index}  ", "bold" if chosen else "$foreground 60%"),
        _(
            "{card} · {available} of {total} free",
            card=one_line(card.name, max_length=40),
            available=gib(card.free_bytes),
            total=gib(card.total_bytes),
        ),
        (f" · {_('in use here')}", "$text-success") if chosen else "",
    )
