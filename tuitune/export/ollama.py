"""Export for Ollama: a GGUF and a Modelfile whose template and stop tokens are those of the model's own chat template.

Ollama does not run the Jinja template inside a GGUF. It knows some templates by sight, and gives a model with any
other one its prompts bare. So the template's pieces are read off real conversations, written as a Go template, and
put together again to prove that they make the same prompts.
"""

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitune.chat_template.reply_start import prompt_as_trained
from tuitune.chat_template.template import ChatTemplate, common_prefix
from tuitune.chat_template.turn_end import end_of_turn
from tuitune.conversation import Conversation, Message
from tuitune.errors import TuituneError, explain
from tuitune.export.child import ChildFailed, run_child
from tuitune.export.kinds import Cancelled
from tuitune.language import _
from tuitune.runs.folder import Run
from tuitune.text import one_line

Prompt = Callable[[Conversation], str]
"""Makes the prompt for a reply to the messages."""
GGUF_NAME = "model.gguf"
_TRIAL_SECONDS, _REMOVE_SECONDS = 300.0, 30.0
_UNCOUNTED = re.compile(r"(?!)")

_S, _U, _A, _V, _B, _W = (f"tuitune message {letter}" for letter in "abcdef")


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around messages; the begin-of-text token, which runtimes add, is left out.

    `no_system` comes first where a conversation has no system message, `reply` before the reply to be generated.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    no_system: str
    reply: str

    def prompt(self, messages: Conversation) -> str:
        """The prompt for a conversation that ends with a user message, as the Go template makes it."""
        around = {"user": self.user, "assistant": self.assistant, "system": self.system}
        text = "" if any(message["role"] == "system" for message in messages) else self.no_system
        for message in messages:
            before, after = around[message["role"]] or ("", "")
            text += f"{before}{message['content']}{after}"
        return text + self.reply

    def go_template(self) -> str:
        """The same as a Go template over Ollama's `.Messages`."""
        turns = {"system": self.system, "user": self.user, "assistant": self.assistant}
        branches = []
        for role, around in turns.items():
            if around is None:
                continue
            before, after = map(_go_text, around)
            if role == "user":
                after += f"{{{{ if $last }}}}{_go_text(self.reply)}{{{{ end }}}}"
            if role == "assistant":  # a last message of the assistant's own is gone on with
                after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}"
            branches.append(f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        opening = f"{{{{ if not .System }}}}{_go_text(self.no_system)}{{{{ end }}}}" if self.no_system else ""
        return (
            f"{opening}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
            f"{{{{ {'{{ else '.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        )


def pieces(tokenizer: Any, prompt: Prompt) -> Pieces:
    """The pieces of the prompts for a reply, proven on conversations of several shapes.

    Raises TuituneError where the template does more than put text around messages, so that no Go template of this
    form does the same.
    """
    try:
        divided = _divided(tokenizer, prompt)
        for shape in ("u", "uau", "uauau", "su", "suau", "suauau"):
            if divided.system or "s" not in shape:
                messages = _conversation(shape)
                if divided.prompt(messages) != prompt(messages):
                    raise ValueError(shape)
    except Exception as error:  # templates raise what they like; all of it means the same here
        raise TuituneError(
            "This model's chat template cannot be written as an Ollama template without changing prompts: "
            "export gguf:q8_0 and run it with llama.cpp, which runs the template itself."
        ) from error
    return divided


def modelfile(tokenizer: Any, prompt: Prompt) -> str:
    """Ollama's Modelfile for the GGUF beside it. Raises TuituneError."""
    parts = pieces(tokenizer, prompt)
    template = parts.go_template()
    stops = stop_texts(tokenizer, parts)
    if '"""' in template or template.endswith('"') or any('"' in stop or "\n" in stop for stop in stops):
        raise TuituneError(
            "This model's chat template holds quotation marks that a Modelfile cannot: export gguf:q8_0."
        )
    lines = [
        f"FROM ./{GGUF_NAME}",
        "",
        f'TEMPLATE """{template}"""',
        "",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def stop_texts(tokenizer: Any, parts: Pieces) -> list[str]:
    """Texts at which a reply is over: what ends a turn, and the special tokens that would begin another."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [end_of_turn(tokenizer)]
    turns = [around[0] for around in (parts.user, parts.assistant, parts.system) if around]
    begins = [token for token in sorted(special) if any(turn.lstrip().startswith(token) for turn in turns)]
    return [stop for stop in dict.fromkeys([*ends, *begins]) if stop]


def write_modelfile(folder: Path, run: Run) -> tuple[str, ...]:
    """Write the run's Modelfile into `folder`; notices for the user come back. Raises TuituneError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.adapter, trust_remote_code=False)
    prompt = prompts_of(tokenizer, thinks=run.thinks())
    (folder / "Modelfile").write_text(modelfile(tokenizer, prompt), encoding="utf-8")
    notices = []
    if pieces(tokenizer, prompt).system is None:
        notices.append(_("The model's chat template has no system message, so Ollama leaves those out."))
    if "strftime_now" in json.dumps(tokenizer.chat_template):
        text = _("The model's chat template writes the date, which in the Modelfile stays that of the export.")
        notices.append(text)
    return tuple(notices)


def tried(folder: Path, prompt: str, scratch: Path, cancelled: Callable[[], bool]) -> tuple[str, ...]:
    """Where Ollama is installed, have it make a model of an exported folder and answer a prompt: what came of it.

    The model has a name of its own and is removed again. Logs go into `scratch`. Raises Cancelled alone: an export is
    whole whether or not an Ollama is here, runs, or takes it.
    """
    program = shutil.which("ollama")
    if program is None:
        return ()
    name = f"tuitune-trial-{secrets.token_hex(4)}"
    reply = scratch / "ollama-reply.txt"
    ends_at = time.monotonic() + _TRIAL_SECONDS

    def run(*words: str, answer: Path, stop: Callable[[], bool]) -> None:
        log = scratch / "ollama.log"
        run_child(
            [program, *words], log, counted=_UNCOUNTED, progress=lambda done, total: None, cancelled=stop, reply=answer
        )

    def stop() -> bool:
        return cancelled() or time.monotonic() > ends_at

    try:
        run("create", name, "-f", str(folder / "Modelfile"), answer=scratch / "ollama-create.txt", stop=stop)
        run("run", name, "--", prompt, answer=reply, stop=stop)
        answer = one_line(reply.read_text(encoding="utf-8", errors="replace"), max_length=200)
    except Cancelled:
        if cancelled():
            raise
        return (_("Ollama was tried and did not answer in time."),)
    except ChildFailed as failed:
        return (_("Ollama was tried and did not take it ({reason}).", reason=failed.last_line),)
    except OSError as error:
        return (_("Ollama was not tried ({reason}).", reason=one_line(explain(error), max_length=200)),)
    finally:
        deadline = time.monotonic() + _REMOVE_SECONDS
        with suppress(Cancelled, ChildFailed, OSError):
            run("rm", name, answer=scratch / "ollama-rm.txt", stop=lambda: time.monotonic() > deadline)
    return (
        _(
            "Tried in Ollama, which answered {prompt!r} with: {answer}",
            prompt=one_line(prompt, max_length=60),
            answer=answer or _("nothing"),
        ),
    )


def prompts_of(tokenizer: Any, *, thinks: bool) -> Prompt:
    """What makes the prompt for a reply, as chat gives it to the model, without the begin-of-text token."""
    template = ChatTemplate(tokenizer)

    def prompt(messages: Conversation) -> str:
        text = prompt_as_trained(template, messages, thinks=thinks)
        return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text

    return prompt


def _divided(tokenizer: Any, prompt: Prompt) -> Pieces:
    """Read the pieces off prompts for a reply; where two pieces meet, the end-of-turn token ends the first."""
    chat = [_user(_U), _assistant(_A), _user(_V), _assistant(_B), _user(_W)]
    opening, to_assistant, to_user, _second, _third, to_reply = _between(prompt, chat)
    end = end_of_turn(tokenizer)
    after_user = _through(to_assistant, end)
    if not after_user or not to_reply.startswith(after_user):
        after_user = to_reply[: common_prefix(to_assistant, to_reply)]
    before_user = to_user[len(_through(to_user, end)) :]
    if not opening.endswith(before_user):
        shared_length = common_prefix(opening[::-1], to_user[::-1])
        before_user = to_user[len(to_user) - shared_length :]
    try:
        before_system, system_to_user, *_ = _between(prompt, [{"role": "system", "content": _S}, *chat])
        system = (before_system, _without_suffix(system_to_user, before_user))
    except Exception:  # a template without system messages refuses them, or writes them inside the user's
        system = None
    return Pieces(
        user=(before_user, after_user),
        assistant=(to_assistant[len(after_user) :], _without_suffix(to_user, before_user)),
        system=system,
        no_system=_without_suffix(opening, before_user),
        reply=to_reply[len(after_user) :],
    )


def _through(text: str, end: str) -> str:
    """`text` up to the end-of-turn token and the white space after it; empty where it has none."""
    match = re.match(rf".*?{re.escape(end)}\s*", text, re.DOTALL) if end else None
    return match[0] if match else ""


def _between(prompt: Prompt, messages: Conversation) -> list[str]:
    """The prompt cut at the messages' contents: one piece more than there are messages."""
    remaining, texts = prompt(messages), []
    for message in messages:
        content = message["content"] or ""
        if remaining.count(content) != 1:
            raise ValueError("content repeated or left out")
        piece, _content, remaining = remaining.partition(content)
        texts.append(piece)
    return [*texts, remaining]


def _conversation(shape: str) -> Conversation:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    contents = [
        "Be brief.",
        "What's 2 + 2?\n\nShow {{ .How }} & why",
        "4 <b>four</b>",
        "日本語も？",
        "はい。",
        "Thanks",
    ]
    return [{"role": roles[role], "content": contents[place]} for place, role in enumerate(shape)]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _without_suffix(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise ValueError("turns overlap")
    return text[: len(text) - len(suffix)]


def _go_text(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
