"""Step 5: talk to the result."""

from textual import on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input, Markdown, Static

from screens.actions import bind
from screens.step_screen import StepScreen
from tuitune.errors import TuituneError
from tuitune.text import safe_text


class ChatScreen(StepScreen):
    """A conversation with the adapter on or off; Esc stops a reply, Enter on an empty line goes on."""

    STEP = "chat"
    CSS_PATH = "chat.tcss"
    BINDINGS = bind("switch_adapter", "clear_chat")

    adapter = True

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, str]] = []

    def body(self) -> ComposeResult:
        yield VerticalScroll(id="messages", can_focus=False)
        prompt = Input(placeholder="Say something · an empty line goes on to the exports", id="prompt")
        prompt.tooltip = "What you say to the model. Esc stops a reply."
        yield prompt

    def on_mount(self) -> None:
        self._show_mode()
        self.query_one("#prompt").focus()

    def _show_mode(self) -> None:
        to = "the model with the adapter" if self.adapter else "the base model"
        self.query_one("#prompt").border_title = f"To {to}"

    @on(Input.Submitted, "#prompt")
    async def _submitted(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not text:
            await self.action_go_on()
            return
        if self._replying:
            return
        event.input.value = ""
        self.reply_to(text)

    @property
    def _replying(self) -> bool:
        return any(worker.group == "reply" and worker.is_running for worker in self.workers)

    @work(exclusive=True, group="reply", exit_on_error=False)
    async def reply_to(self, text: str) -> None:
        run = self.tuitune.run_shown
        assert run is not None
        self.show_problem(None)
        messages = self.query_one("#messages", VerticalScroll)
        await messages.mount(Static(Content(safe_text(text)), classes="user"))
        reply = Markdown(classes="assistant", open_links=False)
        reply.border_title = "adapter" if self.adapter else "base"
        await messages.mount(reply)
        messages.anchor()
        stream = Markdown.get_stream(reply)
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []

        def part(content: dict[str, str]) -> None:
            pieces.append(content.get("text", ""))
            self.run_worker(stream.write(safe_text(content.get("text", ""))), exit_on_error=False)

        try:
            answer = await self.tuitune.call("chat", part, run=str(run.folder), messages=asked, adapter=self.adapter)
            self.messages = [*asked, {"role": "assistant", "content": answer["reply"]}]
        except TuituneError as error:
            self.show_problem(error)
        finally:
            await stream.stop()
            if pieces and len(self.messages) < len(asked):
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def action_switch_adapter(self) -> None:
        self.adapter = not self.adapter
        self._show_mode()

    async def action_clear_chat(self) -> None:
        self.workers.cancel_group(self, "reply")
        self.messages = []
        await self.query_one("#messages").remove_children()

    async def action_go_back(self) -> None:
        if self._replying:
            self.workers.cancel_group(self, "reply")
            return
        await super().action_go_back()
