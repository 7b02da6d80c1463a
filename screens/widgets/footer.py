"""The footer, in the reader's language."""

from textual.app import ComposeResult
from textual.widgets import Footer as EnglishFooter
from textual.widgets._footer import FooterKey

from tuitune.language import N_, _, language

_OF_TEXTUAL = (N_("palette"),)
"""What it shows that is in no table of ours."""


class Footer(EnglishFooter):
    """Bindings keep their labels in English, as they are made once for each class; they are translated here.

    Textual makes every entry anew at every move of the focus, which takes longer than all the rest of the screen; here
    that happens only where an entry has changed.
    """

    _composed: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        self._composed = self._entries() if self._bindings_ready else ()
        for widget in super().compose():
            if isinstance(widget, FooterKey):
                if not widget.has_class("-command-palette"):
                    widget.set_reactive(FooterKey.compact, self.compact)  # or each is styled three times, not once
                widget.description = _(widget.description)
                if isinstance(widget.tooltip, str):
                    widget.tooltip = _(widget.tooltip)
            yield widget

    async def recompose(self) -> None:
        if self.is_attached and self._entries() != self._composed:  # its screen may have gone since this was asked for
            await super().recompose()

    def _entries(self) -> tuple[object, ...]:
        """What the entries are made of."""
        return language(), *(
            (active.binding, active.enabled, active.tooltip)
            for active in self.screen.active_bindings.values()
            if active.binding.show or active.binding.key == self.app.COMMAND_PALETTE_BINDING
        )
