"""The READMEs and the guide in docs/: both languages have the same, and what they name is there."""

import re
from pathlib import Path

import pytest

from tuitune.commands.parser import _commands

ROOT = Path(__file__).parents[2]
PAGES = ("README", *(f"docs/{page}" for page in ("commands", "methods", "chat", "exports", "measured")))


def english(page: str) -> str:
    return (ROOT / f"{page}.md").read_text(encoding="utf-8")


def japanese(page: str) -> str:
    return (ROOT / f"{page}.ja.md").read_text(encoding="utf-8")


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def commands(text: str) -> list[list[str]]:
    """Of each line to type, its commands and options."""
    lines = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    return [re.findall(r"(?:tuitune|make|·) [a-z]+|--[a-z-]+", line) for line in lines]


def code(text: str) -> set[str]:
    """Names of files, variables and options that stand between backquotes, wherever they do."""
    return set(re.findall(r"`([A-Za-z$./~_-]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))) - {".ja.md"}


def rows(text: str) -> list[int]:
    """How many cells each row of a table has."""
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def fenced(text: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def links(text: str) -> set[str]:
    """Where links lead to, whatever the language of the page there."""
    return {target.replace(".ja.md", ".md") for target in re.findall(r"\]\(([^)]+)\)", text)}


def figures(text: str) -> set[str]:
    """Figures with a decimal point or thousands, but for millions, which Japanese counts otherwise."""
    return set(re.findall(r"(?<![\d.,])\d+(?:[.,]\d+)+(?!\d)(?! million)", text))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "parts", [headings, commands, code, rows, fenced, links, figures], ids=lambda part: part.__name__
)
def test_both_languages_have_the_same(parts: object, page: str) -> None:
    assert callable(parts)
    assert parts(japanese(page)) == parts(english(page))


@pytest.mark.parametrize("page", PAGES)
def test_each_language_leads_to_the_other(page: str) -> None:
    name = Path(page).name
    assert f"({name}.ja.md)" in english(page) and f"({name}.md)" in japanese(page)


@pytest.mark.parametrize("file", sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")]), ids=lambda file: file.name)
def test_every_link_leads_to_a_file(file: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8"))
    assert not [target for target in targets if "://" not in target and not (file.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_takes_what_it_is_given(page: str) -> None:
    known, name = _commands(), ""
    for line in re.findall(r"^ {4,}(\S.*)$", english(page), re.MULTILINE):
        for word in re.findall(r"(?:tuitune|·)(?: [a-z]+)?|--[a-z-]+", line):
            if not word.startswith("--"):
                name = word.split()[-1]
            elif name in known:
                assert word in known.parser(name).format_help(), f"{name} {word}"


def test_the_guide_names_every_command() -> None:
    shown = re.findall(r"(?:tuitune|·) ([a-z]+)", english("docs/commands"))
    assert not set(_commands()) - set(shown)
