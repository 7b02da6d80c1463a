"""Texts in the reader's language: how one is worded, what travels, and that the catalogues are whole."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.mofile import read_mo
from rich.cells import cell_len

import messages
from tuitune.commands.parser import _commands
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import FOLDER, Sentence, _, from_environment, in_language, plural, reworded, said, use
from tuitune.runs.events import Failed, Notice, from_json, to_line
from tuitune.session.protocol import decode, encode
from tuitune.text import one_line, safe_text
from tuitune.units import duration

LANGUAGES = [folder for folder in sorted(FOLDER.iterdir()) if folder.is_dir()]


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    yield
    use("en")


# --- a sentence ------------------------------------------------------------------------------------------------------


def test_a_sentence_is_worded_in_the_language_of_now_and_knows_its_english() -> None:
    spent = duration(200)
    assert spent == "3 min 20 s"
    use("ja")
    assert duration(200) == in_language(spent) == "3分20秒"
    assert _("{error}: no further detail", error=spent) == "3分20秒：詳細はありません"
    assert _("{error}: no further detail", error=["a", "b"]) == "a、b：詳細はありません"
    assert _("A text that no catalogue has: {error:.1f}", error=1.25) == "A text that no catalogue has: 1.2"


def test_one_and_many_are_told_apart() -> None:
    assert plural("{count} row of {file}", "{count:,} rows of {file}", 1, file="a") == "1 row of a"
    assert plural("{count} row of {file}", "{count:,} rows of {file}", 2_000, file="a") == "2,000 rows of a"


def test_braces_in_a_text_without_values_are_its_own() -> None:
    assert str(TuituneError("The template has {% if %} and {nothing}.")) == "The template has {% if %} and {nothing}."


def test_a_sentence_stays_one_where_nothing_of_it_is_unsafe() -> None:
    clean, unsafe = (_("The record cannot be read ({reason}).", reason=reason) for reason in ("a", "\x1b[2J"))
    for text in (safe_text(clean), one_line(clean), one_line(clean, max_length=80), pickle.loads(pickle.dumps(clean))):
        assert isinstance(text, Sentence) and text.values == {"reason": "a"}
    assert safe_text(unsafe) == "The record cannot be read (␛[2J)." and not isinstance(safe_text(unsafe), Sentence)


# --- on the wire and in records --------------------------------------------------------------------------------------


def test_an_error_has_a_code_that_no_language_changes() -> None:
    error = UnusableInput("{file} has no row {row:,}.", file="a.jsonl", row=1_200)
    assert (str(error), error.code) == ("a.jsonl has no row 1,200.", "has-no-row")
    assert UnusableInput("Reworded.", code="has-no-row").code == "has-no-row"


def test_a_message_is_english_on_the_wire_and_in_the_readers_language_when_it_has_come() -> None:
    error = TuituneError(
        "{run} cannot be renamed ({reason}): allow writing in the folder that holds it.",
        run=_("Run {run}", run="demo"),
        reason="no room",
    )
    line = encode({"id": 1, "parts": [{"error": explain(error)}], "tokens": 3})
    assert json.loads(line)["parts"] == [
        {"error": "Run demo cannot be renamed (no room): allow writing in the folder that holds it."}
    ]
    assert decode(line) == {
        "id": 1,
        "parts": [{"error": "Run demo cannot be renamed (no room): allow writing in the folder that holds it."}],
        "tokens": 3,
    }
    use("ja")
    assert decode(line)["parts"] == [
        {"error": "実行 demo の名前を変更できません（no room）。それを含むフォルダへの書き込みを許可してください。"}
    ]


def test_a_record_is_english_and_is_read_in_the_readers_language() -> None:
    failed = Failed(message=_("The record cannot be read ({reason}).", reason="no such file"))
    line = to_line(failed)
    assert json.loads(line)["message"] == "The record cannot be read (no such file)."
    assert from_json(line) == failed
    use("ja")
    read = from_json(line)
    assert isinstance(read, Failed) and read.message == "記録を読み取れません（no such file）。"
    assert json.loads(to_line(read))["message"] == json.loads(line)["message"]
    old = from_json('{"event": "notice", "at": 1.0, "text": "As it was written."}')
    assert isinstance(old, Notice) and old.text == "As it was written."


HOSTILE = [
    {"message": "{x.__class__.__mro__}", "values": {"x": 1}},
    {"message": "{x:>1000000000}", "values": {"x": 1}},
    {"message": "{seconds} s", "values": {"other": 1}},
    {"message": "{seconds} s", "values": 3},
    {"message": ["{seconds} s"]},
    {"message": "{hours} h {minutes:02} min", "values": {"hours": 1, "minutes": None}},
    {"message": "{seconds} s", "values": {"seconds": {"text": "a", "message": 3}}},
    {"one": "{count} row", "message": "{count} rows", "values": {"count": "many"}},
    "text",
    None,
]


@pytest.mark.parametrize("made_of", HOSTILE)
def test_what_a_strange_record_tells_of_a_text_formats_nothing(made_of: object) -> None:
    use("ja")
    assert reworded("As it was written.", made_of) == "As it was written."
    line = json.dumps({"event": "notice", "at": 1.0, "text": "As it was written.", "said": {"text": made_of, "at": {}}})
    event = from_json(line)
    assert isinstance(event, Notice) and event.text == "As it was written."


def test_values_travel_as_json() -> None:
    made_of = said(_("{a} {b} {c}", a=Path("x"), b=[1, _("{seconds} s", seconds=2)], c=None))
    assert json.loads(json.dumps(made_of)) == {
        "message": "{a} {b} {c}",
        "values": {
            "a": "x",
            "b": [1, {"text": "2 s", "message": "{seconds} s", "values": {"seconds": 2}}],
            "c": None,
        },
    }


# --- which language --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "fr:ja:en"}, "ja"),
        ({"LANG": "C", "LANGUAGE": "ja"}, "en"),
        ({"LANG": "xx"}, "en"),
    ],
)
def test_the_environment_asks_for_a_language(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert from_environment() == expected


def tuitune(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tuitune", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env).stdout


def test_a_command_speaks_the_language_that_was_asked_for_and_json_none(tmp_path: Path) -> None:
    assert "まだ実行がありません" in tuitune("runs", "--runs", str(tmp_path), "--lang", "ja")
    assert "まだ実行がありません" in tuitune("--lang=ja", "runs", "--runs", str(tmp_path))
    assert "There is no run" in tuitune("runs", "--runs", str(tmp_path), "--lang", "en")
    assert "There is no run" in tuitune("runs", "--runs", str(tmp_path), "--lang", "ja", PYTHONIOENCODING="ascii")


@pytest.mark.parametrize("name", _commands())
def test_the_help_of_a_command_is_in_the_readers_language(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    use("ja")
    text = _commands().parser(name).format_help()
    assert text.startswith(f"使い方：tuitune {name}") and "使用例：" in text and "オプション:" in text
    options = text[text.index("オプション:") : text.index("使用例：")]
    assert max(map(cell_len, options.splitlines())) <= 80
    use("en")
    text = _commands().parser(name).format_help()
    assert text.isascii() or not re.search("[\u3040-\u30ff]", text)
    assert "\noptions:\n  -h, --help " in text and "\nexamples:\n" in text


# --- the catalogues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", LANGUAGES, ids=lambda folder: str(folder.name))
def test_the_catalogues_are_whole(folder: Path) -> None:
    """Mend what fails here with `make messages`, and translate what it names."""
    packages = messages.extracted()
    assert {file.stem for file in folder.glob("*.po")} == packages.keys() == {file.stem for file in folder.glob("*.mo")}
    translations: dict[object, object] = {}
    for package, extracted in packages.items():
        catalogue = messages.read(folder / f"{package}.po")
        assert catalogue.keys() - extracted == set(), f"no longer in the code of {package}"
        assert extracted - catalogue.keys() == set(), f"not in {package}.po"
        untranslated = catalogue.keys() - messages.translated(catalogue).keys()
        assert untranslated == set(), f"not translated in {package}.po"
        for message, translation in catalogue.items():
            assert translations.setdefault(message, translation) == translation, f"{message} is translated twice"
            for text in [translation] if isinstance(translation, str) else translation:
                many = message if isinstance(message, str) else message[-1]
                assert fields(text) <= fields(many), f"{text}: other placeholders than {many}"
                assert isinstance(message, tuple) or fields(text) == fields(many), f"{text}: lacks some of {many}"
        with (folder / f"{package}.mo").open("rb") as opened:
            compiled = {_tuple(entry.id): _tuple(entry.string) for entry in read_mo(opened) if entry.id}
        assert compiled == catalogue, f"{package}.mo is not of {package}.po"


def _tuple(text: object) -> object:
    return tuple(text) if isinstance(text, list | tuple) else text


def fields(text: str) -> set[tuple[str, str]]:
    """The placeholders of a text, each with how it is formatted."""
    if not re.search(r"\{\w+", text):
        return set()
    return {(name, spec or "") for _text, name, spec, _conversion in Formatter().parse(text) if name is not None}


# --- what is not marked ----------------------------------------------------------------------------------------------

SHOWN = {"Static", "Label", "Button", "notify", "notify_problem", "show_problem", "print"}
SHOWN_AS = {"placeholder", "help", "tooltip", "border_title", "border_subtitle"}


@pytest.mark.parametrize("file", messages.sources(), ids=lambda file: str(file.relative_to(messages.HERE)))
def test_every_text_is_marked(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert [f"line {node.lineno}: {ast.unparse(node)[:80]}" for node in unmarked(tree)] == []
    assert list(other_values(tree)) == []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "_"]
            stored = [node.lineno for node in names if isinstance(node.ctx, ast.Store)]
            assert not stored or not any(isinstance(node.ctx, ast.Load) for node in names), f"`_` is bound: {stored}"


def other_values(tree: ast.AST) -> Iterator[str]:
    """Texts that are given other values than stand in their braces: formatting them would fail, or forget one."""
    for node in ast.walk(tree):
        name = messages.name_of(node.func) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or name not in {"_", "plural", *messages.error_classes()}:
            continue
        texts = [text.value for text in node.args[: 2 if name == "plural" else 1] if isinstance(text, ast.Constant)]
        values = {word.arg for word in node.keywords} - {"code"} | ({"count"} if name == "plural" else set())
        if not texts or not values or None in values:
            continue
        wanted = {field for text in texts for field, _spec in fields(str(text))}
        if wanted != values:
            yield f"line {node.lineno}: {sorted(wanted)} stand in the text, {sorted(map(str, values))} are given"


def unmarked(tree: ast.AST) -> Iterator[ast.expr]:
    """Texts that are shown, or made to be translated, and cannot be."""
    errors = messages.error_classes()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = messages.name_of(node.func)
            if name in {"_", "N_", "plural", *errors}:
                yield from (text for text in node.args[:2] if computed(text))
            if name in SHOWN:
                yield from (text for text in node.args[:1] if has_words(text))
            yield from (word.value for word in node.keywords if word.arg in SHOWN_AS and has_words(word.value))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in SHOWN_AS and has_words(node.value):
                    yield node.value


def computed(text: ast.expr) -> bool:
    """Whether a text is put together where a pattern has to stand."""
    return isinstance(text, ast.JoinedStr | ast.BinOp | ast.IfExp)


def has_words(text: ast.expr) -> bool:
    if isinstance(text, ast.IfExp):
        return has_words(text.body) or has_words(text.orelse)
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and bool(re.search(r"[A-Za-z]{2}", part.value))
        for part in parts
    )
