"""What may be shown on a terminal: outside text with everything taken out that a terminal would obey."""

import re
from collections.abc import Iterable
from functools import reduce

from tuitune.language import Sentence, _

# C0 but tab and newline, DEL, C1, bidirectional controls, line and paragraph separators, zero-width
# joiners that hide text, the BOM, tag characters, and lone surrogates (which cannot be encoded).
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MOVES = re.compile(f"{_OBEYED.pattern}|[\t\n]")
_CARRIAGE_RETURN = re.compile("\r\n?")


def safe_text(text: object, *, max_length: int | None = None) -> str:
    """`text` as it may be drawn: control characters become visible stand-ins, long text is cut.

    Newlines and tabs stay. ESC and its kind become the Unicode control picture (``␛``); C1, bidirectional and
    other invisible controls become ``�``. With `max_length` (characters) the end is replaced by ``…``.
    A sentence in which nothing has to be changed stays one, so that it can be worded in other languages.
    """
    raw = _CARRIAGE_RETURN.sub("\n", str(text) if max_length is None else str(text)[: max_length + 1])
    clean = _OBEYED.sub(_stand_in, raw)
    if isinstance(text, Sentence) and clean == text:
        return text
    if max_length is not None and len(clean) > max_length:
        return clean[: max(0, max_length - 1)] + "…"
    return clean


def one_line(text: object, *, max_length: int | None = None) -> str:
    """`safe_text` on a single line: each run of white space becomes one space."""
    limit = None if max_length is None else max_length * 4 + 64
    line = " ".join(safe_text(text, max_length=limit).split())
    return safe_text(text if line == text else line, max_length=max_length)


def in_a_row(texts: Iterable[str]) -> str:
    """Texts one after another, "; " between them; sentences among them can still be worded in other languages."""
    return reduce(lambda before, text: _("{before}; {text}", before=before, text=text), texts)


def without_controls(text: str) -> str:
    """A piece of a screen's line without what a terminal would obey, in as many columns as it was laid out in."""
    return text if text.isprintable() else _MOVES.sub(lambda match: "�" if _is_surrogate(match[0]) else "", text)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "�"
