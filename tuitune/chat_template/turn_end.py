"""What ends a reply, for everything that must stop there: what the mask trains as the end of a turn."""

from typing import Any

from tuitune.chat_template.template import ChatTemplate
from tuitune.conversation import UnusableRow


def end_of_turn(tokenizer: Any, template: ChatTemplate | None = None) -> str:
    """The text that ends a reply: the chat template's, as the mask trains it, else the tokenizer's end token.

    `template` is the tokenizer's own where the caller has it already. Empty where neither is there.
    """
    if template is None and tokenizer.chat_template:
        template = ChatTemplate(tokenizer)
    return (template.end_of_turn() if template else "") or tokenizer.eos_token or ""


def end_of_turn_id(tokenizer: Any, template: ChatTemplate | None = None) -> int | None:
    """Id of the token that ends a reply; the tokenizer's end token where its text is several tokens, None without one.

    A model whose runtime does not stop at this token goes on talking to itself.
    """
    ids = tokenizer(end_of_turn(tokenizer, template), add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def template_starts_with_bos(tokenizer: Any) -> bool:
    """Whether the chat template itself writes the token that begins a text."""
    if not tokenizer.chat_template or not tokenizer.bos_token:
        return False
    try:
        text = ChatTemplate(tokenizer).text([{"role": "user", "content": "Hello"}])
    except UnusableRow:
        return False
    return text.startswith(tokenizer.bos_token)
