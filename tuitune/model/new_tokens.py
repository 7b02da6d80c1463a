"""New tokens: texts of the recipe that the tokenizer makes one token of, where it made several before."""

from collections.abc import Sequence
from typing import Any

from tuitune.errors import UnusableInput
from tuitune.text import safe_text


def add_new_tokens(tokenizer: Any, texts: Sequence[str]) -> None:
    """Give the tokenizer a token for each text, wherever that stands in a row, also inside a word.

    They are no special tokens: replies show them. Raises UnusableInput for a text that cannot be one.
    """
    if not texts:
        return
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    known = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for text in texts:
        shown = safe_text(text, max_length=60)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if text in vocabulary or (len(ids) == 1 and ids != [tokenizer.unk_token_id]):
            raise UnusableInput(
                "The tokenizer has {text!r} as one token already: take it out of model.new_tokens.", text=shown
            )
        if other := next((token for token in known if _takes_from(text, token)), None):
            raise UnusableInput(
                "{text!r} in model.new_tokens would take a part of the tokenizer's own {other!r}: take it out.",
                text=shown,
                other=safe_text(other, max_length=60),
            )
    # Found in the text as it is written, before the tokenizer rewrites anything.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    for text, token_id in zip(texts, tokenizer.convert_tokens_to_ids(list(texts)), strict=True):
        ids = tokenizer.encode(f"a{text}a", add_special_tokens=False)
        written = tokenizer.decode(ids)
        if token_id not in ids or text not in written:
            raise UnusableInput(
                "The tokenizer cannot write {text!r} back as it reads it (it writes {written!r}): take it out of "
                "model.new_tokens, or give it with a space before it.",
                text=safe_text(text, max_length=60),
                written=safe_text(written, max_length=60),
            )


def _takes_from(text: str, token: str) -> bool:
    """Whether a text holds a token, or ends as it begins, so that the text would be found in its place."""
    return token in text or any(text.endswith(token[:length]) for length in range(1, len(token)))
