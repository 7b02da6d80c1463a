"""HTML as blocks under their headings; scripts, styles and what is not shown are left out."""

import re
from html.parser import HTMLParser

from tuitune.documents.block import Block

_HIDDEN = {"script", "style", "template", "noscript", "svg", "head", "iframe", "object"}
_BLOCK = {
    *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "ul", "ol", "li", "dl"),
    *("dt", "dd", "table", "tr", "pre", "blockquote", "figure", "figcaption", "form", "h1", "h2", "h3", "h4"),
    *("h5", "h6", "hr", "body"),
}  # fmt: skip
_WHITE = re.compile(r"\s+")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


def html_blocks(text: str) -> list[Block]:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    reader.end()
    return reader.blocks


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._path: list[tuple[int, str]] = []
        self._words: list[str] = []
        self._start = 1
        self._last = 1
        self._hidden: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        elif tag in _BLOCK:
            self.end()
            self._pre += tag == "pre"
        elif tag == "br":
            self._words.append("\n")
        elif tag in ("td", "th") and self._words:
            self._words.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in _HEADINGS and self._words:
            level, name = _HEADINGS[tag], " ".join("".join(self._words).split())
            self._words = []
            self._path = [(depth, heading) for depth, heading in self._path if depth < level] + [(level, name)]
        elif tag in _BLOCK:
            self.end()
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._hidden or (not self._words and not data.strip()):
            return
        line = self.getpos()[0]
        if not self._words:
            self._start = line + len(data[: len(data) - len(data.lstrip())].splitlines()[1:])
        self._last = line + data.rstrip("\n").count("\n")
        self._words.append(data if self._pre else _WHITE.sub(" ", data))

    def end(self) -> None:
        """What was read so far is a block."""
        text = "".join(self._words)
        text = text.strip("\n") if self._pre else "\n".join(" ".join(line.split()) for line in text.split("\n")).strip()
        if text.strip():
            path = tuple(name for _, name in self._path)
            self.blocks.append(Block(text, self._start, max(self._start, self._last), path))
        self._words = []
