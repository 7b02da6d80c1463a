"""Blocks packed into passages: as much as answers a question, never across a heading, a definition or a page."""

import re
from collections.abc import Iterator

from tuitune.documents.block import Block
from tuitune.documents.passage import Passage

TARGET_CHARACTERS = 1000
"""A passage ends with the block that reaches this."""
MAX_CHARACTERS = 1800
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")


def passages_of(file: str, blocks: list[Block]) -> list[Passage]:
    """The passages of a document, in order."""
    passages: list[Passage] = []
    pending: list[Block] = []

    def end() -> None:
        if pending:
            first, last = pending[0], pending[-1]
            text = "\n\n".join(block.text for block in pending)
            heading = " › ".join(first.path)
            passages.append(Passage(file, text, heading, first.start_line, last.end_line, first.page))
            pending.clear()

    for block in (part for long_block in blocks for part in _parts(long_block)):
        if pending:
            length = sum(len(pending_block.text) for pending_block in pending)
            same = block.path == pending[-1].path and block.page == pending[-1].page
            if not same or length >= TARGET_CHARACTERS or length + len(block.text) > MAX_CHARACTERS:
                end()
        pending.append(block)
    end()
    return passages


def _parts(block: Block) -> Iterator[Block]:
    """A block, or where it is long its parts, cut between lines and sentences if there are any."""
    if len(block.text) <= MAX_CHARACTERS:
        yield block
        return
    text, line, start_line = "", block.start_line, block.start_line
    for piece in _pieces(block.text):
        if text and len(text) + len(piece) > MAX_CHARACTERS:
            last = line - text.endswith("\n")
            yield Block(text.strip("\n"), start_line, max(start_line, last), block.path, block.page)
            text, start_line = "", line
        text += piece
        line = min(line + piece.count("\n"), block.end_line)
    if text.strip():
        yield Block(text.strip("\n"), start_line, max(start_line, line), block.path, block.page)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most MAX_CHARACTERS, sentences or lines where it can be."""
    at = 0
    for match in _SENTENCE.finditer(text):
        if match.end() > at:
            yield from _cut(text[at : match.end()])
            at = match.end()
    yield from _cut(text[at:])


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), MAX_CHARACTERS):
        yield text[start : start + MAX_CHARACTERS]
