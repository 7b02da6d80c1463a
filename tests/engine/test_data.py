"""Every dataset shape is recognised by its rows, and every kind of broken file gets one clear answer."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tuitune.data import open_dataset
from tuitune.data.inspect import inspect_rows, summary
from tuitune.data.lines import MAX_ROW_BYTES
from tuitune.data.prepare import prepare
from tuitune.errors import UnusableInput
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.recipe_sections import DataSection

ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
PAIR = {"question": "Hi", "answer": "Ahoy"}


def section(path: Path, **fields: Any) -> DataSection:
    return DataSection(path=str(path), **fields)


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": ASKED}, "messages"),
        ({"dialog": ASKED}, "messages"),
        ({"messages": json.dumps(ASKED)}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]}, "sharegpt"),
        ({"instruction": "Hi", "input": "", "output": "Ahoy"}, "alpaca"),
        ({"prompt": "Hi", "completion": "Ahoy"}, "prompt-completion"),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, "prompt-completion"),
        (PAIR, "columns"),
        ({"Question": "Hi", "Answer": "Ahoy"}, "columns"),
        ({"prompt": "Hi", "chosen": "Ahoy", "rejected": "Go"}, "preference"),
        ({"chosen": ASKED, "rejected": [ASKED[0], {"role": "assistant", "content": "Go"}]}, "preference"),
    ],
)
def test_formats_are_recognised(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    dataset = open_dataset(section(jsonl(tmp_path / "rows", row, row)))
    assert dataset.format.name == name
    assert dataset.format.reason.startswith("2 of the first 2 rows have ")
    assert [row.messages for row in dataset] == [ASKED, ASKED]


def test_roles_systems_tools_and_reasoning(tmp_path: Path) -> None:
    call = {"function": {"name": "rain", "arguments": '{"city": "Rome"}'}, "id": "c1", "type": "function"}
    row = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Ask."},
            {"role": "tool", "content": "4 mm", "tool_call_id": "c1"},
            {"role": "assistant", "content": "A little."},
        ],
        "tools": [{"type": "function", "function": {"name": "rain"}}],
    }
    (parsed,) = open_dataset(section(jsonl(tmp_path / "rows.jsonl", row)))
    assert parsed.sample and parsed.messages
    assert [turn["role"] for turn in parsed.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert parsed.messages[1]["content"] == "Rain?"
    assert parsed.messages[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert parsed.messages[2]["reasoning_content"] == "Ask."
    assert parsed.sample.tools == row["tools"]


def test_columns_are_mapped_and_text_is_plain(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"q": "Hi", "a": "Ahoy", "s": "Be kind."})
    (row,) = open_dataset(section(path, columns={"user": "q", "assistant": "a", "system": "s"}))
    assert row.messages == [{"role": "system", "content": "Be kind."}, *ASKED]
    (row,) = open_dataset(section(jsonl(tmp_path / "text.jsonl", {"text": "A story."})))
    assert row.sample and row.sample.text == "A story."


def test_file_kinds(tmp_path: Path) -> None:
    """What a file is, is seen in its bytes: every one of these has the same misleading name."""
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    rows = [PAIR, {"question": 'Say "a, b"\nplease', "answer": "a, b\t日本"}]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / "data.txt"

    def delimited(delimiter: str) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, PAIR, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    plain = "\n".join(map(json.dumps, rows))
    writers: dict[str, Callable[[], Any]] = {
        "JSONL": lambda: path.write_text(plain),
        "JSON": lambda: path.write_text(json.dumps(rows, indent=2)),
        "CSV": lambda: delimited(","),
        "TSV": lambda: delimited("\t"),
        "Parquet": lambda: pyarrow.parquet.write_table(table, path),
        "Arrow": lambda: pyarrow.feather.write_feather(table, str(path)),
        "JSONL, gzip": lambda: path.write_bytes(gzip.compress(plain.encode())),
        "JSONL, zstd": lambda: path.write_bytes(pyarrow.compress(plain.encode(), codec="zstd", asbytes=True)),
    }
    for kind, write in writers.items():
        write()
        dataset = open_dataset(section(path))
        assert dataset.container.text == kind
        assert [row.raw for row in dataset] == rows, kind
        assert len(dataset) == 2
        assert [row.index for row in dataset.rows(1, 2)] == [1]


def test_rows_inside_one_object(tmp_path: Path) -> None:
    """As APIs and the Hub's preview answer; what is inside another column of a row is left there."""
    path = tmp_path / "rows.json"
    rows = [{**PAIR, "n": n} for n in range(3000)]
    numbered = [{"row_idx": n, "row": row} for n, row in enumerate(rows)]
    for name, value in {"data": rows, "rows": numbered, "train": rows}.items():
        for indent in (None, 2):
            path.write_text(
                json.dumps({"version": 1, "about": ["a", {"data": []}], name: value, "end": {}}, indent=indent)
            )
            dataset = open_dataset(section(path))
            assert dataset.container.text == f"JSON, the rows under {name}"
            assert [row.raw for row in dataset] == rows, (name, indent)
    path.write_bytes(gzip.compress(json.dumps({"data": rows}).encode()))
    assert len(open_dataset(section(path))) == 3000
    path.write_text(json.dumps({"data": rows})[:-40])
    *_, last = open_dataset(section(path))
    assert "is cut short (the file ends inside it): fetch the file again" in (last.error or "")
    for row in ({"data": ASKED}, {"messages": ASKED, "data": [PAIR]}):
        (first, _) = open_dataset(section(jsonl(path, row, row)))
        assert first.messages == ASKED
    for row in ({"data": ASKED}, {"data": [PAIR], "messages": ASKED}):
        (only,) = open_dataset(section(jsonl(path, row)))
        assert only.messages == ASKED


def test_an_array_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[" * 200_000)
    with pytest.raises(UnusableInput, match="element 1 is nested too deeply: write what is inside as text; or give"):
        open_dataset(section(path))


def test_unusable_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def refused(name: str, content: bytes | None, **fields: Any) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UnusableInput) as error:
            open_dataset(section(path, **fields))
        assert re.fullmatch(r"[^\n]+[:;] [a-z][^\n]+\.", str(error.value))  # what is wrong, and what to do
        return str(error.value)

    assert "no dataset file" in refused("missing.jsonl", None)
    assert "is a folder" in refused("", None)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe, socket or device, which may never end" in refused("pipe.jsonl", None)
    assert "is a pipe, socket or device" in refused("/dev/zero", None)
    assert "is empty" in refused("empty.jsonl", b"")
    assert "white space" in refused("blank.jsonl", b" \n\n")
    assert "UTF-16" in refused("wide.jsonl", '{"a": 1}'.encode("utf-16"))
    assert "column names and no row: add rows below it." in refused("head.csv", b"question,answer\n")
    assert "no known file format" in refused("picture.jsonl", b"\x89PNG\r\n\x1a\n\0\0")
    assert "no known format (columns: a, b)" in refused("odd.jsonl", b'{"a": 1, "b": 2}\n')
    assert "no readable row: line 1, column 4" in refused("broken.jsonl", b'{"a\n{"b\n')
    assert "damaged or cut short" in refused("cut.jsonl.gz", gzip.compress(b'{"text": "abc"}')[:12])
    assert "columns of cols.jsonl are question, answer" in refused(
        "cols.jsonl", json.dumps(PAIR).encode(), columns={"user": "query", "assistant": "answer"}
    )
    assert "no role: use user" in refused("cols.jsonl", json.dumps(PAIR).encode(), columns={"usr": "question"})


HOSTILE = {
    "[" * 100_000: "",
    '{"question":' + "[" * 100_000: "nested too deeply",
    '{"question": "a", "question": "b", "answer": "c"}': "'question' twice",
    '{"question": "\\ud83d", "answer": "c"}': "lone surrogate",
    '{"question": ' + "9" * 5000 + ', "answer": "c"}': "4,300 digits",
    '{"question": "a", "answer": ': "not valid JSON",
    '["a", "b"]': "not an object",
    '{"question": {"deep": 1}, "answer": "c"}': "its question is an object",
    '{"question": null, "answer": "c"}': "it has no question",
    '{"question": "a"}': "it has no answer",
}


def test_one_bad_row_does_not_lose_the_others(tmp_path: Path) -> None:
    """Each hostile line is counted with its reason, and the rows around it are read."""
    for line, reason in HOSTILE.items():
        rows = list(open_dataset(section(jsonl(tmp_path / "rows.jsonl", PAIR, line, PAIR))))
        assert [row.index for row in rows] == [0, 1, 2]
        assert rows[1].error and reason in rows[1].error
        assert ": " in rows[1].error, "each reason says what to do"
        assert rows[0].messages == rows[2].messages == ASKED


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + b'{"question": "\xff"}\r\n' + b"\0\0\n" + good)
    rows = list(open_dataset(section(path)))
    assert [row.error is None for row in rows] == [True, False, False, True]
    assert "line 3 is not UTF-8 (byte 0xff at column 15)" in (rows[1].error or "")


def test_a_line_too_long_to_hold_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(PAIR).encode()
    with path.open("wb") as file:
        file.write(good + b'\n{"question": "')
        file.write(b"a" * (MAX_ROW_BYTES + 100))
        file.write(b'"}\n' + good)
    rows = list(open_dataset(section(path)))
    assert [row.error for row in rows] == [None, "line 2 is longer than 16 MiB: split it into several rows", None]


@pytest.mark.parametrize("begin", ['[{"a": "', '{"a": "', '{"data": [{"a": "'])
def test_a_file_that_is_one_endless_string_is_read_in_little_memory(tmp_path: Path, begin: str) -> None:
    path = tmp_path / "rows.json"
    with path.open("wb") as file:
        file.write(begin.encode())
        for _ in range(100):
            file.write(b"x" * 2**20)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tuitune.data.container import look\nfrom tuitune.data.files import records\n"
        "print(*(record.error for record in records(look(Path(sys.argv[1])))))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    error, peak_kib = done.stdout.splitlines()
    assert error.endswith("1 is longer than 16 MiB: split it into several rows")
    assert int(peak_kib) < 512 * 1024


def test_damaged_archives_and_tables_end_with_a_reason(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows"
    lines = "".join(json.dumps({**PAIR, "n": n}) + "\n" for n in range(50_000)).encode()
    path.write_bytes(gzip.compress(lines)[:-4000])
    *good, last = open_dataset(section(path))
    assert all(row.error is None for row in good[:-1]) and "cut short" in (last.error or "")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR] * 5000), path, row_group_size=1000)
    raw = bytearray(path.read_bytes())
    raw[40:80] = b"\xff" * 40
    path.write_bytes(raw)
    try:
        *_, last = open_dataset(section(path))
        assert last.error is None or "parquet file cannot be read" in last.error
    except UnusableInput as error:
        assert "parquet file cannot be read" in str(error)


def test_csv_rows_that_do_not_fit_the_header_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question, answer\nHi,Ahoy\nalone\nHi,Ahoy,more\n"Hi,\n\nall",Ahoy\n"Hi"you,Ahoy\nHi,Ahoy\n')
    remedy = "put cells that hold a delimiter or a line break in quotes"
    rows = list(open_dataset(section(path)))
    assert [row.error for row in rows] == [
        None,
        f"line 3 has 1 columns where the header has 2: {remedy}",
        f"line 4 has 3 columns where the header has 2: {remedy}",
        None,
        "line 8 is not valid CSV (',' expected after '\"'): correct the quotes there",
        None,
    ]
    assert rows[3].messages and rows[3].messages[0]["content"] == "Hi,\n\nall"
    path.write_text("question,answer,answer\nHi,Ahoy,Aye\n")
    with pytest.raises(UnusableInput, match="line 1 names the column 'answer' twice: rename one of them"):
        open_dataset(section(path))


def test_a_csv_line_too_long_to_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(b"question,answer\nHi,Ahoy\nHi," + b"a" * (MAX_ROW_BYTES + 100) + b"\nHi,Ahoy\n")
    rows = list(open_dataset(section(path)))
    assert [row.error for row in rows] == [None, "line 3 is longer than 16 MiB: split it into several rows", None]


def test_what_a_table_fills_with_null_is_not_there(tmp_path: Path) -> None:
    """Parquet gives each object of a column the fields of all others; templates would write them out."""
    import pyarrow
    import pyarrow.parquet

    def calling(arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
        return {"messages": [{"role": "user", "content": "Look"}, {"role": "assistant", "tool_calls": [call]}]}

    path = tmp_path / "rows.parquet"
    rows = [
        calling({"city": "Oslo"}),
        calling({"ship": "Fram"}),
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    conversations = [row.messages for row in open_dataset(section(path))]
    assert [turns and turns[1].get("tool_calls", [{}])[0].get("function") for turns in conversations] == [
        {"name": "look_up", "arguments": {"city": "Oslo"}},
        {"name": "look_up", "arguments": {"ship": "Fram"}},
        None,
    ]
    assert conversations[2] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]


def test_a_parquet_row_too_long_to_hold_counts_as_one(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    rows = [PAIR, {**PAIR, "answer": "a" * (MAX_ROW_BYTES + 100)}, PAIR]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    parsed = list(open_dataset(section(path)))
    assert [row.error for row in parsed] == [None, "row 2 is longer than 16 MiB: split it into several rows", None]


@pytest.mark.parametrize(
    "chosen", [[], [{"role": "user", "content": "Hi "}], [{"role": "system", "content": "Be kind"}]]
)
def test_a_prompt_that_a_preference_repeats_is_kept_once(tmp_path: Path, chosen: list[dict[str, str]]) -> None:
    """Some datasets give the whole conversation as chosen and rejected, beside the prompt."""
    if chosen and chosen[0]["role"] == "system":
        chosen = [*chosen, {"role": "user", "content": "Hi"}]
    row = {
        "prompt": "Hi",
        "chosen": [*chosen, {"role": "assistant", "content": "Ahoy"}],
        "rejected": [*chosen, {"role": "assistant", "content": "No"}],
    }
    (parsed,) = open_dataset(section(jsonl(tmp_path / "rows.jsonl", row)))
    assert parsed.messages is not None and parsed.sample is not None and parsed.sample.rejected is not None
    roles = ["system"] * (len(chosen) == 2) + ["user", "assistant"]
    assert [turn["role"] for turn in parsed.messages] == [turn["role"] for turn in parsed.sample.rejected] == roles


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"training": False}])
def test_replies_that_are_not_to_be_trained_are_marked(tmp_path: Path, mark: dict[str, Any]) -> None:
    row = {"messages": [*ASKED, ASKED[0], {**ASKED[1], **mark}]}
    (parsed,) = open_dataset(section(jsonl(tmp_path / "rows.jsonl", row)))
    assert parsed.messages and [turn.get("weight") for turn in parsed.messages] == [None, None, None, 0]


def test_calls_in_older_ways_of_writing(tmp_path: Path) -> None:
    """OpenAI's `function_call`, ShareGPT's `function-call` turn with one call or several, all as tool calls."""
    call = {"name": "look_up", "arguments": {"city": "Oslo"}}
    rows: list[Any] = [
        {
            "messages": [
                {"role": "user", "content": "Look"},
                {"role": "assistant", "content": None, "function_call": call},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "Look"},
                {"from": "function-call", "value": json.dumps([call, call])},
                {"from": "Function Response", "value": "cold"},
            ]
        },
    ]
    tool_call = {"type": "function", "function": call}
    for row, count in zip(rows, (1, 2), strict=True):
        (parsed,) = open_dataset(section(jsonl(tmp_path / "rows.jsonl", row)))
        assert parsed.messages and parsed.messages[1]["tool_calls"] == [tool_call] * count
    assert (parsed.messages or [])[2]["role"] == "tool"


def test_lists_as_python_prints_them_are_named(tmp_path: Path) -> None:
    """What pandas writes into a CSV file."""
    path = tmp_path / "rows.csv"
    path.write_text("id,messages\n1,\"[{'role': 'user', 'content': 'Hi'}]\"\n")
    with pytest.raises(UnusableInput, match=r"The column messages of rows\.csv holds lists as Python prints them"):
        open_dataset(section(path))


def recipe(path: Path, **fields: Any) -> Recipe:
    return Recipe.from_data({"model": {"name": str(DEMO / "demo_model")}, "data": {"path": str(path), **fields}})


def test_inspect_shows_what_is_trained(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"question": "日本?", "answer": "Ahoy 🎉"}, '{"question"', PAIR)
    first, second, third = inspect_rows(recipe(path), 0, 3)
    assert list(first) == ["row", "parts", "tokens", "trained_tokens", "total_tokens"]
    assert [token for part in first["parts"] for token in part["tokens"]] == first["tokens"]
    assert "".join(token["text"] for token in first["tokens"] if token["trained"]) == "Ahoy 🎉<|im_end|>"
    assert first["trained_tokens"] == sum(token["trained"] for token in first["tokens"])
    assert "日本?" in "".join(token["text"] for token in first["tokens"])
    assert second["row"] == 2 and "not valid JSON" in second["error"] and second["raw"].strip() == '{"question"'
    assert third["row"] == 3
    assert summary(recipe(path))["rows"] == 3


def test_a_row_that_cannot_be_used_has_a_code_for_programs(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"question": "Who are you?", "answer": "a pirate " * 20})
    (row,) = inspect_rows(recipe(path, max_length=16, over_length="drop"), 0, 1)
    assert row["code"] == "it-is-longer-than-max-length" and row["error"].startswith(
        "it is longer than max_length (16): "
    )


def test_prepare_counts_splits_and_agrees_with_inspect(tmp_path: Path) -> None:
    rows: list[Any] = [{"question": f"What is {n}?", "answer": f"{n} it is"} for n in range(100)]
    rows[3] = "{"
    rows[4] = rows[5] = "{]"
    rows += [rows[10]] * 5
    chosen = recipe(jsonl(tmp_path / "rows.jsonl", *rows), eval_share=0.1)
    tokenizer = load_tokenizer(chosen.model)
    prepared = prepare(chosen, tokenizer)
    assert len(prepared.train) + len(prepared.eval) == 102
    assert len(prepared.eval) == 10
    assert sum(dropped.count for dropped in prepared.dropped.values()) == 3
    assert {row for dropped in prepared.dropped.values() for row in dropped.examples} == {4, 5, 6}
    evaluated = {tuple(ids) for ids in prepared.eval["input_ids"]}
    assert not evaluated & {tuple(ids) for ids in prepared.train["input_ids"]}
    repeated = prepare(chosen, tokenizer)
    assert repeated.eval_rows == prepared.eval_rows
    (shown,) = inspect_rows(chosen, prepared.eval_rows[0], prepared.eval_rows[0] + 1)
    assert prepared.eval[0]["input_ids"] == [token["id"] for token in shown["tokens"]]
    assert [label != -100 for label in prepared.eval[0]["labels"]] == [token["trained"] for token in shown["tokens"]]
    assert len(prepared.prompts(3)) == 3
    assert prepared.prompts(1)[0][0]["role"] == "user"


def test_nothing_to_train_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"messages": ASKED[:1]}, {"messages": ASKED[:1]})
    chosen = recipe(path)
    with pytest.raises(UnusableInput, match=r"No row of rows\.jsonl .* it has no assistant turn"):
        prepare(chosen, load_tokenizer(chosen.model))


def test_real_data(shared_data: Path) -> None:
    mapped = recipe(shared_data / "gsm8k_test.jsonl", columns={"user": "question", "assistant": "answer"})
    (row,) = inspect_rows(mapped, 0, 1)
    text = "".join(token["text"] for token in row["tokens"] if token["trained"])
    assert text.startswith("Janet sells") and text.endswith("#### 18<|im_end|>")
    identity = open_dataset(section(shared_data / "vicuna_identity_sharegpt.json"))
    assert identity.format.name == "sharegpt" and len(identity) == 500
    assert all(row.error is None for row in identity)
