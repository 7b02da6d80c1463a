"""The two READMEs: what one has the other has, in its own language."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, JAPANESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def commands(text: str) -> list[list[str]]:
    """Of each line to type, its commands and options."""
    lines = re.findall(r"^ {4}((?:tuitune|make|\.venv/bin/tuitune) .*)$", text, re.MULTILINE)
    return [re.findall(r"(?:tuitune|make|·) [a-z]+|--[a-z-]+", line) for line in lines]


def code(text: str) -> set[str]:
    """Names of files, variables and options that stand between backquotes, wherever they do."""
    return set(re.findall(r"`([A-Za-z$./~_-]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def rows(text: str) -> list[int]:
    """How many cells each row of a table has."""
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def fenced(text: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.ja.md"}


def figures(text: str) -> set[str]:
    """Figures with a decimal point or thousands, but for millions, which Japanese counts otherwise."""
    return set(re.findall(r"(?<![\d.,])\d+(?:[.,]\d+)+(?!\d)(?! million)", text))


@pytest.mark.parametrize(
    "parts", [headings, commands, code, rows, fenced, links, figures], ids=lambda part: part.__name__
)
def test_both_readmes_have_the_same(parts: object) -> None:
    assert callable(parts)
    assert parts(JAPANESE) == parts(ENGLISH)


def test_each_readme_leads_to_the_other() -> None:
    assert "(README.ja.md)" in ENGLISH and "(README.md)" in JAPANESE
