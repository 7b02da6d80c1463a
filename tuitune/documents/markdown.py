"""Markdown and plain text as blocks: headings, fenced code, and what stands between empty lines."""

import re

from tuitune.documents.block import Block

_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*$")


def markdown_blocks(text: str) -> list[Block]:
    """Blocks under their headings."""
    blocks: list[Block] = []
    path: list[tuple[int, str]] = []
    lines, start, fence = text.splitlines(), 1, ""
    kept: list[str] = []

    def end(line: int) -> None:
        if any(part.strip() for part in kept):
            blocks.append(Block("\n".join(kept).strip("\n"), start, line, tuple(name for _, name in path)))
        kept.clear()

    for number, line in enumerate(lines, 1):
        if fence:
            kept.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        if opened := _FENCE.match(line):
            fence = opened[1]
        heading = _HEADING.match(line)
        underlined = _UNDERLINE.match(line) if len(kept) == 1 and kept[0].strip() else None
        if heading or (underlined and not kept[0].lstrip().startswith(("|", "-", "*", ">"))):
            level = len(heading[1]) if heading else 1 if underlined and underlined[1][0] == "=" else 2
            name = heading[2] if heading else kept.pop()
            end(number - 1)
            path[:] = [(depth, kept_name) for depth, kept_name in path if depth < level] + [(level, name.strip())]
        elif not line.strip():
            end(number - 1)
        else:
            if not kept:
                start = number
            kept.append(line)
    end(len(lines))
    return blocks


def text_blocks(text: str) -> list[Block]:
    """Paragraphs: what stands between empty lines."""
    blocks: list[Block] = []
    kept: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            kept.append(line)
        elif kept:
            blocks.append(Block("\n".join(kept), number - len(kept), number - 1))
            kept = []
    return blocks
