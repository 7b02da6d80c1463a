"""Looks at what a row says: likely secrets, damaged text, unusual scripts, turns out of order."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise

from tuitune.conversation import Conversation, Message, Sample
from tuitune.language import N_, Sentence, _

_SECRETS = {
    N_("private key"): r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    N_("AWS access key"): r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    N_("Hugging Face token"): r"\bhf_[A-Za-z0-9]{30,}\b",
    N_("GitHub token"): r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b",
    N_("OpenAI or Anthropic key"): r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}",
    N_("Google API key"): r"\bAIza[0-9A-Za-z_-]{35}\b",
    N_("Slack token"): r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    N_("JSON web token"): r"\beyJ[A-Za-z0-9_-]{10,300}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    N_("password in a URL"): r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,64}:[^\s:/@]{3,64}@",
    N_("e-mail address"): r"\b[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}\b",
}
_SECRET = {name: re.compile(pattern) for name, pattern in _SECRETS.items()}
# Each pattern holds one of these, which is quicker to look for.
_SECRET_HINT = re.compile(r"@|-----BEGIN|AKIA|ASIA|hf_|gh[pousr]_|github_pat_|sk-|AIza|xox|eyJ")

# UTF-8 read as Windows-1252 or Latin-1, and the replacement character of a reader that gave up.
_MOJIBAKE = re.compile(
    "Ã[\x80-\xbf©¨ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸ]|â€[™œ\x9d“”¢¦˜]|Â[\xa0-\xbf]|ï»¿|\ufffd"
)
_INVISIBLE = re.compile("[\u200b\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\x00-\x08\x0b\x0c\x0e-\x1f]")

SCRIPTS = {
    N_("Latin"): "A-Za-zÀ-ɏ",
    N_("Greek"): "Ͱ-Ͽ",
    N_("Cyrillic"): "Ѐ-ԯ",
    N_("Armenian"): "԰-֏",
    N_("Hebrew"): "֐-׿",
    N_("Arabic"): "؀-ۿݐ-ݿ",
    N_("Devanagari"): "ऀ-ॿ",
    N_("Bengali"): "ঀ-৿",
    N_("Tamil"): "஀-௿",
    N_("Gurmukhi"): "਀-੿",
    N_("Gujarati"): "઀-૿",
    N_("Telugu"): "ఀ-౿",
    N_("Kannada"): "ಀ-೿",
    N_("Malayalam"): "ഀ-ൿ",
    N_("Sinhala"): "඀-෿",
    N_("Lao"): "຀-໿",
    N_("Tibetan"): "ༀ-࿿",
    N_("Myanmar"): "က-႟",
    N_("Ethiopic"): "ሀ-፿",
    N_("Khmer"): "ក-៿",
    N_("Thai"): "฀-๿",
    N_("Georgian"): "Ⴀ-ჿ",
    N_("Hangul"): "가-힯",
    N_("Kana"): "぀-ヿ",
    N_("Han"): "一-鿿",
}
_SCRIPT = {name: re.compile(f"[{characters}]") for name, characters in SCRIPTS.items()}


def texts(sample: Sample) -> Iterator[str]:
    """Every text of the row."""
    if sample.messages is None:
        yield sample.text or ""
        return
    for turn in [*sample.messages, *(sample.rejected or [])]:
        yield from texts_of(turn)


def texts_of(turn: Message) -> Iterator[str]:
    """Every text of one turn."""
    yield turn["content"] or ""
    yield turn.get("reasoning_content", "")
    if calls := turn.get("tool_calls"):
        yield json.dumps(calls, ensure_ascii=False, default=str)


def secrets(text: str) -> list[str]:
    """The kinds of secret that the text seems to hold; never the secret itself."""
    if not _SECRET_HINT.search(text):
        return []
    return [name for name, pattern in _SECRET.items() if pattern.search(text)]


def is_mojibake(text: str) -> bool:
    """Whether the text was read in a wrong encoding once."""
    return not text.isascii() and _MOJIBAKE.search(text) is not None


def has_invisible(text: str) -> bool:
    """Whether it holds control, zero-width or bidirectional characters that a reader does not see."""
    return _INVISIBLE.search(text) is not None


def scripts(text: str) -> frozenset[str]:
    """The writing systems of its letters."""
    if text.isascii():
        return _LATIN_ONLY
    return frozenset(name for name, pattern in _SCRIPT.items() if pattern.search(text))


_LATIN_ONLY = frozenset({"Latin"})


def role_problem(messages: Conversation) -> tuple[Sentence, Sentence] | None:
    """What is wrong with the order of the turns, if anything, and what to do."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        return _("a system turn after the first"), _("move it to the beginning")
    roles_after_system = [role for role in roles if role != "system"]
    if roles_after_system and roles_after_system[0] == "assistant":
        return _("begins with a reply"), _("put what it answers before it")
    if roles_after_system and roles_after_system[-1] != "assistant":
        return _("ends without a reply"), _("add the reply, or take the last turn out")
    for first, second in pairwise(roles_after_system):
        if first == second and first != "tool":
            return _("two {role} turns in a row", role=first), _("join them into one")
    called = any(message.get("tool_calls") or _CALL_IN_TEXT.search(message["content"] or "") for message in messages)
    if "tool" in roles_after_system and not called:
        return _("a tool's answer without a call"), _("give the turn before it its tool_calls")
    return None


# How models write a call where the template leaves that to the dataset.
_CALL_IN_TEXT = re.compile(r"<\|?tool_?call|\[TOOL_CALLS\]|<function|<\|python_tag\|>|Action:")


def thinking(messages: Conversation) -> set[bool]:
    """Where the last reply has its thinking: True for inline between tags, False for a field of its own."""
    last = next((turn for turn in reversed(messages) if turn["role"] == "assistant"), None)
    if last is None:
        return set()
    places = {False} if last.get("reasoning_content", "").strip() else set()
    thoughts, tag, _reply = (last["content"] or "").partition("</think>")
    return places | ({True} if tag and thoughts.removeprefix("<think>").strip() else set())


def has_empty_reply(messages: Conversation) -> bool:
    """Whether an assistant turn says nothing and calls nothing."""
    return any(
        turn["role"] == "assistant" and not (turn["content"] or "").strip() and not turn.get("tool_calls")
        for turn in messages
    )
