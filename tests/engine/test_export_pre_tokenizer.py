"""How a tokenizer splits text is recognised by its own pattern, or refused; it is never guessed."""

from typing import Any

import pytest

from tuitune.export.convert import Unrecognised, pre_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    """The parts of a tokenizer.json that matter here."""
    outer = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"normalizer": None, "pre_tokenizer": outer, "model": {"type": "BPE", **model}}


def split(pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    by = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return by, {**BYTE_LEVEL, "use_regex": False}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (tokenizer(BYTE_LEVEL), "gpt-2"),
        (tokenizer({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), "smollm"),
        (tokenizer(*split(LLAMA_3), ignore_merges=True), "llama-bpe"),
        (tokenizer(*split(LLAMA_3)), "smaug-bpe"),
        (tokenizer(*split(QWEN_2)) | {"normalizer": {"type": "NFC"}}, "qwen2"),
        (tokenizer(*split(TEKKEN), ignore_merges=True), "tekken"),
    ],
)
def test_a_known_pattern_has_llama_cpps_name(data: dict[str, Any], name: str) -> None:
    assert pre_tokenizer(data) == name


@pytest.mark.parametrize(
    "data",
    [
        tokenizer(*split(QWEN_2 + "|x")),
        tokenizer(*split(QWEN_2), ignore_merges=True),
        tokenizer({**BYTE_LEVEL, "add_prefix_space": True}),
        tokenizer({**BYTE_LEVEL, "use_regex": False}),
        tokenizer({"type": "Digits", "individual_digits": False}, BYTE_LEVEL),
        tokenizer({"type": "Metaspace"}),
        tokenizer(BYTE_LEVEL, byte_fallback=True),
        tokenizer(BYTE_LEVEL) | {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "WordPiece"}},
        {},
    ],
)
def test_anything_else_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(Unrecognised):
        pre_tokenizer(data)
