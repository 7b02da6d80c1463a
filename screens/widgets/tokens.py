"""How a row's tokens are drawn: what is trained is marked by colour and by glyph, special tokens are visible."""

import re
from itertools import zip_longest
from typing import Any

from textual.content import Content, Span

from tuitune.language import N_, _
from tuitune.text import safe_text

_SPECIAL = re.compile(
    r"<\|[^|\s]{1,60}\|>|<｜[^｜]{1,60}｜>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]"
)


_SIDE_BY_SIDE = 100
"""Columns from which on a chosen and a rejected reply stand beside each other."""
_GAP = 3
_OPEN, _CLOSE = "▸", "◂"
_TITLES = {
    "prompt": N_("Prompt"),
    "chosen": N_("✔ Chosen"),
    "good": N_("✔ Good"),
    "rejected": N_("✘ Rejected"),
    "bad": N_("✘ Bad"),
}
"""Of the parts of a row."""


def parts_content(parts: list[dict[str, Any]], width: int) -> Content:
    """The parts of a row of a `rows` answer in `width` columns: what both replies of a pair answer stands once."""
    titled = [_titled(part) for part in parts if part["tokens"] or part["title"] != "prompt"]
    if [part["title"] for part in parts] != ["prompt", "chosen", "rejected"] or width < _SIDE_BY_SIDE:
        return Content("\n\n").join(titled)
    column = (width - _GAP) // 2
    sides = zip_longest(*(part.wrap(column) for part in titled[-2:]), fillvalue=Content(""))
    lines = [Content.assemble(left, " " * (column - left.cell_length), " │ ", right) for left, right in sides]
    return Content("\n").join([*titled[:-2], Content(""), *lines])


def _titled(part: dict[str, Any]) -> Content:
    tokens = tokens_content(part["tokens"])
    if not part["title"]:
        return tokens
    return Content.assemble((_(_TITLES[part["title"]]), "bold"), "\n", tokens)


def tokens_content(tokens: list[dict[str, Any]]) -> Content:
    """The tokens of a `rows` answer as text; each trained stretch stands between ▸ and ◂."""
    text: list[str] = []
    spans: list[Span] = []
    position = 0

    def put(piece: str, style: str) -> None:
        nonlocal position
        text.append(piece)
        if style:
            spans.append(Span(position, position + len(piece), style))
        position += len(piece)

    trained = False
    for token in tokens:
        if token["trained"] != trained:
            put(_CLOSE if trained else _OPEN, "bold $text-success")
            trained = token["trained"]
        piece = safe_text(token["text"], max_length=2000)
        special = _SPECIAL.fullmatch(piece) is not None
        style = "$text-success on $success-muted" if trained else ("$text-accent" if special else "$foreground 60%")
        put(piece, f"{style} italic" if special else style)
    if trained:
        put(_CLOSE, "bold $text-success")
    return Content("".join(text), spans=spans)
