"""What a chat shows of a turn: what was said, the passages that were found for it, and each side's reply."""

import asyncio
from pathlib import Path
from typing import ClassVar

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Markdown, Static

from screens.dashboard import MUTED
from screens.passage import PassageScreen
from tuitune.chat.conversation import Reply, Side, Turn
from tuitune.language import N_, _
from tuitune.text import one_line, safe_text

_NARROWEST = 34
"""Columns that a reply needs beside others; in less they stand below each other."""


class TurnView(Vertical):
    """One turn of the branch on show."""

    DEFAULT_CSS = "TurnView { height: auto; }"

    def __init__(self, turn: Turn, among: Path) -> None:
        """`among` is the folder of the chat's run, from which sides are named."""
        super().__init__()
        self.turn = turn
        self._among = among
        self._bubbles: dict[Side, ReplyBubble] = {}

    def compose(self) -> ComposeResult:
        yield SaidBubble(self.turn)
        yield PassageList(self.turn)
        yield Container(classes="replies")

    async def on_mount(self) -> None:
        for side, reply in self.turn.replies.items():
            bubble = await self.bubble(side)
            await bubble.query_one(Markdown).update(safe_text(reply.text))
            bubble.show_stats(reply)
        self.show_passages()

    async def bubble(self, side: Side) -> "ReplyBubble":
        """The reply of a side, empty where it has not answered yet."""
        if side not in self._bubbles:
            self._bubbles[side] = bubble = ReplyBubble(self.turn, side, side.label(self._among))
            await self.query_one(".replies").mount(bubble)
            self._lay_out()
        return self._bubbles[side]

    def show_passages(self) -> None:
        self.query_one(PassageList).show()

    def on_resize(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        beside = not self.size.width or self.size.width >= _NARROWEST * len(self._bubbles)
        self.query_one(".replies").styles.layout = "horizontal" if beside else "vertical"


class SaidBubble(Static, can_focus=True):
    """What the user said, with its place among the branches."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(classes="said")
        self.turn = turn
        self.tooltip = _("What you said. e changes it, b goes on from here, , and . show what was said in its place.")

    def on_mount(self) -> None:
        self.show()

    def show(self) -> None:
        """Draw it anew: the number of branches may have changed."""
        branches = self.turn.branches
        said = Content(safe_text(self.turn.said))
        if len(branches) > 1:
            place = f"  ‹{branches.index(self.turn) + 1}/{len(branches)}›"
            said = Content.assemble(said, (place, MUTED))
        self.update(said)


class ReplyBubble(Vertical, can_focus=True):
    """A reply as Markdown, with its size and speed below it."""

    def __init__(self, turn: Turn, side: Side, label: str) -> None:
        super().__init__(classes="reply" if side.adapter else "reply -base")
        self.turn, self.side = turn, side
        self.border_title = Content(label)
        self.tooltip = _("A reply. g keeps it as good, c as corrected, p as preferred to the others, ^y copies it.")

    def compose(self) -> ComposeResult:
        yield Markdown(parser_factory=_parser, open_links=False)
        yield Static(classes="stats")

    def show_stats(self, reply: Reply) -> None:
        self.query_one(".stats", Static).update(Content(reply.stats()))

    async def draw(self, pieces: "asyncio.Queue[str | None]") -> None:
        """Append pieces until None comes."""
        stream = Markdown.get_stream(self.query_one(Markdown))
        while (piece := await pieces.get()) is not None:
            await stream.write(piece)
        await stream.stop()


class PassageList(Static, can_focus=True):
    """The sources of a turn's passages; unfolded, with the beginning of each. A passage's number opens it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "fold", N_("Unfold")),
        Binding("1", "open(1)", N_("Open"), key_display="1…9"),
        *(Binding(str(number), f"open({number})", show=False) for number in range(2, 10)),
    ]

    def __init__(self, turn: Turn) -> None:
        super().__init__(classes="passages")
        self.turn = turn
        self._unfolded = False
        self.tooltip = _("Passages of your documents that the model was given. Enter unfolds them, a number opens one.")

    def show(self) -> None:
        self.display = bool(self.turn.passages)
        lines = []
        for number, passage in enumerate(self.turn.passages, 1):
            heading = f" · {one_line(passage.heading, max_length=60)}" if passage.heading else ""
            place = f"{one_line(passage.file, max_length=80)}, {passage.place}"
            lines.append(Content.assemble((f"[{number}] ", "bold"), place, (heading, MUTED)))
            if self._unfolded:
                lines.append(Content.styled(f"    {one_line(passage.text, max_length=240)}", MUTED))
        self.update(Content("\n").join(lines))

    def action_fold(self) -> None:
        self._unfolded = not self._unfolded
        self.show()

    def action_open(self, number: int) -> None:
        if number <= len(self.turn.passages):
            self.app.push_screen(PassageScreen(self.turn.passages[number - 1], number))

    def on_click(self) -> None:
        self.action_fold()


Bubble = SaidBubble | ReplyBubble | PassageList


def bubble_of(widget: Widget | None) -> Bubble | None:
    """The bubble that has the focus; None where something else has it."""
    return widget if isinstance(widget, SaidBubble | ReplyBubble | PassageList) else None


def _parser() -> MarkdownIt:
    """Markdown as replies are written; HTML in a reply is shown as the text it is."""
    return MarkdownIt("gfm-like", {"html": False, "linkify": False})
