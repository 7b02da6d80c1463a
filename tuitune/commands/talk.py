"""A chat on plain output: documents, passages and replies as they come, through one session."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from tuitune.chat.conversation import Dialogue, Reply, Side, Turn
from tuitune.chat.reply import loading_text
from tuitune.documents.passage import Passage
from tuitune.language import _, plural
from tuitune.runs.folder import Run
from tuitune.session.asking import chat_request, seed_of
from tuitune.session.client import Session
from tuitune.session.result_requests import Attach, Retrieve
from tuitune.text import one_line, safe_text


class Talk:
    """A conversation on plain output, through one session."""

    def __init__(
        self,
        run: Run,
        sides: list[Side],
        dialogue: Dialogue,
        sampling: dict[str, Any],
        docs: list[Path],
        *,
        quiet: bool = False,
    ) -> None:
        """`quiet`: replies are not printed as they come."""
        self.run = run
        self.sides = sides
        self.dialogue = dialogue
        self.sampling = sampling
        self.docs = docs
        self.session: Session | None = None
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def label(self, side: Side) -> str:
        return side.label(self.run.folder)

    def tell(self, text: str) -> None:
        """A line for the user, beside the replies."""
        self._console.print(Text(safe_text(text)))

    async def attach(self) -> None:
        """Index the documents, and say what they are. Raises TuituneError."""
        if not self.docs:
            return
        assert self.session is not None, "the conversation has begun"
        with self._console.status(Text(_("Reading the documents"))) as status:
            index = await self.session.call(Attach([str(path) for path in self.docs]), self._progress(status))
        documents = plural("{count} document", "{count:,} documents", index["files"])
        self.tell(_("{documents}, {passages:,} passages.", documents=documents, passages=index["passages"]))
        for file in index["left_out"][:5]:
            self.tell(_("! {file} is left out: {reason}.", file=file["file"], reason=file["reason"]))
        if len(index["left_out"]) > 5:
            self.tell(_("! {files:,} more files are left out.", files=len(index["left_out"]) - 5))
        if index["notice"]:
            self.tell(index["notice"])

    async def look_up(self, turn: Turn) -> None:
        """Find the passages for a turn, and show where they stand. Raises TuituneError."""
        if not self.docs or turn.passages or not any(side.documents for side in self.sides):
            return
        assert self.session is not None, "the conversation has begun"
        request = Retrieve([str(path) for path in self.docs], turn.said)
        with self._console.status(Text(_("Looking it up"))) as status:
            answer = await self.session.call(request, self._progress(status))
        turn.passages = [Passage(**passage) for passage in answer["passages"]]
        for number, passage in enumerate(turn.passages, 1):
            heading = f" · {one_line(passage.heading, max_length=60)}" if passage.heading else ""
            self.tell(f"[{number}] {one_line(passage.file, max_length=100)}, {passage.place}{heading}")

    async def answer(self, turn: Turn) -> None:
        """Have every side answer a turn, one after the other. What came of a reply that is stopped is kept.

        Raises TuituneError.
        """
        await self.look_up(turn)
        for place, side in enumerate(self.sides):
            if len(self.sides) > 1 and not self._quiet:
                print(f"── {self.label(side)} ──", flush=True)
            await self._reply(turn, side, beside=place > 0)
            if not self._quiet:
                print(flush=True)
            if len(self.sides) > 1 and not self._quiet:
                print(f"   {turn.replies[side].stats()}", flush=True)

    async def _reply(self, turn: Turn, side: Side, *, beside: bool) -> None:
        assert self.session is not None, "the conversation has begun"
        came: list[str] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self._console.status(Text(_("Waiting for the model"))) as status:
            progress = self._progress(status)

            def show(part: dict[str, Any]) -> None:
                progress(part)
                if text := part.get("text"):
                    came.append(text)
                    if not self._quiet:
                        status.stop()
                        print(safe_text(text), end="", flush=True)

            request = chat_request(self.dialogue, turn, side, self.sampling, beside=beside)
            try:
                answer = await self.session.call(request, show)
            except asyncio.CancelledError:
                if came:
                    seconds = loop.time() - began
                    turn.replies[side] = Reply("".join(came), len(came), seconds, ended=False, stopped=True)
                raise
        turn.replies[side] = Reply.of(answer, seed_of(turn, self.sampling))
        if unseen := turn.replies[side].unseen:
            if not self._quiet:
                print()
            self.tell(
                _("! The {unseen} oldest messages no longer fit the model's context and were not seen.", unseen=unseen)
            )

    def _progress(self, status: Status) -> Callable[[dict[str, Any]], None]:
        def show(part: dict[str, Any]) -> None:
            if "loading" in part:
                status.update(Text(loading_text(**part)))
            elif "indexing" in part:
                status.update(Text(loading_text(part["indexing"], part.get("done"), part.get("total"))))
            elif "notice" in part:
                self.tell(f"! {part['notice']}")

        return show
