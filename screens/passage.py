"""One passage of a document with what stands around it."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tuitune.documents.passage import Passage
from tuitune.language import N_, _
from tuitune.text import one_line, safe_text


class PassageScreen(ModalScreen[None]):
    """Any of Esc and Enter closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", N_("Close"))]
    DEFAULT_CSS = """
    PassageScreen { align: center middle; }
    PassageScreen > VerticalScroll {
        width: 92%; max-width: 110; height: auto; max-height: 90%;
        background: $surface; border: round $primary; padding: 0 1;
    }
    PassageScreen .around { color: $foreground 50%; padding: 0 2; }
    PassageScreen .passage { border-left: outer $primary; padding: 0 1; margin: 1 0; }
    """

    def __init__(self, passage: Passage, number: int) -> None:
        super().__init__()
        self._passage, self._number = passage, number

    def compose(self) -> ComposeResult:
        passage = self._passage
        with VerticalScroll() as panel:
            panel.border_title = Content(f"[{self._number}] {one_line(passage.file, max_length=60)}, {passage.place}")
            panel.border_subtitle = Content(_("score {score:.3f} · Esc closes", score=passage.score))
            if passage.heading:
                yield Static(Content.styled(one_line(passage.heading, max_length=200), "bold"))
            if passage.before:
                yield Static(Content(safe_text(passage.before)), classes="around")
            yield Static(Content(safe_text(passage.text)), classes="passage")
            if passage.after:
                yield Static(Content(safe_text(passage.after)), classes="around")

    def on_mount(self) -> None:
        passage = self.query_one(".passage")
        self.call_after_refresh(self.query_one(VerticalScroll).scroll_to_widget, passage, animate=False, top=True)
