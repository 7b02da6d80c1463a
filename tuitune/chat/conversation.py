"""A chat as it branches: who is asked, what each has answered, what is sent of it, and what of it can be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuitune.chat.window import with_passages
from tuitune.documents.passage import Passage
from tuitune.language import Sentence, _
from tuitune.text import one_line, safe_text

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Side:
    """Who is asked: the adapter of a run or of one of its checkpoints, or its base model, with documents or without."""

    run: Path
    adapter: bool = True
    checkpoint: str | None = None
    documents: bool = True
    engine: str = ""
    """`gguf` or `gguf:TYPE` for an exported GGUF in llama.cpp; empty for the adapter on its base."""

    def label(self, among: Path) -> Sentence:
        """Its name in a chat with the run in the folder `among`."""
        names: list[str] = [one_line(self.run.name, max_length=40)] if self.run != among else []
        if self.engine:
            names.append(self.engine)
        if not self.adapter and not self.engine:
            names.append(_("base model"))
        elif self.checkpoint:
            names.append(_("checkpoint {checkpoint}", checkpoint=self.checkpoint))
        elif not names:
            names.append(_("adapter"))
        if not self.documents:
            names.append(_("no documents"))
        return _("{names}", names=names)


@dataclass(slots=True)
class Reply:
    """What one side has answered; `stopped` where the user ended it, `ended` where it came to its own end."""

    text: str
    tokens: int
    seconds: float
    first_token_s: float = 0.0
    ended: bool = True
    stopped: bool = False
    unseen: int = 0
    passages: int = 0
    seed: int = 0
    kept: str = ""
    """How it was kept as training data: good, corrected, chosen or rejected."""

    @classmethod
    def of(cls, answer: Any, seed: int) -> "Reply":
        """From a session's `Answer`."""
        return cls(**{"text" if name == "reply" else name: value for name, value in answer.items()}, seed=seed)

    def stats(self) -> str:
        """Its size and speed in words."""
        return " · ".join(self._stats())

    def english_stats(self) -> str:
        """The same in English, as transcripts hold it."""
        return " · ".join(text.english for text in self._stats())

    def _stats(self) -> Iterator[Sentence]:
        yield _("{tokens:,} tokens", tokens=self.tokens)
        yield _("{seconds:.1f} s", seconds=self.seconds)
        if self.stopped:
            yield _("stopped")
        elif self.tokens:
            yield _("{pace:.0f} tokens/s", pace=self.tokens / max(self.seconds, 1e-6))
            yield _("first {seconds:.2f} s", seconds=self.first_token_s)
        if not self.ended and not self.stopped:
            yield _("cut at max_new_tokens")
        if self.seed:
            yield _("seed {seed}", seed=self.seed)
        if self.unseen:
            yield _("{messages} oldest messages not seen", messages=self.unseen)
        if self.kept:
            yield _("kept as {kind}", kind=_(self.kept))


@dataclass(eq=False, slots=True)
class Turn:
    """What the user said, and what was answered; `after` are the turns that were said next, each its own branch."""

    said: str
    before: "Turn | None"
    draw: int = 0
    """How often the same was asked here before: each time with another seed."""
    passages: list[Passage] = field(default_factory=list)
    replies: dict[Side, Reply] = field(default_factory=dict)
    after: list["Turn"] = field(default_factory=list)

    @property
    def branches(self) -> list["Turn"]:
        """This turn and those said in its place."""
        return self.before.after if self.before else [self]


class Dialogue:
    """A tree of turns, of which the branch down to `tip` is what is shown and sent."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._root = Turn("", None)
        self.tip = self._root

    @property
    def turns(self) -> list[Turn]:
        """The branch, from its first turn to its tip."""
        return list(reversed(list(self._up(self.tip))))

    def say(self, text: str) -> Turn:
        """A new turn after the tip, which it becomes."""
        self.tip = Turn(text, self.tip)
        self.tip.branches.append(self.tip)
        return self.tip

    def ask_again(self, turn: Turn) -> Turn:
        """Ask the same once more, with the next seed, in a branch of its own."""
        assert turn.before is not None, "the root was never said"
        draw = max(branch.draw for branch in turn.branches if branch.said == turn.said) + 1
        self.tip = Turn(turn.said, turn.before, draw, list(turn.passages))
        self.tip.branches.append(self.tip)
        return self.tip

    def back_to(self, turn: Turn | None) -> None:
        """What is said next follows this turn (None: begins the chat); what followed it stays as another branch."""
        self.tip = turn or self._root

    def switch(self, turn: Turn, step: int) -> Turn:
        """Show the branch before or after that of `turn`, down to what was said in it last; the turn in its place."""
        branches = turn.branches
        other = branches[(branches.index(turn) + step) % len(branches)]
        self.tip = other
        while self.tip.after:
            self.tip = self.tip.after[-1]
        return other

    def drop(self, turn: Turn, tip: Turn) -> None:
        """Forget a turn that nobody has answered; the branch ends at `tip` again."""
        turn.branches.remove(turn)
        self.tip = tip

    # --- what is sent -----------------------------------------------------------------------------------------

    def asked(self, turn: Turn, side: Side) -> Messages:
        """What `side` is asked: the system message, the turns before that it has answered itself, and what was said.

        Turns of others alone are left out: a base model would go on in the adapter's tone.
        """
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for earlier in reversed(list(self._up(turn.before))):
            if (reply := earlier.replies.get(side)) and reply.text:
                messages += [_said("user", earlier.said), _said("assistant", reply.text)]
        return [*messages, _said("user", turn.said)]

    # --- what is kept -----------------------------------------------------------------------------------------

    def row(self, turn: Turn, side: Side, corrected: str | None = None) -> dict[str, Any]:
        """A row to train on: what the side was asked, as it saw it, and its reply or a better one."""
        text = turn.replies[side].text if corrected is None else corrected
        return {"messages": [*self._seen(turn, side), _said("assistant", text)]}

    def preference(self, turn: Turn, chosen: Side, rejected: Side) -> dict[str, Any]:
        """A row of a preference pair, of what `chosen` was asked."""
        return {
            "prompt": self._seen(turn, chosen),
            "chosen": [_said("assistant", turn.replies[chosen].text)],
            "rejected": [_said("assistant", turn.replies[rejected].text)],
        }

    def rows(self) -> list[dict[str, Any]]:
        """The branch as rows of messages, one for each side that has answered in it."""
        rows = []
        for side in dict.fromkeys(side for turn in self.turns for side in turn.replies):
            last = next(turn for turn in reversed(self.turns) if side in turn.replies)
            rows.append(self.row(last, side))
        return rows

    def markdown(self, run: Path) -> str:
        """The branch for a reader."""
        parts = [f"# Chat with {run.name}\n"]
        if self.system:
            parts.append(f"**System**\n\n{self.system}\n")
        for turn in self.turns:
            parts.append(f"**You**\n\n{turn.said}\n")
            parts += [
                f"[{number}] {passage.file}, {passage.place.english}\n"
                for number, passage in enumerate(turn.passages, 1)
            ]
            for side, reply in turn.replies.items():
                label = side.label(run).english
                parts.append(f"**{label[0].upper()}{label[1:]}** ({reply.english_stats()})\n\n{reply.text}\n")
        return safe_text("\n".join(parts))

    def _seen(self, turn: Turn, side: Side) -> Messages:
        """What the side was asked, with the passages that it was given and without the messages that were cut."""
        messages, reply = self.asked(turn, side), turn.replies[side]
        if reply.unseen:
            start = 1 if self.system else 0
            del messages[start : start + reply.unseen]
        passages = [passage.sent for passage in turn.passages[: reply.passages]]
        messages[-1] = _said("user", with_passages(turn.said, passages))
        return messages

    def _up(self, turn: Turn | None) -> Iterator[Turn]:
        while turn is not None and turn is not self._root:
            yield turn
            turn = turn.before


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
