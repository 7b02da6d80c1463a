"""Step 5: talk to the result."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from markdown_it import MarkdownIt
from pydantic import ValidationError
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.widgets import Markdown, Static

from screens.actions import ACTIONS, bind, key_name
from screens.clipboard import copy
from screens.dashboard import MUTED
from screens.run_link import RunLink
from screens.step_screen import StepScreen
from screens.widgets.bars import bar
from screens.widgets.fields import FieldLine
from screens.widgets.prompt import Prompt
from tuitune.atomic import write_atomic
from tuitune.chat.reply import loading_text
from tuitune.chat.sampling import Sampling
from tuitune.errors import TuituneError
from tuitune.recipe import field_errors
from tuitune.runs.folder import Run
from tuitune.session.messages import Chat
from tuitune.text import one_line, safe_text

Who = Literal["adapter", "base"]
_MODES: dict[tuple[Who, ...], str] = {
    ("adapter",): "the adapter answers",
    ("base",): "the base model answers",
    ("adapter", "base"): "both answer, side by side",
}


_PACE_SECONDS = 0.5  # before, a pace says nothing
_NAMES: dict[Who, str] = {"adapter": "adapter", "base": "base model"}


@dataclass
class Turn:
    """What the user said, and what was answered by whom."""

    said: str
    replies: dict[Who, str] = field(default_factory=dict)


def messages_for(before: list[Turn], said: str, who: Who, system: str) -> list[dict[str, str]]:
    """What `who` is asked now: the system prompt, the turns that it has answered itself, and `said`.

    Turns of the other alone are left out: the base model would go on in the adapter's tone.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for turn in before:
        if reply := turn.replies.get(who):
            messages += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": said}]


def transcript(turns: list[Turn], run: str, system: str) -> str:
    """The conversation as Markdown."""
    parts = [f"# Chat with {run}\n"]
    if system:
        parts.append(f"**System**\n\n{system}\n")
    for turn in turns:
        parts.append(f"**You**\n\n{turn.said}\n")
        parts += [f"**{who.capitalize()}**\n\n{reply}\n" for who, reply in turn.replies.items()]
    return safe_text("\n".join(parts))


class ChatScreen(StepScreen):
    """A conversation with the adapter, with the base model, or with both side by side."""

    STEP = "chat"
    CSS_PATH = "chat.tcss"
    BINDINGS = bind("switch_adapter", "chat_settings", "copy_reply", "save_transcript", "clear_chat")

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[Turn] = []
        self.who: tuple[Who, ...] = ("adapter",)
        self.system = ""
        self.sampling: dict[str, Any] = {}

    def body(self) -> ComposeResult:
        with Horizontal():
            with Vertical(id="talk"):
                yield Static(id="empty")
                yield VerticalScroll(id="turns", can_focus=False)
                yield Static(id="speed")
                prompt = Prompt("Say something · Enter on an empty line goes on to the exports", id="prompt")
                prompt.tooltip = "What you say. Enter sends, Ctrl+J breaks the line, Esc stops a reply."
                yield prompt
            with VerticalScroll(id="settings", can_focus=False):
                yield Static("System prompt", classes="label")
                system = Prompt("none", id="system")
                system.tooltip = "What the model is told before the conversation begins."
                yield system
                yield Static("How the next token is chosen", classes="label")
                for name, info in Sampling.model_fields.items():
                    yield FieldLine(name, info, info.default)
                yield Static(id="meaning")

    def on_mount(self) -> None:
        self.query_one("#settings").display = False
        self._show_talk(empty=True)
        self._show_mode()
        self.query_one("#prompt").focus()

    def _show_mode(self) -> None:
        self.query_one("#prompt").border_title = Content(_MODES[self.who].capitalize())

    def _show_talk(self, *, empty: bool) -> None:
        """The turns, or what could be asked where nothing has been said."""
        self.query_one("#turns").display = not empty
        hint = self.query_one("#empty", Static)
        hint.display = empty
        if empty:
            prompts = [prompt for prompt, _, _ in self.tuitune.link.history.replies_before_and_after()][:4]
            hint.update(_hint(self.tuitune.link.run, prompts))

    @on(RunLink.RunChanged)
    def _record_read(self) -> None:
        self._show_talk(empty=not self.turns and not self.replying)

    # --- talking ----------------------------------------------------------------------------------------------

    @on(Prompt.Sent, "#prompt")
    async def _sent(self, message: Prompt.Sent) -> None:
        if not message.text:
            await self.action_go_on()
        elif not self.replying:
            self.query_one("#prompt", Prompt).text = ""
            self.reply_to(message.text)

    @on(Prompt.Sent, "#system")
    def _system_given(self) -> None:
        self.query_one("#prompt").focus()

    @on(Prompt.Changed, "#system")
    def _system_changed(self, event: Prompt.Changed) -> None:
        self.system = event.text_area.text.strip()

    @property
    def replying(self) -> bool:
        return any(worker.group == "reply" and not worker.is_finished for worker in self.workers)

    @work(exclusive=True, group="reply", exit_on_error=False)
    async def reply_to(self, said: str) -> None:
        """Have each chosen one answer, one after the other, as the session's one worker does."""
        self.show_problem(None)
        turn = Turn(said)
        views = await self.begin(turn)
        before = list(self.turns)
        self.turns.append(turn)
        try:
            for who, view in views.items():
                await self._answer(who, messages_for(before, said, who, self.system), view, turn)
        except TuituneError as error:
            self.show_problem(error)
            prompt = self.query_one("#prompt", Prompt)
            prompt.text = prompt.text or said
        finally:
            if not turn.replies and turn in self.turns:
                self.turns.remove(turn)
            self.query_one("#prompt").focus()

    async def begin(self, turn: Turn) -> dict[Who, Markdown]:
        """Show what was said, and an empty reply of each who is asked."""
        self._show_talk(empty=False)
        turns = self.query_one("#turns", VerticalScroll)
        await turns.mount(Static(Content(safe_text(turn.said)), classes="user"))
        row = Horizontal(classes="replies")
        await turns.mount(row)
        turns.anchor()
        views = {who: Markdown(parser_factory=_parser, open_links=False, classes=f"reply -{who}") for who in self.who}
        for who, view in views.items():
            view.border_title = _NAMES[who]
            await row.mount(view)
        return views

    async def _answer(self, who: Who, messages: list[dict[str, str]], view: Markdown, turn: Turn) -> None:
        run = self.tuitune.link.run
        assert run is not None, "the chat opens on a run"
        speed = self.query_one("#speed", Static)
        speed.update("Waiting for the first word…")
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        said: list[str] = []
        began = 0.0

        def part(content: dict[str, Any]) -> None:
            nonlocal began
            if "loading" in content:
                speed.update(Content(f"{bar_of(content)}{loading_text(**content)}…"))
            elif "notice" in content:
                self.notify(safe_text(content["notice"]), severity="warning", markup=False)
            elif text := content.get("text"):
                began = began or time.monotonic()
                said.append(text)
                pieces.put_nowait(safe_text(text))
                took = time.monotonic() - began
                pace = f" · {len(said) / took:.0f}/s" if took > _PACE_SECONDS else ""
                speed.update(f"{len(said)} pieces{pace} · {key_name(ACTIONS['go_back'])} stops")

        drawing = asyncio.create_task(_draw(view, pieces))
        try:
            answer = await self.tuitune.link.call(
                Chat(str(run.folder), messages, who == "adapter", self.sampling), part
            )
            turn.replies[who] = answer["reply"]
            ending = "" if answer.get("ended", True) else " · cut at max_new_tokens"
            pace = answer["tokens"] / max(answer["seconds"], 1e-6)
            took = f"{answer['tokens']} tokens in {answer['seconds']:.1f} s · {pace:.1f} tokens/s{ending}"
            keys = f"{key_name(ACTIONS['copy_reply'])} copies · {key_name(ACTIONS['save_transcript'])} saves"
            speed.update(f"{_NAMES[who]}: {took} · {keys}")
        except asyncio.CancelledError:
            turn.replies[who] = "".join(said)
            speed.update("Stopped.")
            raise
        except TuituneError:
            speed.update("")
            raise
        finally:
            pieces.put_nowait(None)
            await drawing

    async def action_go_back(self) -> None:
        if self.replying:
            self.workers.cancel_group(self, "reply")
        elif self.query_one("#settings").display:
            self.action_chat_settings()
        else:
            await super().action_go_back()

    # --- actions ----------------------------------------------------------------------------------------------

    def action_switch_adapter(self) -> None:
        modes = list(_MODES)
        self.who = modes[(modes.index(self.who) + 1) % len(modes)]
        self._show_mode()

    def action_chat_settings(self) -> None:
        settings = self.query_one("#settings")
        settings.display = not settings.display
        self.query_one("#temperature Input" if settings.display else "#prompt").focus()

    @on(DescendantFocus)
    def _explain_field(self, event: DescendantFocus) -> None:
        line = next((each for each in event.widget.ancestors if isinstance(each, FieldLine)), None)
        if line is not None:
            self.query_one("#meaning", Static).update(Content(line.info.description or ""))

    @on(FieldLine.Changed)
    def _sampling_changed(self, message: FieldLine.Changed) -> None:
        name = message.line.field
        wanted = {**self.sampling, name: message.value}
        try:
            checked = Sampling.model_validate(wanted)
        except ValidationError as error:
            problem = field_errors(error).get(name)
            message.line.mark(problem)
            self.show_problem(problem)
            return
        message.line.mark(None)
        self.show_problem(None)
        self.sampling = checked.model_dump(exclude_defaults=True)

    def why_not(self, action: str) -> str | None:
        if action in ("copy_reply", "save_transcript", "clear_chat") and not self.turns:
            return "Nothing has been said yet."
        return None

    def action_copy_reply(self) -> None:
        copy(self.app, "\n\n".join(self.turns[-1].replies.values()), "The last reply")

    def action_save_transcript(self) -> None:
        run = self.tuitune.link.run
        assert run is not None, "the chat opens on a run"
        file = run.folder / "chats" / time.strftime("%Y-%m-%d_%H-%M-%S.md")
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(file, transcript(self.turns, run.name, self.system))
        except OSError as error:
            self.show_problem(error)
            return
        self.notify(f"Saved as {file}", markup=False)

    async def action_clear_chat(self) -> None:
        self.workers.cancel_group(self, "reply")
        self.turns = []
        self.query_one("#speed", Static).update("")
        await self.query_one("#turns").remove_children()
        self._show_talk(empty=True)
        self.refresh_bindings()


def _hint(run: Run | None, prompts: list[str]) -> Content:
    """What to do in an empty chat; `prompts` are those that the run was sampled with."""
    name = one_line(run.name, max_length=60) if run else "the run"
    lines = [Content.assemble("Ask ", (name, "bold"), " something it was trained for.")]
    if prompts:
        lines.append(Content.styled("The run's own sample prompts:", MUTED))
        lines += [Content(f"  {one_line(prompt, max_length=64)}") for prompt in prompts]
    keys = (("switch_adapter", "asks the base model too, side by side"), ("chat_settings", "changes how it answers"))
    for action, what in keys:
        lines.append(Content.assemble((key_name(ACTIONS[action]), "bold"), (f" {what}", MUTED)))
    return Content("\n").join(lines)


def bar_of(part: dict[str, Any]) -> str:
    """A bar to stand before what is loading, where it can be counted."""
    return f"{bar(part['done'] / part['total'], 20)} " if part.get("total") else ""


async def _draw(view: Markdown, pieces: "asyncio.Queue[str | None]") -> None:
    """Append pieces to the view until None comes."""
    stream = Markdown.get_stream(view)
    while (piece := await pieces.get()) is not None:
        await stream.write(piece)
    await stream.stop()


def _parser() -> MarkdownIt:
    """Markdown as replies are written; HTML in a reply is shown as the text it is."""
    return MarkdownIt("gfm-like", {"html": False, "linkify": False})
