"""Which token ends a reply: what the chat template writes right after one."""

from typing import Any

_REPLY = "tuitune reads where this reply ends"


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Id of the special token that the chat template ends an assistant turn with; else the tokenizer's end token.

    A model whose runtime does not stop at this token goes on talking to itself. None where there is no such token.
    """
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _REPLY}]
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False)
        except Exception:  # a template may refuse anything, in any way
            return _id(tokenizer.eos_token_id)
        tail = text.rpartition(_REPLY)[2].lstrip()
        first = tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
        if first and first[0] in tokenizer.added_tokens_decoder:
            return int(first[0])
    return _id(tokenizer.eos_token_id)


def template_starts_with_bos(tokenizer: Any) -> bool:
    """Whether the chat template itself writes the token that begins a text."""
    if not tokenizer.chat_template or not tokenizer.bos_token:
        return False
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    except Exception:  # as above
        return False
    return bool(text.startswith(tokenizer.bos_token))


def _id(token: Any) -> int | None:
    return None if token is None else int(token)
