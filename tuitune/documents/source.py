"""Source code as blocks: functions and classes under their names."""

import ast
import re
import warnings

from tuitune.documents.block import Block
from tuitune.documents.markdown import text_blocks

_NAMED = re.compile(
    r"(?:(?:export|default|pub(?:\([a-z]+\))?|public|private|protected|internal|static|final|abstract|async|unsafe|inline"
    r"|virtual|override|open|data|sealed|const|extern(?: \"C\")?)\s+)*"
    r"(?:func|fn|fun|function\*?|def|defp|class|struct|enum|union|interface|trait|impl|protocol|extension|object|module"
    r"|namespace|type|record|message|service|sub|proc|CREATE (?:TABLE|VIEW|FUNCTION))\b\s*(?:\([^)]*\)\s*)?"
    r"(?:<[^>]*>\s*)?([\w$.:]+)"
)
_C_FUNCTION = re.compile(r"[A-Za-z_][\w\s*&:<>,~]*?[\s*&]([A-Za-z_][\w:~]*)\s*\([^;{}]*\)?\s*(?:const)?\s*\{?\s*$")


def python_blocks(text: str) -> list[Block]:
    """Functions, classes with their methods, and what stands between them; by lines where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source_blocks(text)
    lines = text.splitlines()
    blocks: list[Block] = []
    _definitions(tree.body, lines, 1, len(lines), (), blocks)
    return blocks


def _definitions(
    body: list[ast.stmt], lines: list[str], start: int, end: int, path: tuple[str, ...], blocks: list[Block]
) -> None:
    at = start
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        last = node.end_lineno or first
        _between(lines, at, first - 1, path, blocks)
        inner = (*path, node.name)
        if isinstance(node, ast.ClassDef):
            _definitions(node.body, lines, first, last, inner, blocks)
        else:
            _between(lines, first, last, inner, blocks, whole=True)
        at = last + 1
    _between(lines, at, end, path, blocks)


def _between(
    lines: list[str], first: int, last: int, path: tuple[str, ...], blocks: list[Block], *, whole: bool = False
) -> None:
    """The lines from `first` to `last` as one block, or as those that empty lines part."""
    text = "\n".join(lines[first - 1 : last])
    if not text.strip():
        return
    if whole:
        blocks.append(Block(text, first, last, path))
        return
    blocks += [
        Block(block.text, first - 1 + block.start_line, first - 1 + block.end_line, path) for block in text_blocks(text)
    ]


def source_blocks(text: str) -> list[Block]:
    """Definitions that begin at the left edge, each to the next one."""
    lines = text.splitlines()
    starts = [(1, ())] if lines else []
    for number, line in enumerate(lines, 1):
        if line[:1].isspace() or not line or len(line) > 400:
            continue
        if named := (_NAMED.match(line) or _C_FUNCTION.match(line)):
            starts.append((number, (named[1],)))  # type: ignore[arg-type]
    blocks: list[Block] = []
    for place, (first, path) in enumerate(starts):
        last = starts[place + 1][0] - 1 if place + 1 < len(starts) else len(lines)
        _between(lines, first, last, path, blocks)
    return blocks
