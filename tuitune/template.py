"""Renders a conversation through the tokenizer's chat template and knows which characters came from which message.

A template is a program, so its output is never guessed. Each piece of a message is wrapped in two private
characters, the conversation is rendered, and the private characters are taken out again: what remains must be,
character for character, what the template makes of the untouched conversation. Only then are the places where the
private characters stood used. Where a template looks at the text in a way that the private characters disturb, the
row is refused with the reason rather than masked by guesswork.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from tuitune.errors import TuituneError
from tuitune.text import one_line


class Message(TypedDict):
    """One turn, in the shape that chat templates take."""

    role: str
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


Conversation = list[Message]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row of a dataset holds: a conversation with its tools, or plain text, or a preference pair."""

    messages: Conversation | None = None
    tools: list[Any] | None = None
    text: str | None = None
    rejected: Conversation | None = None


class UnusableRow(TuituneError):
    """A row that cannot be trained on; the message is the reason and does not name the row."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Characters `start:end` of the rendered text are one assistant turn and its end marker, where it has one."""

    start: int
    end: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text. `contents` are the character ranges that came from messages, in order."""

    text: str
    turns: list[Turn]
    contents: list[tuple[int, int]]


# Tokens that end a turn in the templates in use; which of them a template writes is seen in its output.
END_MARKERS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>",
    "<|call|>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "<|EOT|>", "<eos>", "[EOS]", "<|end_of_turn|>", "<|assistant_end|>", "<|role_end|>", "<|im_sep_end|>",
    "<|message_end|>", "<seed:eos>", "[e~[", "<|eos|>", "<|endofmessage|>", "<|message_sep|>",
)  # fmt: skip

_OPEN, _CLOSE = 0xF0000, 0x100000  # supplementary private use areas A and B: 65,534 code points each
_MARK = re.compile("[\U000f0000-\U0010ffff]")
_THINKING = re.compile(r"(</?think>|</?thinking>|</?thought>|\[/?THINK\])")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What templates and datasets call the text that a reasoning model thinks before its reply."""


class ChatTemplate:
    """A tokenizer's chat template. Not safe for use from several threads at once."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self.source: str = chat_template or tokenizer.get_chat_template()
        self._render_jinja = render_jinja_template
        self._variables = dict(tokenizer.special_tokens_map)
        named = [tokenizer.eos_token] if tokenizer.eos_token else []
        self._end = re.compile("|".join(re.escape(each) for each in dict.fromkeys([*named, *END_MARKERS])))
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}

    def text(self, messages: Conversation, tools: list[Any] | None = None, *, prompt: bool = False) -> str:
        """The rendered text; with `prompt`, ending where the assistant's next turn begins. Raises UnusableRow."""
        import jinja2

        try:
            rendered, _ = self._render_jinja(
                [messages],
                tools=tools or None,
                chat_template=self.source,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except jinja2.TemplateError as error:
            raise UnusableRow(f"the chat template refuses it: {one_line(error, max_length=200)}") from None
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RecursionError) as error:
            raise UnusableRow(f"the chat template fails on it ({one_line(error, max_length=200)})") from None
        return str(rendered[0])

    def render(self, messages: Conversation, tools: list[Any] | None = None) -> Rendered:
        """The rendered text with every assistant turn located in it. Raises UnusableRow."""
        text = self.text(messages, tools)
        if not tools:
            shape = self._shape(messages)
            if shape is not None and (rendered := shape.locate(text, [m["content"] or "" for m in messages])):
                return rendered
        return self._locate(messages, tools, text)

    def _shape(self, messages: Conversation) -> "_Shape | None":
        """What surrounds the contents of plain messages with these roles, learnt once from stand-in contents."""
        if any(not _is_plain(message) for message in messages):
            return None
        roles = tuple(message["role"] for message in messages)
        if roles not in self._shapes:
            if len(self._shapes) > 4096:
                self._shapes.clear()
            try:
                stand_in: Conversation = [{"role": role, "content": f"text{i}"} for i, role in enumerate(roles)]
                rendered = self._locate(stand_in, None, self.text(stand_in))
                self._shapes[roles] = _Shape.of(rendered, len(roles))
            except UnusableRow:
                self._shapes[roles] = None
        return self._shapes[roles]

    def _locate(self, messages: Conversation, tools: list[Any] | None, text: str) -> Rendered:
        marked = _Marked(messages)
        pieces = marked.find(self.text(marked.messages, tools), text)
        assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        turns = []
        for index, message in enumerate(messages):
            if index not in {owner for owner, _, _, _ in pieces} and _has_text(message):
                raise UnusableRow(f"the chat template leaves out message {index + 1} ({one_line(message['role'])})")
        for index in assistants:
            own = [piece for piece in pieces if piece[0] == index]
            if not own:
                raise UnusableRow(f"message {index + 1} (assistant) is empty")
            begin, last = own[0][2], own[-1][3]
            before = max((end for owner, _, _, end in pieces if owner < index), default=0)
            after = min((start for owner, _, start, _ in pieces if owner > index), default=len(text))
            if before > begin or after < last:
                raise UnusableRow("the chat template changes the order of its messages")
            if own[0][1] != "content":
                begin = min(begin, before + self._header_length(messages[:index], tools, text[before:begin]))
            end = self._end.search(text, last, after)
            turns.append(Turn(begin, end.end() if end else last, end is not None))
        return Rendered(text, turns, [(start, end) for _, _, start, end in pieces])

    def _header_length(self, earlier: Conversation, tools: list[Any] | None, gap: str) -> int:
        """How much of the text before a turn the generation prompt has already written."""
        if not earlier:
            return len(gap)
        marked = _Marked(earlier)
        prompt = self.text(marked.messages, tools, prompt=True)
        marks = list(_MARK.finditer(prompt))
        return _common_prefix(prompt[marks[-1].end() :] if marks else prompt, gap)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The text around each content, and where each assistant turn's end marker ends, counted from its content."""

    around: list[str]
    turns: list[tuple[int, int, int, bool]]

    @classmethod
    def of(cls, rendered: Rendered, messages: int) -> "_Shape | None":
        if len(rendered.contents) != messages:
            return None
        edges = [0, *(edge for content in rendered.contents for edge in content), len(rendered.text)]
        around = [rendered.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        turns = []
        for turn in rendered.turns:
            index = next(i for i, content in enumerate(rendered.contents) if content[0] >= turn.start)
            start, end = rendered.contents[index]
            turns.append((index, turn.start - start, turn.end - end, turn.ended))
        return cls(around, turns)

    def locate(self, text: str, contents: list[str]) -> Rendered | None:
        """The contents' places in `text`, if it is this shape around them, as they are or stripped."""
        for kept in (contents, [content.strip() for content in contents]):
            size = sum(map(len, self.around)) + sum(map(len, kept))
            if size != len(text):
                continue
            at, ranges, whole = len(self.around[0]), [], [self.around[0]]
            for content, after in zip(kept, self.around[1:], strict=True):
                ranges.append((at, at + len(content)))
                at += len(content) + len(after)
                whole += (content, after)
            if "".join(whole) == text:
                turns = [Turn(ranges[i][0] + a, ranges[i][1] + b, ended) for i, a, b, ended in self.turns]
                return Rendered(text, turns, ranges)
        return None


class _Marked:
    """A copy of messages in which each piece of text stands between two private characters of its own."""

    def __init__(self, messages: Conversation) -> None:
        self._pieces: list[tuple[int, str]] = []
        self.messages: Conversation = []
        for index, message in enumerate(messages):
            twin = copy.deepcopy(message)
            reasoned = False
            if "reasoning_content" in twin:
                reasoned = True
                marked = self._mark(twin["reasoning_content"], index, "reasoning")
                # Each template reads the one name it knows.
                twin.update(dict.fromkeys(REASONING_FIELDS, marked))  # type: ignore[typeddict-item]
            content = twin["content"]
            if content is not None:
                parts = _THINKING.split(content) if message["role"] == "assistant" else [content]
                # Even places hold text, odd ones the tags that templates look for.
                for place in range(0, len(parts), 2):
                    kind = "content" if len(parts) == 1 and not reasoned else "reasoning"
                    parts[place] = self._mark(parts[place], index, kind)
                twin["content"] = "".join(parts)
            for call in twin.get("tool_calls") or []:
                function = call.get("function", call)
                for field in ("name", "arguments"):
                    if field in function:
                        function[field] = self._mark_all(function[field], index)
            self.messages.append(twin)

    def _mark(self, text: str, index: int, kind: str) -> str:
        if _MARK.search(text):
            raise UnusableRow("it holds characters of the supplementary private use areas (U+F0000 and up)")
        core = text.strip()
        if not core:
            return text
        number = len(self._pieces)
        if number >= 0xFFFE:
            raise UnusableRow("it has more than 65,000 pieces of text")
        self._pieces.append((index, kind))
        at = text.index(core)
        return f"{text[:at]}{chr(_OPEN + number)}{core}{chr(_CLOSE + number)}{text[at + len(core) :]}"

    def _mark_all(self, value: Any, index: int) -> Any:
        if isinstance(value, str):
            return self._mark(value, index, "call")
        if isinstance(value, dict):
            return {name: self._mark_all(each, index) for name, each in value.items()}
        if isinstance(value, list):
            return [self._mark_all(each, index) for each in value]
        return value

    def find(self, marked_text: str, text: str) -> list[tuple[int, str, int, int]]:
        """(message, kind, start, end) of each piece in `text`, in order. Raises UnusableRow."""
        if _MARK.sub("", marked_text) != text:
            raise UnusableRow("the chat template rewrites its text, so its reply cannot be located exactly")
        opened: dict[int, int] = {}
        found = []
        for removed, mark in enumerate(_MARK.finditer(marked_text)):
            code, at = ord(mark[0]), mark.start() - removed
            if code < _CLOSE:
                if opened.setdefault(code - _OPEN, at) != at:
                    raise UnusableRow("the chat template repeats part of a message")
            elif code - _CLOSE not in opened:
                raise UnusableRow("the chat template cuts off the beginning of a message")
            else:
                index, kind = self._pieces[code - _CLOSE]
                found.append((index, kind, opened.pop(code - _CLOSE), at))
        if opened:
            raise UnusableRow("the chat template cuts off the end of a message")
        return found


def _is_plain(message: Message) -> bool:
    content = message["content"]
    return (
        len(message) == 2
        and content is not None
        and bool(content)
        and not content.isspace()
        and (message["role"] != "assistant" or not _THINKING.search(content))
    )


def _has_text(message: Message) -> bool:
    return bool((message["content"] or "").strip())


def _common_prefix(a: str, b: str) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
