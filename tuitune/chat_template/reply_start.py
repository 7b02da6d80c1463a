"""What a reply begins behind: the text that stood before the replies in training, which prompts should end in too.

Of data without thinking, some chat templates write an empty thinking block (Qwen 3) or a channel (gpt-oss) before each
reply, which their prompt for a new reply leaves out; others (DeepSeek R1) prompt for thinking that was never trained.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tuitune.chat_template.template import TAG, ChatTemplate, common_prefix
from tuitune.conversation import Conversation, Message, UnusableRow
from tuitune.language import _
from tuitune.text import one_line

_SYSTEM: Message = {"role": "system", "content": "text 0"}
_USER: Message = {"role": "user", "content": "text 1"}
_REPLY: Message = {"role": "assistant", "content": "text 2"}
_UNASKED = "add_generation_prompt and enable_thinking is not defined"
_NO_THOUGHT = re.compile(r"(?:\s|</?(?:\w+:)?think(?:ing)?>|\[/?THINK\])+")
_CHATS: list[Conversation] = [[_USER], [_USER, _REPLY, _USER], [_SYSTEM, _USER, _REPLY, _USER]]


def prompt_as_trained(template: ChatTemplate, messages: Conversation, *, thinks: bool = False) -> str:
    """The text from which a trained model replies to these messages. Raises UnusableRow.

    One whose data brings its own thinking has learnt to begin there, behind the template's own prompt.
    """
    own = template.text(template.standard(messages), prompt=True)
    if thinks:
        return own
    trained = template.before_reply(messages).rstrip(" ")  # which belongs to the reply's first word
    return own if own.rstrip(" ") == trained else trained


def difference(template: ChatTemplate) -> tuple[str, str] | None:
    """What the template's prompt for a reply ends in, and what stands there in training; None where it is the same."""
    own, trained = next(((a, b) for a, b in _prompts(template) if a != b), ("", ""))
    if own == trained:
        return None
    shared_length = common_prefix(own, trained)
    for tag in TAG.finditer(trained):
        if tag.start() < shared_length < tag.end():
            shared_length = tag.start()
    return own[shared_length:], trained[shared_length:]


def begin_as_trained(tokenizer: Any) -> tuple[str, ...]:
    """Change a tokenizer's chat template so that its prompt for a reply is that of data without thinking.

    Returns notices for the user: what has changed, or how the two differ where no change is sure to do only that.
    """
    template = ChatTemplate(tokenizer)
    prompts = _prompts(template)
    differing = difference(template)
    if differing is None:
        return ()
    template_start, trained_start = differing
    for changed in _candidates(template.source, "" if template_start else trained_start):
        if _changes_only_prompts(template, ChatTemplate(tokenizer, changed), prompts):
            named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
            tokenizer.chat_template = changed if named is None else {**named, "default": changed}
            return (
                _(
                    "The exported chat template begins each reply behind {trained} instead of {own}, as in training "
                    "on data without thinking; with the base model's template it may think again.",
                    trained=shown(trained_start),
                    own=shown(template_start),
                ),
            )
    return (
        _(
            "Programs that use the chat template begin replies behind {own}, where training had {trained}, as the "
            "data has no thinking: the ollama export begins them as trained, where the template can be written as "
            "one.",
            own=shown(template_start),
            trained=shown(trained_start),
        ),
    )


def _prompts(template: ChatTemplate) -> list[tuple[str, str]]:
    """The template's own prompt for a reply and the trained one, for each shape of conversation that it takes."""
    prompts = []
    for chat in _CHATS:
        with suppress(UnusableRow):
            prompts.append((template.text(template.standard(chat), prompt=True), prompt_as_trained(template, chat)))
    return prompts


def _candidates(source: str, ending: str) -> Iterator[str]:
    """The template with its thinking turned off, then with `ending` behind its prompt, where that is only thinking.

    Another ending may be the model's own choice, as between a reply and a tool call.
    """
    if "enable_thinking" in source:
        yield "{%- set enable_thinking = false -%}\n" + source
    if _NO_THOUGHT.fullmatch(ending):
        text = json.dumps(ending, ensure_ascii=False)
        yield source.removesuffix("\n") + f"{{%- if {_UNASKED} %}}{{{{- {text} }}}}{{%- endif %}}"


def _changes_only_prompts(before: ChatTemplate, after: ChatTemplate, prompts: list[tuple[str, str]]) -> bool:
    chats_with_reply = [[*chat, _REPLY] for chat in _CHATS]
    return [trained for _own, trained in prompts] == [own for own, _trained in _prompts(after)] and (
        [_text(before, chat) for chat in chats_with_reply] == [_text(after, chat) for chat in chats_with_reply]
    )


def _text(template: ChatTemplate, chat: Conversation) -> str | None:
    try:
        return template.text(template.standard(chat))
    except UnusableRow:
        return None


def shown(text: str) -> str:
    """A part of a prompt, for a person."""
    return one_line(json.dumps(text, ensure_ascii=False), max_length=80) if text else _("nothing")
