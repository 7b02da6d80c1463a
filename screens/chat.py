"""Step 5: talk to the result."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static
from textual.worker import WorkerError

from screens.actions import ACTIONS, bind, key_name
from screens.bubbles import Bubble, ReplyBubble, SaidBubble, TurnView, bubble_of
from screens.chat_actions import belongs_to, why_not
from screens.clipboard import copy
from screens.correct import CorrectScreen
from screens.documents import DocumentsScreen
from screens.empty_chat import hint
from screens.run_link import RunLink
from screens.sampling import SamplingPanel
from screens.sides import SidesScreen, runs_beside
from screens.step_screen import StepScreen
from screens.widgets.bars import bar
from screens.widgets.prompt import Prompt
from tuitune.chat.conversation import Dialogue, Reply, Side, Turn
from tuitune.chat.keep import GOOD, PREFERENCES, keep_row, save_transcript
from tuitune.chat.reply import loading_text
from tuitune.documents.passage import Passage
from tuitune.errors import TuituneError
from tuitune.language import N_, _
from tuitune.runs.folder import Run
from tuitune.session.asking import chat_request, seed_of
from tuitune.session.result_requests import Attach, Retrieve
from tuitune.text import one_line, safe_text

_PACE_SECONDS = 0.5  # before, a pace says nothing


class ChatScreen(StepScreen):
    """A conversation with one side or several: adapter, base model, checkpoints, other runs."""

    STEP = "chat"
    CSS_PATH = "chat.tcss"
    BINDINGS = bind(
        *("choose_sides", "regenerate", "attach_documents", "next_preset", "chat_settings", "pick_message"),
        *("edit_message", "back_here", "previous_branch", "next_branch"),
        *("good_reply", "correct_reply", "prefer_reply", "copy_reply", "save_transcript", "clear_chat"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.dialogue = Dialogue()
        self.sides: list[Side] = []
        self.documents: list[Path] = []
        self._editing: tuple[Turn, Turn] | None = None
        """The turn that is said anew, and the tip to go back to where it is not."""

    def body(self) -> ComposeResult:
        with Horizontal():
            with Vertical(id="talk"):
                yield Static(id="empty")
                yield VerticalScroll(id="turns", can_focus=False)
                yield Static(id="speed")
                prompt = Prompt("", id="prompt")
                prompt.tooltip = _("What you say. Enter sends, Ctrl+J breaks the line, Esc stops a reply.")
                yield prompt
            yield SamplingPanel(id="settings")

    def on_mount(self) -> None:
        self.sides = [Side(self.run_on_show.folder)]
        self._show_settings(False)
        self._show_talk()
        self._show_mode()
        self.query_one("#prompt").focus()

    @work(exclusive=True, group="language", exit_on_error=False)
    async def change_language(self) -> None:
        """Compose everything anew in the language of now, once no reply is being written; what was said stays."""
        with suppress(WorkerError):  # which whoever asked for the reply is told
            await self.workers.wait_for_complete([worker for worker in self.workers if worker.group == "reply"])
        self.call_next(self._compose_anew)  # in turn with this screen's messages, none of which then finds it empty

    async def _compose_anew(self) -> None:
        prompt, panel, shown = self.query_one("#prompt", Prompt), self.query_one(SamplingPanel), self._shows_settings
        await self.recompose()
        self.query_one("#prompt", Prompt).take_over(prompt)
        self.query_one(SamplingPanel).take_over(panel)
        self._show_settings(shown)
        self.on_screen_resume()
        self._show_mode()
        await self.show_branch()
        self.query_one("#prompt").focus()

    @property
    def run_on_show(self) -> Run:
        run = self.tuitune.link.run
        assert run is not None, "the chat opens on a run"
        return run

    @property
    def sampling(self) -> dict[str, Any]:
        return self.query_one(SamplingPanel).fields

    @property
    def turns(self) -> list[Turn]:
        return self.dialogue.turns

    # --- what is shown ----------------------------------------------------------------------------------------

    def _show_mode(self) -> None:
        """Write around the prompt who answers and how, or which message is being rewritten."""
        prompt = self.query_one("#prompt", Prompt)
        if self._editing:
            prompt.border_title = Content(_("Say it anew · Esc leaves it as it was"))
        else:
            labels = [side.label(self.run_on_show.folder) for side in self.sides]
            prompt.border_title = Content(one_line(" | ".join(labels), max_length=60))
        chosen = self.query_one(SamplingPanel).preset or _("own")
        settings = _("{key} sampling", key=key_name(ACTIONS["chat_settings"]))
        about = [f"{key_name(ACTIONS['next_preset'])} {chosen}", settings]
        if self.documents:
            name = one_line(self.documents[0].name, max_length=24)
            names = name if len(self.documents) == 1 else _("{paths} paths", paths=len(self.documents))
            about.insert(0, _("looks up in {documents}", documents=names))
        prompt.border_subtitle = Content(" · ".join(about))

    def _show_talk(self) -> None:
        """The turns, or what could be asked where nothing has been said."""
        empty = not self.turns
        self.query_one("#turns").display = not empty
        shown = self.query_one("#empty", Static)
        shown.display = empty
        if empty:
            prompts = [prompt for prompt, _before, _after in self.tuitune.link.history.replies_before_and_after()][:4]
            shown.update(hint(self.tuitune.link.run, prompts))
            self.query_one("#prompt", Prompt).offer(prompts)

    async def show_branch(self) -> None:
        """Show the turns of the branch, and no others."""
        shown = {view.turn: view for view in self.query(TurnView)}
        turns = self.turns
        for turn, view in shown.items():
            if turn not in turns:
                await view.remove()
        for turn in turns:
            if turn in shown:
                shown[turn].query_one(SaidBubble).show()
            else:
                await self.query_one("#turns").mount(TurnView(turn, self.run_on_show.folder))
        self._show_talk()
        self.query_one("#turns", VerticalScroll).anchor()
        self.refresh_bindings()

    def _tell(self, text: str) -> None:
        self.query_one("#speed", Static).update(Content(safe_text(text)))

    @on(RunLink.RunChanged)
    def _record_read(self) -> None:
        self._show_talk()

    # --- talking ----------------------------------------------------------------------------------------------

    @on(Prompt.Sent, "#prompt")
    async def _sent(self, message: Prompt.Sent) -> None:
        if not message.text:
            if self._editing is None:
                await self.action_go_on()
        elif not self.replying and self._can_sample():
            tip = self._editing[1] if self._editing else self.dialogue.tip
            self._editing = None
            self.query_one("#prompt", Prompt).text = ""
            self._show_mode()
            self.reply_to(self.dialogue.say(message.text), tip)

    def _can_sample(self) -> bool:
        """Whether the sampling settings can be used; it is told why where they cannot."""
        problem = self.query_one(SamplingPanel).problem
        self.show_problem(problem)
        return problem is None

    @on(Prompt.Sent, "#system")
    def _system_given(self) -> None:
        self.query_one("#prompt").focus()

    @property
    def replying(self) -> bool:
        return any(worker.group == "reply" and not worker.is_finished for worker in self.workers)

    @work(exclusive=True, group="reply", exit_on_error=False)
    async def reply_to(self, turn: Turn, tip: Turn) -> None:
        """Have each side answer, one after the other; the branch ends at `tip` again where none does."""
        self.show_problem(None)
        await self.show_branch()
        view = next(view for view in self.query(TurnView) if view.turn is turn)
        try:
            await self._look_up(turn, view)
            for place, side in enumerate(list(self.sides)):
                await self._answer(turn, side, await view.bubble(side), beside=place > 0)
        except TuituneError as error:
            self._tell("")
            self.show_problem(error)
        finally:
            if not turn.replies and turn in turn.branches:  # else it was cleared away meanwhile
                self.dialogue.drop(turn, tip)
                await self.show_branch()
                prompt = self.query_one("#prompt", Prompt)
                if not turn.draw:
                    prompt.text = prompt.text or turn.said
            self.query_one("#prompt").focus()

    async def _look_up(self, turn: Turn, view: TurnView) -> None:
        if self.documents and not turn.passages and any(side.documents for side in self.sides):
            self._tell(_("Looking it up…"))
            request = Retrieve([str(path) for path in self.documents], turn.said)
            answer = await self.tuitune.link.call(request, self._show_part)
            turn.passages = [Passage(**passage) for passage in answer["passages"]]
            view.show_passages()

    async def _answer(self, turn: Turn, side: Side, bubble: ReplyBubble, *, beside: bool) -> None:
        self._tell(_("Waiting for the first word…"))
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        texts: list[str] = []
        asked_at = began_at = time.monotonic()

        def part(content: dict[str, Any]) -> None:
            nonlocal began_at
            self._show_part(content)
            if text := content.get("text"):
                began_at = began_at if texts else time.monotonic()
                texts.append(text)
                pieces.put_nowait(safe_text(text))
                seconds = time.monotonic() - began_at
                pace = f"{len(texts) / seconds:.0f}/s" if seconds > _PACE_SECONDS else ""
                pieces_so_far = _("{pieces} pieces", pieces=len(texts))
                stops = _("{key} stops", key=key_name(ACTIONS["go_back"]))
                self._tell(" · ".join(filter(None, [pieces_so_far, pace, stops])))

        drawing = asyncio.create_task(bubble.draw(pieces))
        try:
            request = chat_request(self.dialogue, turn, side, self.sampling, beside=beside)
            answer = await self.tuitune.link.call(request, part)
            turn.replies[side] = Reply.of(answer, seed_of(turn, self.sampling))
            names = ("copy_reply", "save_transcript", "pick_message")
            copies, saves, picks = (key_name(ACTIONS[name]) for name in names)
            text = _("{copy} copies · {save} saves · {pick} picks a message", copy=copies, save=saves, pick=picks)
            self._tell(text)
        except asyncio.CancelledError:
            if texts:
                seconds = time.monotonic() - asked_at
                turn.replies[side] = Reply("".join(texts), len(texts), seconds, ended=False, stopped=True)
            self._tell(_("Stopped."))
            raise
        finally:
            pieces.put_nowait(None)
            await drawing
            if side in turn.replies:
                bubble.show_stats(turn.replies[side])
            else:
                await bubble.remove()

    def _show_part(self, part: dict[str, Any]) -> None:
        """What a session tells on the way to an answer."""
        if "loading" in part or "indexing" in part:
            text = loading_text(part.get("loading") or part["indexing"], part.get("done"), part.get("total"))
            self.query_one("#speed", Static).update(Content(f"{bar_of(part)}{text}…"))
        elif "notice" in part:
            self.notify(safe_text(part["notice"]), severity="warning", markup=False)

    async def action_go_back(self) -> None:
        """End one thing that is going on (a reply, a rewrite, a choice), then leave; typed text is never lost."""
        prompt = self.query_one("#prompt", Prompt)
        if self.replying:
            self.workers.cancel_group(self, "reply")
        elif self._shows_settings:
            self.action_chat_settings()
        elif bubble_of(self.focused) is not None:
            prompt.focus()
        elif self._editing is not None:
            self.dialogue.tip = self._editing[1]
            self._editing = None
            prompt.text = ""
            self._show_mode()
            await self.show_branch()
        elif prompt.text.strip():
            prompt.put_away()
            self._tell(_("Put away: ↑ brings it back, Esc goes to the step before."))
        else:
            await super().action_go_back()

    # --- messages ---------------------------------------------------------------------------------------------

    @property
    def _message(self) -> Bubble | None:
        return bubble_of(self.focused)

    def action_pick_message(self) -> None:
        """From the prompt to the last message."""
        bubbles = [widget for view in self.query(TurnView) for widget in view.query(ReplyBubble)]
        if bubbles:
            bubbles[-1].focus()
            self._tell(_("↑ ↓ go through the messages, Esc back to what you say"))

    async def key_up(self) -> None:
        self._step_messages(-1)

    async def key_down(self) -> None:
        self._step_messages(1)

    def _step_messages(self, step: int) -> None:
        if (message := self._message) is None:
            return
        bubbles = [widget for widget in self.query("SaidBubble, ReplyBubble, PassageList") if widget.display]
        place = bubbles.index(message) + step
        if place >= len(bubbles):
            self.query_one("#prompt").focus()
        elif place >= 0:
            bubbles[place].focus()

    def action_regenerate(self) -> None:
        if not self._can_sample():
            return
        turn = self.turns[-1]
        if not self.sampling.get("temperature"):
            key = key_name(ACTIONS["next_preset"])
            self.notify(_("The likeliest token is always taken, so the reply is the same; {key} varies it.", key=key))
        tip = self.dialogue.tip
        self.reply_to(self.dialogue.ask_again(turn), tip)

    async def action_edit_message(self) -> None:
        if (message := self._message) is not None:
            self._editing = (message.turn, self.dialogue.tip)
            self.dialogue.back_to(message.turn.before)
            prompt = self.query_one("#prompt", Prompt)
            prompt.text = message.turn.said
            prompt.move_cursor(prompt.document.end)
            prompt.focus()
            self._show_mode()
            await self.show_branch()

    async def action_back_here(self) -> None:
        if (message := self._message) is not None:
            self.dialogue.back_to(message.turn)
            await self.show_branch()
            self._tell(_("What you say now follows this message; what followed it stays as a branch."))
            self.query_one("#prompt").focus()

    async def action_previous_branch(self) -> None:
        await self._switch(-1)

    async def action_next_branch(self) -> None:
        await self._switch(1)

    async def _switch(self, step: int) -> None:
        if (message := self._message) is not None and len(message.turn.branches) > 1:
            other = self.dialogue.switch(message.turn, step)
            await self.show_branch()
            next(view for view in self.query(TurnView) if view.turn is other).query_one(SaidBubble).focus()

    def action_good_reply(self) -> None:
        if isinstance(message := self._message, ReplyBubble):
            self._keep(GOOD, self.dialogue.row(message.turn, message.side), message, N_("good"))

    def action_correct_reply(self) -> None:
        message = self._message
        if not isinstance(message, ReplyBubble):
            return

        def keep(text: str | None) -> None:
            if text:
                self._keep(GOOD, self.dialogue.row(message.turn, message.side, text), message, N_("corrected"))

        self.app.push_screen(CorrectScreen(message.turn.replies[message.side].text), keep)

    def action_prefer_reply(self) -> None:
        if not isinstance(message := self._message, ReplyBubble):
            return
        turn, chosen = message.turn, message.side
        for side, reply in turn.replies.items():
            if side != chosen and reply.text != turn.replies[chosen].text:
                self._keep(PREFERENCES, self.dialogue.preference(turn, chosen, side), message, N_("chosen"))

    def _keep(self, name: str, row: dict[str, Any], message: ReplyBubble, how: str) -> None:
        try:
            file, new = keep_row(self.run_on_show.folder, name, row)
        except TuituneError as error:
            self.show_problem(error)
            return
        reply = message.turn.replies[message.side]
        reply.kept = how
        message.show_stats(reply)
        text = _("Already in {file}, which can be data.path of a run.", file=file)
        if new:
            text = _("Added to {file}, which can be data.path of a run.", file=file)
        self.notify(text, markup=False)

    # --- actions ----------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return belongs_to(action, self._message) and super().check_action(action, parameters)

    def why_not(self, action: str) -> str | None:
        return why_not(action, self._message, self.turns, replying=self.replying)

    def action_choose_sides(self) -> None:
        def take(sides: list[Side] | None) -> None:
            if sides:
                self.sides = sides
                self._show_mode()

        run = self.run_on_show
        self.app.push_screen(SidesScreen(run, runs_beside(run), self.sides, documents=bool(self.documents)), take)

    def action_attach_documents(self) -> None:
        def take(paths: list[Path] | None) -> None:
            if paths is not None and paths != self.documents:
                self._index_documents(paths)

        self.app.push_screen(DocumentsScreen(self.documents), take)

    @work(exclusive=True, group="reply", exit_on_error=False)
    async def _index_documents(self, paths: list[Path]) -> None:
        """Index the documents before the first question needs them."""
        self.documents = []
        try:
            if paths:
                index = await self.tuitune.link.call(Attach([str(path) for path in paths]), self._show_part)
                self.documents = paths
                left_out = index["left_out"]
                names = "; ".join(f"{file['file']}: {file['reason']}" for file in left_out[:3])
                files, passages = index["files"], index["passages"]
                texts = [_("{files:,} documents, {passages:,} passages.", files=files, passages=passages)]
                if left_out:
                    texts.append(_("{files} files are left out ({names}).", files=len(left_out), names=names))
                self.notify(one_line(" ".join([*texts, index["notice"]]), max_length=500), markup=False)
            self._tell("")
        except TuituneError as error:
            self._tell("")
            self.show_problem(error)
        finally:
            self._show_mode()

    def action_next_preset(self) -> None:
        preset = self.query_one(SamplingPanel).next_preset()
        self._tell(_("Tokens are chosen by the preset {preset}.", preset=preset))

    def action_chat_settings(self) -> None:
        shown = not self._shows_settings
        self._show_settings(shown)
        self.query_one("#temperature Input" if shown else "#prompt").focus()

    @property
    def _shows_settings(self) -> bool:
        return self.has_class("-settings")

    def _show_settings(self, shown: bool) -> None:
        """Show the settings beside the talk, which then has less room, or take them away."""
        self.query_one("#settings").display = shown
        self.set_class(shown, "-settings")
        whole = _("Say something · Enter on an empty line goes on to the exports")
        self.query_one("#prompt", Prompt).placeholder = _("Say something") if shown else whole

    @on(SamplingPanel.Changed)
    def _settings_changed(self) -> None:
        self._can_sample()
        self.dialogue.system = self.query_one(SamplingPanel).system
        self._show_mode()

    def action_copy_reply(self) -> None:
        message = self._message
        if isinstance(message, ReplyBubble) and message.side in message.turn.replies:
            copy(self.app, message.turn.replies[message.side].text, _("The reply"))
        else:
            copy(self.app, "\n\n".join(reply.text for reply in self.turns[-1].replies.values()), _("The last reply"))

    def action_save_transcript(self) -> None:
        try:
            file = save_transcript(self.run_on_show.folder, self.dialogue)
        except TuituneError as error:
            self.show_problem(error)
            return
        text = _("Saved as {file}, which can be data.path of a run, and as .md beside it.", file=file)
        self.notify(text, markup=False)

    async def action_clear_chat(self) -> None:
        self.workers.cancel_group(self, "reply")
        self.dialogue = Dialogue(self.dialogue.system)
        self._editing = None
        self._tell("")
        self._show_mode()
        await self.show_branch()


def bar_of(part: dict[str, Any]) -> str:
    """A bar to stand before what is loading, where it can be counted."""
    return f"{bar(part['done'] / part['total'], 20)} " if part.get("total") else ""
