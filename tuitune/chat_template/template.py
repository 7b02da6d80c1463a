"""Renders a conversation through the tokenizer's chat template and knows which characters came from which message.

A template is a program, so its output is never guessed. Each piece of a message is wrapped in two private
characters, the conversation is rendered, and the private characters are taken out again: what remains must be,
character for character, what the template makes of the untouched conversation. Only then are the places where the
private characters stood used. Where a template looks at the text in a way that the private characters disturb, the
row is refused with the reason rather than masked by guesswork.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuitune.conversation import REASONING_FIELDS, THINKING, Conversation, Message, UnusableRow
from tuitune.language import N_, _
from tuitune.text import one_line

_OTHER_TEMPLATE = N_("write the row as the template expects it, or choose a model whose template takes it")


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
TAG = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,40}\]")
_TAGS_AT_END = re.compile(rf"(?:{TAG.pattern})+\s*$")
"""What templates and datasets call the text that a reasoning model thinks before its reply."""


class ChatTemplate:
    """A tokenizer's chat template. Not safe for use from several threads at once."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        from tuitune.chat_template.sandbox import sandboxed

        self.source: str = chat_template or tokenizer.get_chat_template()
        self._tool_source: str = chat_template or tokenizer.get_chat_template(tools=[{}])
        self._render_jinja = sandboxed(self.source)
        self.variables = dict(tokenizer.special_tokens_map)
        read = [name for name in REASONING_FIELDS if re.search(rf"[.'\"]{name}\b", self.source)]
        self._reasoning_field = read[0] if read else REASONING_FIELDS[0]
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}
        named = [tokenizer.eos_token] if tokenizer.eos_token else []
        self._end = _any_of([*named, *END_MARKERS])
        self.closing = ""
        """What is written behind a last reply that the template leaves open: the end marker of its other turns."""
        self._opening = ""
        """The tag that a turn's header begins with, where it is one."""
        # Templates made for tool calling may expect a list even where there are no tools.
        self._no_tools: list[Any] | None = None
        if not self._accepts(_stand_in("user", "assistant")):
            self._no_tools = []
        self._learn_end()
        self._system_is_own_turn = self._accepts(_stand_in("system", "user", "assistant"))

    def _learn_end(self) -> None:
        """Learn what ends a turn that has no known marker, what closes a last one left open, and what begins one."""
        try:
            rendered = self._locate(
                probe := _stand_in("user", "assistant", "user", "assistant"), None, self.text(probe)
            )
        except UnusableRow:
            return
        first, last = rendered.turns
        after_first = rendered.text[first.end : rendered.contents[2][0]]
        after_last = rendered.text[last.end :].strip()
        if first.ended and not last.ended and not after_last:
            self.closing = rendered.text[rendered.contents[1][1] : first.end]
        elif not last.ended and after_last and after_first.strip().startswith(after_last):
            tags = TAG.findall(after_last)
            self._end = _any_of([tags[-1] if tags and after_last.endswith(tags[-1]) else after_last])
        opening = TAG.match(after_first.lstrip())
        if first.ended and opening and not self._end.match(opening[0]):
            self._opening = opening[0]

    def _accepts(self, messages: Conversation) -> bool:
        try:
            self._locate(messages, None, self.text(messages))
        except UnusableRow:
            return False
        return True

    def keeps_thinking(self, *, inline: bool) -> bool:
        """Whether what is thought before a last reply is rendered: from a field of its own, or between tags inline."""
        messages = _stand_in("user", "assistant")
        if inline:
            messages[1]["content"] = "<think>\nthought\n</think>\n\ntext1"
        else:
            messages[1]["reasoning_content"] = "thought"
        try:
            return "thought" in self.text(messages)
        except UnusableRow:
            return False

    def end_of_turn(self) -> str:
        """The text that ends a conversation's last reply; empty where nothing does."""
        try:
            rendered = self.render(_stand_in("user", "assistant"))
        except UnusableRow:
            return ""
        (turn,) = rendered.turns
        end = self._end.search(rendered.text, rendered.contents[-1][1], turn.end) if turn.ended else None
        return end[0] if end else ""

    def standard(self, messages: Conversation) -> Conversation:
        """The messages as this template takes them: a system message it has no place for opens the first user turn."""
        first = messages[0] if messages else None
        if self._system_is_own_turn or first is None or first["role"] != "system":
            return messages
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise UnusableRow(
                _("the chat template has no place for its system message"), _("let a user turn follow it")
            )
        merged: Message = {**messages[1], "content": f"{first['content']}\n\n{messages[1]['content']}"}
        return [merged, *messages[2:]]

    def text(self, messages: Conversation, tools: list[Any] | None = None, *, prompt: bool = False) -> str:
        """The rendered text; with `prompt`, ending where the assistant's next turn begins. Raises UnusableRow."""
        import jinja2

        try:
            rendered, _spans = self._render_jinja(
                [[self._renamed(message) for message in messages]],
                tools=tools or self._no_tools,
                chat_template=self._tool_source if tools else self.source,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except jinja2.TemplateError as error:
            reason = one_line(error, max_length=200)
            raise UnusableRow(
                _("the chat template refuses it ({reason})", reason=reason), _("change its turns accordingly")
            ) from None
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            reason = one_line(error, max_length=200)
            raise UnusableRow(
                _("the chat template fails on it ({reason})", reason=reason), _("correct its tools and tool calls")
            ) from None
        return str(rendered[0])

    def _renamed(self, message: Message) -> Mapping[str, Any]:
        if self._reasoning_field == REASONING_FIELDS[0] or REASONING_FIELDS[0] not in message:
            return message
        return {self._reasoning_field if name == REASONING_FIELDS[0] else name: v for name, v in message.items()}

    def before_reply(self, messages: Conversation) -> str:
        """The text that stands before a reply to these messages in training. Raises UnusableRow.

        Some templates write more there than in their prompt for a reply, such as an empty thinking block.
        """
        rendered = self.render([*messages, {"role": "assistant", "content": "text"}])
        return rendered.text[: rendered.turns[-1].start]

    def render(self, messages: Conversation, tools: list[Any] | None = None) -> Rendered:
        """The rendered text with every assistant turn located in it. Raises UnusableRow."""
        messages = self.standard(messages)
        try:
            return self._rendered(messages, tools)
        except UnusableRow:
            if not any("tool_calls" in message for message in messages):
                raise
            # Some templates take a call's arguments as JSON text, most as an object.
            try:
                return self._rendered([_with_text_arguments(message) for message in messages], tools)
            except UnusableRow:
                pass
            raise

    def _rendered(self, messages: Conversation, tools: list[Any] | None) -> Rendered:
        text = self._closed(messages, tools)
        if not tools:
            shape = self._shape(messages)
            if shape is not None and (rendered := shape.locate(text, [m["content"] or "" for m in messages])):
                return rendered
        return self._locate(messages, tools, text)

    def _closed(self, messages: Conversation, tools: list[Any] | None = None) -> str:
        text = self.text(messages, tools)
        return text + self.closing if self.closing and messages[-1]["role"] == "assistant" else text

    def _shape(self, messages: Conversation) -> "_Shape | None":
        """What surrounds the contents of plain messages with these roles, learnt once from stand-in contents."""
        if any(not _is_plain(message) for message in messages):
            return None
        roles = tuple(message["role"] for message in messages)
        if roles not in self._shapes:
            if len(self._shapes) > 4096:
                self._shapes.clear()
            try:
                rendered = self._locate(stand_in := _stand_in(*roles), None, self._closed(stand_in))
                self._shapes[roles] = _Shape.of(rendered, len(roles))
            except UnusableRow:
                self._shapes[roles] = None
        return self._shapes[roles]

    def _locate(self, messages: Conversation, tools: list[Any] | None, text: str) -> Rendered:
        marked = _Marked(messages)
        pieces = marked.find(self._closed(marked.messages, tools), text)
        turns = []
        for index, message in enumerate(messages):
            own = [piece for piece in pieces if piece.message == index and not piece.is_repeated]
            if not own and _has_text(message):
                raise UnusableRow(
                    _(
                        "the chat template leaves out message {number} ({role})",
                        number=index + 1,
                        role=one_line(message["role"]),
                    ),
                    _("take that turn out, or say it in another"),
                )
            if message["role"] != "assistant":
                continue
            if not own:
                shown = _("message {number} (assistant)", number=index + 1)
                if message.get("tool_calls"):
                    raise UnusableRow(
                        _("the chat template leaves out the tool calls of {message}", message=shown), _(_OTHER_TEMPLATE)
                    )
                raise UnusableRow(_("{message} is empty", message=shown), _("write the reply, or take the row out"))
            before = max(
                (piece.end for piece in pieces if piece.message < index and piece.start < own[0].start), default=0
            )
            after = min((piece.start for piece in pieces if piece.message > index), default=len(text))
            if any(
                piece.start > own[0].start for piece in pieces if piece.message < index and not piece.is_repeated
            ) or (after < own[-1].end):
                raise UnusableRow(_("the chat template changes the order of its messages"), _(_OTHER_TEMPLATE))
            start = self._start(messages, tools, index, own[0], text[before : own[0].start])
            turns.append(self._turn(messages, tools, index, start, text[own[-1].end : after], own[-1].end))
        return Rendered(text, turns, sorted({(piece.start, piece.end) for piece in pieces}))

    def _start(self, messages: Conversation, tools: list[Any] | None, index: int, first: "_Piece", gap: str) -> int:
        """Where a turn begins: at its text, its thinking or its tool call, but after the generation prompt.

        `gap` is the text between the message before and the turn's first piece. Where that is the content, what the
        template writes before it (a header, an empty thinking block) is not the turn's; before thinking and tool
        calls stand tags that the model must write itself.
        """
        if first.kind == "content" and not (first.before and gap.endswith(first.before)):
            return first.start
        header = 0
        if index:
            marked = _Marked(messages[:index])
            prompt = self.text(marked.messages, tools, prompt=True)
            marks = list(_MARK.finditer(prompt))
            prompt = prompt[marks[-1].end() :] if marks else prompt
            header = common_prefix(prompt, gap)
            # Instructions may stand in the prompt before the header, and only there.
            if header < len(prompt) and (tags := _TAGS_AT_END.search(prompt)) and tags[0] in gap:
                header = max(header, gap.index(tags[0]) + len(tags[0]))
        for tag in TAG.finditer(gap):
            if tag.start() < header < tag.end():
                header = tag.start()
        if first.kind == "content":
            header = max(header, len(gap) - len(first.before))
        return first.start - len(gap) + header

    def _turn(
        self, messages: Conversation, tools: list[Any] | None, index: int, start: int, tail: str, last: int
    ) -> Turn:
        """The turn from `start`, with its end marker if one is in `tail`, the text from `last` to the next message."""
        if self._opening:
            # A turn ends before the next one begins, though that may be one that the template adds by itself.
            tail = tail.partition(self._opening)[0]
        if end := self._end.search(tail):
            return Turn(start, last + end.end(), True)
        if not messages[index].get("tool_calls"):
            return Turn(start, last, False)
        # Without a marker, a call ends where the conversation ends when it is cut after this turn.
        marked = _Marked(messages[: index + 1])
        text = self.text(marked.messages, tools)
        own = text[list(_MARK.finditer(text))[-1].end() :].rstrip()
        return Turn(start, last + common_prefix(own, tail.rstrip()), False)


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
        for texts in (contents, [content.strip() for content in contents]):
            size = sum(map(len, self.around)) + sum(map(len, texts))
            if size != len(text):
                continue
            at, ranges, pieces = len(self.around[0]), [], [self.around[0]]
            for content, after in zip(texts, self.around[1:], strict=True):
                ranges.append((at, at + len(content)))
                at += len(content) + len(after)
                pieces += (content, after)
            if "".join(pieces) == text:
                turns = [Turn(ranges[i][0] + a, ranges[i][1] + b, ended) for i, a, b, ended in self.turns]
                return Rendered(text, turns, ranges)
        return None


class _Marked:
    """A copy of messages in which each piece of text stands between two private characters of its own."""

    def __init__(self, messages: Conversation) -> None:
        self._pieces: list[tuple[int, Kind, str]] = []
        self.messages: Conversation = []
        for index, message in enumerate(messages):
            twin = copy.deepcopy(message)
            if "reasoning_content" in twin:
                twin["reasoning_content"] = self._mark(twin["reasoning_content"], index, "reasoning")
            content = twin["content"]
            if content is not None:
                parts = THINKING.split(content) if message["role"] == "assistant" else [content]
                before = ""
                # Even places hold text, odd ones the tags that templates look for.
                for place in range(0, len(parts), 2):
                    before += parts[place - 1] if place else ""
                    part = parts[place]
                    spaced = before + part[: len(part) - len(part.lstrip())]
                    kind: Kind = "content" if place == len(parts) - 1 else "reasoning"
                    parts[place] = self._mark(part, index, kind, spaced.lstrip() if place else "")
                    before += part
                twin["content"] = "".join(parts)
            for call in twin.get("tool_calls") or []:
                function = call.get("function", call)
                for field in ("name", "arguments"):
                    if field in function:
                        function[field] = self._mark_all(function[field], index)
            self.messages.append(twin)

    def _mark(self, text: str, index: int, kind: "Kind", before: str = "") -> str:
        if _MARK.search(text):
            raise UnusableRow(_("it holds characters for private use (U+F0000 and up)"), _("take them out"))
        core = text.strip()
        if not core:
            return text
        number = len(self._pieces)
        if number >= 0xFFFE:
            raise UnusableRow(_("it has more than 65,000 pieces of text"), _("split it into several rows"))
        self._pieces.append((index, kind, before))
        at = text.index(core)
        return f"{text[:at]}{chr(_OPEN + number)}{core}{chr(_CLOSE + number)}{text[at + len(core) :]}"

    def _mark_all(self, value: Any, index: int) -> Any:
        if isinstance(value, str):
            return self._mark(value, index, "call")
        if isinstance(value, dict):
            return {name: self._mark_all(part, index) for name, part in value.items()}
        if isinstance(value, list):
            return [self._mark_all(part, index) for part in value]
        return value

    def find(self, marked_text: str, text: str) -> list["_Piece"]:
        """Each piece's place in `text`, in order. Raises UnusableRow."""
        if _MARK.sub("", marked_text) != text:
            raise UnusableRow(
                _("the chat template rewrites its text, so that its reply cannot be located exactly"),
                _(_OTHER_TEMPLATE),
            )
        starts: dict[int, int] = {}
        seen: set[int] = set()
        pieces = []
        for removed, mark in enumerate(_MARK.finditer(marked_text)):
            code, at = ord(mark[0]), mark.start() - removed
            if code < _CLOSE:
                starts[code - _OPEN] = at
            elif code - _CLOSE not in starts:
                raise UnusableRow(_("the chat template cuts off the beginning of a message"), _(_OTHER_TEMPLATE))
            else:
                number = code - _CLOSE
                message, kind, before = self._pieces[number]
                if number in seen and kind != "call":
                    raise UnusableRow(_("the chat template repeats part of a message"), _(_OTHER_TEMPLATE))
                pieces.append(_Piece(message, kind, starts.pop(number), at, before, number in seen))
                seen.add(number)
        if starts:
            raise UnusableRow(_("the chat template cuts off the end of a message"), _(_OTHER_TEMPLATE))
        return pieces


Kind = Literal["content", "reasoning", "call"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a message in the rendered text; `before` is what its content has between thinking tags before it.

    `is_repeated` marks a repetition: templates name a called function once more when they render its result.
    """

    message: int
    kind: Kind
    start: int
    end: int
    before: str
    is_repeated: bool


def _stand_in(*roles: str) -> Conversation:
    return [{"role": role, "content": f"text{place}"} for place, role in enumerate(roles)]


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in dict.fromkeys(texts)))


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    twin = copy.deepcopy(message)
    for call in twin["tool_calls"]:
        function = call.get("function", call)
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
    return twin


def _is_plain(message: Message) -> bool:
    content = message["content"]
    return (
        len(message) == 2
        and content is not None
        and bool(content)
        and not content.isspace()
        and (message["role"] != "assistant" or not THINKING.search(content))
    )


def _has_text(message: Message) -> bool:
    return bool((message["content"] or "").strip())


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many characters of texts, or turns of conversations, both begin with."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
