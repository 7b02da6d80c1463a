"""A conversation on plain output: what is typed is said, and what begins with / changes or keeps something."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from tuitune.chat.conversation import Side, Turn
from tuitune.chat.keep import GOOD, PREFERENCES, keep_row, save_transcript
from tuitune.chat.sampling import PRESETS, preset, with_fields
from tuitune.chat.sides import side_of
from tuitune.commands.status import DONE
from tuitune.commands.talk import Talk
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.session.client import Session, SessionLost
from tuitune.text import one_line, safe_text

_SEVERAL = N_("When several sides have answered, say which one: their number, from 1.")


def converse(talk: Talk, runs_folder: Path) -> int:
    """Ask and answer in turn; the event loop rests while the user types, so that Ctrl+C is theirs at once."""
    print(
        _(
            "Chat with {run}. /help lists the commands; Ctrl+C stops a reply, Ctrl+D leaves.",
            run=one_line(talk.run.name),
        )
    )
    with asyncio.Runner() as loop:
        talk.session = loop.run(Session.start())
        conversation = _Conversation(talk, runs_folder, loop)
        try:
            conversation.tell_of_documents()
            while (line := _ask(f"{conversation.who}> ", conversation.draft)) is not None:
                conversation.draft = ""
                text = line.strip()
                if text or conversation.is_correcting:
                    conversation.take(text)
        finally:
            loop.run(talk.session.close())
    return DONE


class _Conversation:
    """What the lines mean that the user types."""

    def __init__(self, talk: Talk, runs_folder: Path, loop: asyncio.Runner) -> None:
        self.talk = talk
        self.draft = ""
        """What stands on the next line already, to be changed."""
        self._runs_folder = runs_folder
        self._loop = loop
        self._correcting: tuple[Turn, Side] | None = None
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, _("this list")),
            "/regenerate": (self._regenerate, _("ask the same again, with another seed")),
            "/edit": (self._edit, _("change what you said last, and ask it in its place")),
            "/back": (self._back, _("[N]  go back N messages (1); what followed stays as a branch")),
            "/branch": (self._branch, _("go to the next branch that was said in the last message's place")),
            "/preset": (self._preset, _("NAME  choose tokens by a preset: {presets}", presets=list(PRESETS))),
            "/set": (self._set, _("FIELD=VALUE  one field of the sampling, as temperature=0.7")),
            "/system": (self._system, _("[TEXT]  what the model is told first")),
            "/adapter": (lambda _text: self._only("adapter"), _("the adapter answers")),
            "/base": (lambda _text: self._only("base"), _("the base model answers")),
            "/against": (self._against, _("WHO  another side answers too: base, checkpoint:WHICH, RUN; with ,no-docs")),
            "/alone": (self._alone, _("only the first side answers")),
            "/docs": (self._docs, _("[PATH]  look things up in a file or folder; without a path no more")),
            "/open": (self._open, _("N  show passage N with what stands around it")),
            "/good": (self._good, _("[N]  keep the last reply as a row to train on")),
            "/correct": (self._correct, _("[N]  write the reply as it should be, and keep that")),
            "/choose": (self._choose, _("N  keep reply N as chosen against the others")),
            "/save": (self._save, _("write the conversation into the run's folder")),
            "/clear": (self._clear, _("begin a new conversation")),
        }

    @property
    def is_correcting(self) -> bool:
        return self._correcting is not None

    @property
    def who(self) -> str:
        if self._correcting:
            return _("better reply")
        return " | ".join(self.talk.label(side).replace(_("base model"), _("base")) for side in self.talk.sides)

    def take(self, text: str) -> None:
        """Do what a line says; a problem is one sentence."""
        word, _space, argument = text.partition(" ")
        try:
            if self._correcting:
                self._keep_corrected(*self._correcting, text)
            elif word in self._commands:
                self._commands[word][0](argument.strip())
            elif text.startswith("/") and " " not in text:
                print(_("There is no {text}: /help lists the commands, Ctrl+D leaves.", text=safe_text(text)))
            else:
                dialogue, tip = self.talk.dialogue, self.talk.dialogue.tip
                self._answer(dialogue.say(text), tip)
        except SessionLost:
            raise
        except TuituneError as error:
            print(f"! {safe_text(error)}")

    def tell_of_documents(self) -> None:
        """Index the documents; one that cannot be read is said, and the conversation goes on without them."""
        try:
            self._loop.run(self.talk.attach())
        except SessionLost:
            raise
        except TuituneError as error:
            self.talk.docs = []
            print(f"! {safe_text(error)}")
        except KeyboardInterrupt:
            self.talk.docs = []
            print(f"\n{_('Stopped; the conversation goes on without documents.')}")

    def _answer(self, turn: Turn, tip: Turn) -> None:
        try:
            self._loop.run(self.talk.answer(turn))
        except KeyboardInterrupt:
            is_kept = any(reply.stopped for reply in turn.replies.values())
            fate = _("Stopped; what came of the reply is kept.") if is_kept else _("Stopped; this turn is forgotten.")
            print(f"\n{fate}")
        finally:
            if not turn.replies:
                self.talk.dialogue.drop(turn, tip)

    # --- the commands -----------------------------------------------------------------------------------------

    def _help(self, _text: str) -> None:
        for name, (_command, explanation) in self._commands.items():
            print(f"  {name:<12} {explanation}")

    def _regenerate(self, _text: str) -> None:
        turn, tip = self._last(), self.talk.dialogue.tip
        if not self.talk.sampling.get("temperature"):
            self.talk.tell(
                _("The likeliest token is always taken, so the reply is the same: /preset balanced varies it.")
            )
        self._answer(self.talk.dialogue.ask_again(turn), tip)

    def _edit(self, text: str) -> None:
        turn, tip = self._last(), self.talk.dialogue.tip
        self.talk.dialogue.back_to(turn.before)
        if text:
            self._answer(self.talk.dialogue.say(text), tip)
        else:
            self.draft = turn.said

    def _back(self, text: str) -> None:
        turns = self.talk.dialogue.turns
        if text and not text.isdecimal():
            raise UnusableInput("/back takes a number of messages, as in /back 2.")
        count = int(text or 1)
        if not 1 <= count <= len(turns):
            raise UnusableInput("There are {turns} messages to go back.", turns=len(turns))
        self.talk.dialogue.back_to(turns[-count].before)
        turns_left = self.talk.dialogue.turns
        print(
            _("Back at: {said}", said=one_line(turns_left[-1].said, max_length=70))
            if turns_left
            else _("Back at the beginning.")
        )

    def _branch(self, _text: str) -> None:
        turn = self._last()
        if len(turn.branches) < 2:
            raise UnusableInput("Nothing else was said in the last message's place: /edit and /regenerate do.")
        other = self.talk.dialogue.switch(turn, 1)
        print(_("Branch {number} of {branches}:", number=other.branches.index(other) + 1, branches=len(other.branches)))
        for shown in self.talk.dialogue.turns:
            print(f"> {safe_text(shown.said)}")
            for reply in shown.replies.values():
                print(safe_text(reply.text))

    def _preset(self, name: str) -> None:
        self.talk.sampling = with_fields({**self.talk.sampling, **preset(name)}, [])
        print(_("Tokens are chosen by the preset {name}.", name=name))

    def _set(self, text: str) -> None:
        self.talk.sampling = with_fields(self.talk.sampling, text.split())
        print(", ".join(f"{name}={value}" for name, value in self.talk.sampling.items()) or _("all as by default"))

    def _system(self, text: str) -> None:
        self.talk.dialogue.system = text
        print(_("The model is told this first.") if text else _("The model is told nothing first."))

    def _only(self, name: str) -> None:
        self.talk.sides = [side_of(name, self.talk.run.folder, self._runs_folder)]

    def _against(self, name: str) -> None:
        side = side_of(name, self.talk.run.folder, self._runs_folder)
        if side not in self.talk.sides:
            self.talk.sides.append(side)

    def _alone(self, _text: str) -> None:
        del self.talk.sides[1:]

    def _docs(self, path: str) -> None:
        if not path:
            self.talk.docs = []
            print(_("Nothing is looked up any more."))
            return
        self.talk.docs.append(expanded(path).absolute())
        self.tell_of_documents()

    def _open(self, number: str) -> None:
        passages = self._last().passages
        if not number.isdecimal() or not 1 <= int(number) <= len(passages):
            raise UnusableInput("/open takes the number of a passage, from 1 to {passages}.", passages=len(passages))
        passage = passages[int(number) - 1]
        print(f"{safe_text(passage.file)}, {passage.place}")
        for text, mark in ((passage.before, "  "), (passage.text, "│ "), (passage.after, "  ")):
            for line in safe_text(text).splitlines():
                print(f"{mark}{line}")

    def _good(self, number: str) -> None:
        turn, side = self._replied(number)
        self._tell_kept(GOOD, self.talk.dialogue.row(turn, side))

    def _correct(self, number: str) -> None:
        self._correcting = self._replied(number)
        turn, side = self._correcting
        self.draft = turn.replies[side].text.replace("\n", " ")
        print(_("Change the reply to what it should be; an empty line gives up."))

    def _keep_corrected(self, turn: Turn, side: Side, text: str) -> None:
        self._correcting = None
        if not text:
            print(_("Nothing was kept."))
            return
        self._tell_kept(GOOD, self.talk.dialogue.row(turn, side, text))

    def _choose(self, number: str) -> None:
        if len(self._last().replies) < 2:
            raise UnusableInput("Only one side has answered: /against base lets the base model answer, too.")
        turn, chosen = self._replied(number)
        for side, reply in turn.replies.items():
            if side != chosen and reply.text != turn.replies[chosen].text:
                self._tell_kept(PREFERENCES, self.talk.dialogue.preference(turn, chosen, side))

    def _tell_kept(self, name: str, row: dict[str, object]) -> None:
        file, is_new = keep_row(self.talk.run.folder, name, row)
        name = safe_text(file)
        print(
            _("Added to {file}, which is data to train on (data.path).", file=name)
            if is_new
            else _("Already in {file}, which is data to train on (data.path).", file=name)
        )

    def _save(self, _text: str) -> None:
        self._last()
        file = save_transcript(self.talk.run.folder, self.talk.dialogue)
        print(_("Saved as {file}, data to train on (data.path), and as .md beside it.", file=safe_text(file)))

    def _clear(self, _text: str) -> None:
        self.talk.dialogue.back_to(None)

    def _last(self) -> Turn:
        turns = self.talk.dialogue.turns
        if not turns:
            raise UnusableInput("Nothing has been said yet.")
        return turns[-1]

    def _replied(self, number: str) -> tuple[Turn, Side]:
        """The last turn, and the side whose reply is meant."""
        turn = self._last()
        sides = list(turn.replies)
        if not number and len(sides) == 1:
            return turn, sides[0]
        if not number.isdecimal() or not 1 <= int(number) <= len(sides):
            raise UnusableInput(_SEVERAL)
        return turn, sides[int(number) - 1]


def _ask(prompt: str, draft: str) -> str | None:
    """What the user says; a paste of several lines is one message, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # input() uses it from here on

        readline.parse_and_bind("set enable-bracketed-paste on")  # which Python turns off
        readline.set_startup_hook((lambda: readline.insert_text(draft)) if draft else None)
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        print()
        return None
