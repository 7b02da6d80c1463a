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
    block_lines: list[str] = []

    def end(line: int) -> None:
        if any(part.strip() for part in block_lines):
            blocks.append(Block("\n".join(block_lines).strip("\n"), start, line, tuple(name for _, name in path)))
        block_lines.clear()

    for number, line in enumerate(lines, 1):
        if fence:
            block_lines.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        if match := _FENCE.match(line):
            fence = match[1]
        heading = _HEADING.match(line)
        underlined = _UNDERLINE.match(line) if len(block_lines) == 1 and block_lines[0].strip() else None
        if heading or (underlined and not block_lines[0].lstrip().startswith(("|", "-", "*", ">"))):
            level = len(heading[1]) if heading else 1 if underlined and underlined[1][0] == "=" else 2
            name = heading[2] if heading else block_lines.pop()
            end(number - 1)
            path[:] = [(depth, kept_name) for depth, kept_name in path if depth < level] + [(level, name.strip())]
        elif not line.strip():
            end(number - 1)
        else:
            if not block_lines:
                start = number
            block_lines.append(line)
    end(len(lines))
    return blocks


def text_blocks(text: str) -> list[Block]:
    """Paragraphs: what stands between empty lines."""
    blocks: list[Block] = []
    block_lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            block_lines.append(line)
        elif block_lines:
            blocks.append(Block("\n".join(block_lines), number - len(block_lines), number - 1))
            block_lines = []
    return blocks
