"""`make messages`: brings the catalogues of tuitune/locale/ up to the texts in the code, and compiles them.

A language is a folder there, with a catalogue for each package: whoever translates one package changes no file of
another. A catalogue holds every message of its package, sorted, without places and dates, so that two changes of it can
be merged. A text that two packages have stands in both, translated alike.
"""

import ast
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from inspect import cleandoc
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

HERE = Path(__file__).parent
LOCALE = HERE / "tuitune" / "locale"
Messages = dict[str | tuple[str, str], str | tuple[str, ...]]
"""Of a catalogue: messages (a tuple: one and many) with their translations, empty where there is none."""


def sources() -> list[Path]:
    """The files whose texts are shown, each of which must be marked."""
    return sorted(path for package in ("screens", "tuitune") for path in (HERE / package).rglob("*.py"))


def error_classes() -> frozenset[str]:
    """TuituneError and every class that is one: their first argument is a message."""
    return subclasses("TuituneError")


@cache
def subclasses(name: str) -> frozenset[str]:
    """The class of this name and every one that is derived from it; of classes of one name each counts."""
    bases: dict[str, set[str]] = {}
    for folder in ("tuitune", "screens"):
        for file in (HERE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases.setdefault(node.name, set()).update(
                        base.id for base in node.bases if isinstance(base, ast.Name)
                    )
    names = {name}
    while more := {derived for derived, above in bases.items() if names & above} - names:
        names |= more
    return frozenset(names)


def package_of(file: Path) -> str:
    """The catalogue that a file's messages are in: its package's name, `tuitune` for the ground floor."""
    return file.parent.relative_to(HERE).parts[-1]


def calls(opened: Any, keywords: Any, tags: Any, options: Any) -> Iterator[Any]:
    """The calls of a Python file that have a message, for Babel, whose own reader does not look into f-strings."""
    for node in ast.walk(ast.parse(opened.read())):
        if isinstance(node, ast.Call) and (name := name_of(node.func)) in keywords:
            texts = [part.value if isinstance(part, ast.Constant) else None for part in node.args]
            yield node.lineno, name, tuple(text if isinstance(text, str) else None for text in texts), []


def field_docstrings(file: Path, models: frozenset[str]) -> Iterator[str]:
    """What stands below each field of the file's pydantic models, as the app and the recipe's reference show it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef) and node.name in models:
            for above, below in pairwise(node.body):
                text = below.value if isinstance(below, ast.Expr) else None
                is_field = isinstance(above, ast.AnnAssign) and "ClassVar" not in ast.unparse(above.annotation)
                if is_field and isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield cleandoc(text.value)


def name_of(function: ast.expr) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def extracted() -> dict[str, set[str | tuple[str, str]]]:
    """The messages of each package."""
    keywords: dict[str, tuple[int, ...] | None] = {"_": None, "N_": None, "plural": (1, 2)}
    keywords |= dict.fromkeys(error_classes())
    packages: dict[str, set[str | tuple[str, str]]] = {}
    models = subclasses("BaseModel")
    for file in sources():
        messages = packages.setdefault(package_of(file), set())
        messages.update(field_docstrings(file, models))
        for _line, message, _comments, _context in extract_from_file(calls, file, keywords=keywords):
            if message:
                messages.add(message if isinstance(message, str) else (message[0], message[1]))
    return {package: messages for package, messages in packages.items() if messages}


def read(file: Path) -> Messages:
    """The messages of a catalogue."""
    with file.open("rb") as opened:
        return {_tuple(message.id): _tuple(message.string or "") for message in read_po(opened) if message.id}


def _tuple(text: Any) -> Any:
    """A text, or its forms as a tuple."""
    return tuple(text) if isinstance(text, list) else text


def translated(messages: Messages) -> Messages:
    """Those that are translated."""
    return {message: string for message, string in messages.items() if string and all(string)}


def catalogue(language: str, messages: Messages) -> Catalog:
    made = Catalog(locale=language, header_comment="", fuzzy=False, creation_date=datetime(2026, 1, 1, tzinfo=UTC))
    for message in sorted(messages, key=str):
        made.add(message, messages[message])
    return made


def write(file: Path, language: str, messages: Messages) -> None:
    """A catalogue and what is compiled of it."""
    made = catalogue(language, messages)
    po = BytesIO()
    write_po(po, made, width=110, no_location=True, omit_header=True, sort_output=True)
    header = (
        'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n'
        f'"Language: {language}\\n"\n"Plural-Forms: {made.plural_forms}\\n"\n\n'
    )
    file.write_bytes(header.encode() + po.getvalue().strip() + b"\n")
    with file.with_suffix(".mo").open("wb") as opened:
        write_mo(opened, made)


def update(folder: Path) -> int:
    """Bring the catalogues of a language up to date; the number of texts that have no translation yet."""
    known: Messages = {}
    for file in folder.glob("*.po"):
        known |= translated(read(file))
    packages = extracted()
    for file in [*folder.glob("*.po"), *folder.glob("*.mo")]:
        if file.stem not in packages:
            file.unlink()
    missing = 0
    for package, messages in packages.items():
        own = folder / f"{package}.po"
        before = translated(read(own)) if own.exists() else {}
        strings = {message: before.get(message, known.get(message, "")) for message in messages}
        write(own, folder.name, strings)
        for message in sorted((message for message in messages if not strings[message]), key=str):
            print(f"{own.relative_to(HERE)}: not translated: {message}")
            missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(1 if sum(update(folder) for folder in sorted(LOCALE.iterdir()) if folder.is_dir()) else 0)
