"""The footer, in the reader's language."""

from textual.app import ComposeResult
from textual.widgets import Footer as EnglishFooter
from textual.widgets._footer import FooterKey

from tuitune.language import N_, _

_OF_TEXTUAL = (N_("palette"),)
"""What it shows that is in no table of ours."""


class Footer(EnglishFooter):
    """Bindings keep their labels in English, as they are made once for each class; they are translated here."""

    def compose(self) -> ComposeResult:
        for widget in super().compose():
            if isinstance(widget, FooterKey):
                widget.description = _(widget.description)
                if isinstance(widget.tooltip, str):
                    widget.tooltip = _(widget.tooltip)
            yield widget
