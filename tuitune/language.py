"""The reader's language: texts that keep what they were made of, and the catalogues that translate them.

A process has one language. The app and the commands choose it from what their user says; a session never chooses and so
speaks English, to its records and on the wire. There its sentences travel with message and values, by which whoever
reads them words them anew.
"""

import gettext
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

FOLDER = Path(__file__).parent / "locale"
ENGLISH = "en"

T = TypeVar("T")


class Sentence(str):
    """A text in the language of this process, with what it takes to word it in another one.

    `english` is the text in English, `message` the English pattern by which catalogues know it (`one` its singular,
    where it has one), and `values` are what stands in its braces; sentences and lists of them among these are
    translated, too.
    """

    __slots__ = ("english", "message", "one", "values")
    english: str
    message: str
    one: str
    values: Mapping[str, Any]

    def __new__(cls, english: str, message: str, one: str, values: Mapping[str, Any]) -> "Sentence":
        sentence = super().__new__(cls, _worded(english, message, one, values))
        sentence.english, sentence.message, sentence.one, sentence.values = english, message, one, values
        return sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return Sentence, (self.english, self.message, self.one, dict(self.values))


def _(message: str, /, **values: Any) -> Sentence:
    """The text in the reader's language, with the values in its braces as by `str.format`."""
    return Sentence(message.format(**_english(values)) if values else message, message, "", values)


def plural(one: str, many: str, count: int, /, **values: Any) -> Sentence:
    """`one` or `many` of something, by `count`, which stands in their braces as `{count}`."""
    values = {"count": count, **values}
    return Sentence((one if count == 1 else many).format(**_english(values)), many, one, values)


def N_(message: str, /) -> str:
    """Marks the text of a constant, which is translated with `_` when it is shown."""
    return message


def in_language(text: T) -> T | Sentence:
    """A text that was made earlier, in the language of now."""
    if isinstance(text, Sentence):
        return Sentence(text.english, text.message, text.one, text.values)
    return text


# --- which language ------------------------------------------------------------------------------------------------


class _Unknown(gettext.NullTranslations):
    """What is asked for a message that no catalogue has."""

    def gettext(self, message: str) -> str:
        raise LookupError(message)

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        raise LookupError(msgid1)


_UNKNOWN = _Unknown()
_catalogue: gettext.NullTranslations = _UNKNOWN
_language = ENGLISH
_ascii_only = False


@cache
def languages() -> tuple[str, ...]:
    """The languages there are: English, and each with a folder of catalogues."""
    return (ENGLISH, *sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir()))


def language() -> str:
    """The language of this process."""
    return _language


def use(name: str) -> None:
    """Make everything from now on in this language; in English, if there is no such."""
    global _catalogue, _language  # noqa: PLW0603
    _language = name if name in languages() else ENGLISH
    _catalogue = _UNKNOWN
    if _language != ENGLISH:
        for file in sorted((FOLDER / _language).glob("*.mo")):
            with file.open("rb") as opened:
                catalogue = gettext.GNUTranslations(opened)
            catalogue.add_fallback(_catalogue)
            _catalogue = catalogue


def ascii_only() -> bool:
    """Whether everything that this process shows is to be ASCII."""
    return _ascii_only


def use_ascii(only: bool) -> None:
    """Show everything from now on in ASCII, or in any letters again."""
    global _ascii_only  # noqa: PLW0603
    _ascii_only = only


def from_environment() -> str:
    """The language that $LANGUAGE, $LC_ALL, $LC_MESSAGES or $LANG ask for, by the rules of gettext."""
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    if _code(locale) in ("", "c", "posix"):
        return ENGLISH
    wanted = [*os.environ.get("LANGUAGE", "").split(":"), locale]
    return next((code for code in map(_code, wanted) if code in languages()), ENGLISH)


def _code(locale: str) -> str:
    """`ja` of `ja_JP.UTF-8`."""
    return locale.partition(".")[0].partition("@")[0].partition("_")[0].lower()


# --- on the wire and in records --------------------------------------------------------------------------------------


def said(sentence: Sentence) -> dict[str, Any]:
    """What a sentence was made of, as JSON can hold it beside the English text."""
    data: dict[str, Any] = {"message": sentence.message}
    if sentence.one:
        data["one"] = sentence.one
    if sentence.values:
        data["values"] = {name: _as_json(value) for name, value in sentence.values.items()}
    return data


def reworded(english: str, data: Any) -> str:
    """The sentence of an English text and what `said` told beside it; the text alone where that is not so.

    Both may come from a file that anybody wrote: only messages of our own catalogues are ever formatted.
    """
    try:
        return _from_said(english, data)
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return english


def _from_said(english: str, data: Any) -> Sentence:
    values = {str(name): _from_json(value) for name, value in data.get("values", {}).items()}
    message, one = data["message"], data.get("one", "")
    if not (isinstance(message, str) and isinstance(one, str)):
        raise TypeError
    return Sentence(english, message, one, values)


def _as_json(value: Any) -> Any:
    if isinstance(value, Sentence):
        return {"text": value.english, **said(value)}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return int(value) if hasattr(value, "__index__") else str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return _from_said(str(value["text"]), value)
    return [_from_json(item) for item in value] if isinstance(value, list) else value


# --- wording ---------------------------------------------------------------------------------------------------------


def _worded(english: str, message: str, one: str, values: Mapping[str, Any]) -> str:
    """The text in this process's language: in English where its catalogue does not have it."""
    if _catalogue is _UNKNOWN or not message:
        return english
    try:
        if one:
            return _catalogue.ngettext(one, message, int(values["count"])).format(**_translated(values))
        text = _catalogue.gettext(message)
        return text.format(**_translated(values)) if values else text
    except (LookupError, ValueError, TypeError, AttributeError):
        return english


def _english(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _english_value(value) for name, value in values.items()}


def _english_value(value: Any) -> Any:
    if isinstance(value, Sentence):
        return value.english
    return ", ".join(str(_english_value(item)) for item in value) if isinstance(value, list | tuple) else value


def _translated(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _translated_value(value) for name, value in values.items()}


def _translated_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return _(", ").join(str(_translated_value(item)) for item in value)
    return str(in_language(value)) if isinstance(value, Sentence) else value
