"""Which named chat template a tokenizer without one gets."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tuitune.chat_template.named import FOR, TEMPLATES
from tuitune.language import N_, _


class PickTemplate(ModalScreen[str | None]):
    """The named templates, each with the models it is of; gives the chosen one's name, None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    PickTemplate { align: center middle; }
    PickTemplate OptionList { width: 72; max-width: 96%; height: auto; max-height: 80%; border: round $primary; }
    """

    def compose(self) -> ComposeResult:
        lines = [Content.assemble((f"{name:<10}", "bold"), _(FOR[name])) for name in TEMPLATES]
        templates = OptionList(
            *(Option(line, id=name) for line, name in zip(lines, TEMPLATES, strict=True)), markup=False
        )
        templates.border_title = _("How are turns marked? Take the template of the model's family")
        yield templates

    @on(OptionList.OptionSelected)
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)
