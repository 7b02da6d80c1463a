"""A recipe as YAML, with the lines marked that cannot be used."""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import ValidationError
from pygments.lexers.data import YamlLexer
from pygments.token import Token
from rich.text import Text
from textual import on
from textual.events import Key
from textual.widgets import TextArea

from tuitune.errors import TuituneError, explain
from tuitune.language import _
from tuitune.recipe import Recipe, field_errors
from tuitune.text import one_line

_INDENT = 2
_LONGEST_COLOURED = 2000
_STYLES = {Token.Name.Tag: "text-primary", Token.Literal: "text-success"}
_IS_VALUE = re.compile(r"true|false|null|~|[-+]?[\d.,]+(e[-+]?\d+)?", re.IGNORECASE)

Problem = tuple[int, str]
"""A line, from 0, and what is wrong there."""


class YamlArea(TextArea):
    """A text area whose wrong lines are underlined and end in a cross."""

    _wrong: frozenset[int] = frozenset()

    def __init__(self, text: str, id: str) -> None:
        super().__init__(text, id=id, compact=True)
        self._lexer = YamlLexer(stripnl=False, ensurenl=False)

    @property
    def wrong(self) -> bool:
        """Whether a line is marked, so that the text cannot be used."""
        return bool(self._wrong)

    def mark(self, lines: Iterable[int]) -> None:
        wrong = frozenset(lines)
        if wrong != self._wrong:
            self._wrong = wrong
            self._line_cache.clear()
            self.refresh()

    def check_consume_key(self, key: str, character: str | None = None) -> bool:
        return key in ("enter", "tab") or super().check_consume_key(key, character)

    @on(Key)
    def _indent(self, event: Key) -> None:
        """Tab indents; a text area that indents by itself would keep Esc, too, which goes back as everywhere."""
        if event.key == "tab":
            event.prevent_default()
            event.stop()
            self.insert(" " * (_INDENT - self.cursor_location[1] % _INDENT))

    def get_line(self, line_index: int) -> Text:
        line = super().get_line(line_index)
        self._colour(line)
        if line_index in self._wrong:
            line.append("  ✘")
            line.stylize(f"bold underline {self.app.theme_variables['error']}")
        return line

    def _colour(self, line: Text) -> None:
        """Names, values, texts and remarks in the theme's colours; a very long line stays as it is."""
        if len(line.plain) > _LONGEST_COLOURED:
            return
        offset = 0
        for kind, text in self._lexer.get_tokens(line.plain):
            style = next((style for name, style in _STYLES.items() if kind in name), "")
            if kind in Token.Literal.Scalar.Plain and _IS_VALUE.fullmatch(text):
                style = "text-accent"
            if kind in Token.Comment:
                line.stylize("italic", offset, offset + len(text))
            if style:
                line.stylize(self.app.theme_variables[style], offset, offset + len(text))
            offset += len(text)


def read_recipe(text: str) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in the text, or None and every problem with the line where it stands."""
    try:
        raw = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        Recipe.model_validate(raw)
        return Recipe.from_data(raw), []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = one_line(getattr(error, "problem", None) or error, max_length=200)
        return None, [(mark.line if mark else 0, _("not valid YAML, {reason}.", reason=reason))]
    except ValidationError as error:
        return None, [
            (_line_of(node, name), _("{reason}.", reason=reason)) for name, reason in field_errors(error).items()
        ]
    except (TuituneError, RecursionError, ValueError) as error:
        return None, [(0, explain(error))]


def _line_of(node: Any, field: str) -> int:
    """The line of a dotted field name, or of the innermost section of it that there is."""
    line = 0
    for part in field.split("."):
        pairs = getattr(node, "value", None)
        if not isinstance(node, yaml.MappingNode) or not isinstance(pairs, list):
            break
        entry = next((pair for pair in pairs if str(pair[0].value) == part), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line, entry[1]
    return line
