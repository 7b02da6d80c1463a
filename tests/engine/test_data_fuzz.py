"""Whatever bytes a dataset file holds, the readers answer with rows and reasons, never with a crash or a traceback."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tuitune.conversation import UnusableRow
from tuitune.data import open_dataset
from tuitune.data.formats import Format, read
from tuitune.data.lines import LINE, parse
from tuitune.errors import UnusableInput
from tuitune.recipe_sections import DataSection

INPUTS = int(os.environ.get("TUITUNE_FUZZ_INPUTS", "25000"))
"""Files read by the test; four times as many rows are read beside them."""

SEEDS = [
    json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy 日本 🎉"}]}),
    json.dumps({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]}, indent=1),
    json.dumps([{"question": "Hi", "answer": "Ahoy"}, {"question": "Bye", "answer": "So long"}], indent=2),
    json.dumps({"data": [{"question": "Hi", "answer": "Ahoy"}, {"question": "Bye", "answer": "So long"}], "n": 2}),
    '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
    'question,answer\n"a, ""b""\nc",d\ne,f\n',
    "instruction\tinput\toutput\na\tb\tc\nd\te\tf\n",
    '{"text": "once upon a time"}\r\n{"text": "the end"}\r\n',
]
SPLICES = [
    *(
        b"[" * 3000,
        b"{" * 3000,
        b'{"a":' * 2000,
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\0",
        b"\\ud800",
        b"\xed\xa0\x80",
        b'"',
    ),
    *(b"1" * 5000, b"NaN", b"Infinity", b"-1e999", b"null", b"true", b"\r", b"\n", b"\t", b",", b"\x1b]52;c;AA\x07"),
    *(b'"role"', b'"content"', b'"messages"', b'"messages": {}', b'"tool_calls": [1]', b'[{"role": []}]', b"PAR1"),
    *(b"ARROW1\0\0", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xe2\x80\xae", b'{"messages": "[[[["}', b"\\", b"]", b"}"),
]


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(SEEDS).encode() * chance.randint(1, 3))
    for _ in range(chance.randint(1, 8)):
        at, what = chance.randrange(len(data) + 1), chance.random()
        if what < 0.4:
            data[at:at] = chance.choice(SPLICES)
        elif what < 0.6:
            data[at : at + chance.randint(1, 20)] = b""
        elif what < 0.8:
            data[at : at + 1] = bytes([chance.randrange(256)])
        else:
            other = chance.choice(SEEDS).encode()
            data[at:at] = other[chance.randrange(len(other)) :]
    raw = bytes(data)
    if chance.random() < 0.05:
        raw = gzip.compress(raw)[: chance.randint(3, 200)]
    return raw


@pytest.mark.parametrize("part", range(4))
def test_any_bytes_give_rows_or_one_sentence(tmp_path: Path, part: int) -> None:
    chance = random.Random(part)
    path = tmp_path / "data"
    rows = refused = 0
    for _ in range(INPUTS // 4):
        raw = mutated(chance)
        if raw.removeprefix(b"\xef\xbb\xbf").startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            continue  # read by a process of its own, which is too slow for many inputs: see the test below
        path.write_bytes(raw)
        try:
            for row in open_dataset(DataSection(path=str(path))):
                assert (row.sample is None) == (row.error is not None)
                rows += 1
        except UnusableInput as error:
            assert str(error).endswith(".") and "\n" not in str(error) and "\x1b" not in str(error)
            refused += 1
    assert rows and refused


@pytest.mark.parametrize("seed", range(12))
def test_damaged_tables_end_the_reader_not_the_session(tmp_path: Path, seed: int) -> None:
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    chance = random.Random(seed)
    path = tmp_path / "data"
    table = pyarrow.Table.from_pylist([{"question": f"{n}?", "answer": "Ahoy " * n} for n in range(200)])
    if seed % 2:
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path))
    raw = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 40)):
        raw[chance.randrange(6, len(raw))] = chance.randrange(256)
    path.write_bytes(raw)
    try:
        for row in open_dataset(DataSection(path=str(path))):
            assert (row.sample is None) == (row.error is not None)
    except UnusableInput as error:
        assert "\n" not in str(error)


def test_any_row_is_read_or_refused(tmp_path: Path) -> None:
    """Rows of every format whose values are of every wrong type."""
    chance = random.Random(7)
    bad_contents: list[Any] = [None, 3, [], [{"type": "image"}], [{"text": 3}], {}]
    bad_calls: list[Any] = [3, [3], ["{"], [{"function": {}}]]
    values: list[Any] = [None, True, 3, 1.5, "", "x", [], [[]], ["x"], {}, {"role": 1}, "[]"]
    values += [[{"role": "user"}], [{"from": "gpt"}]]
    values += [[{"role": "user", "content": bad}] for bad in bad_contents]
    values += [[{"role": "assistant", "content": None, "tool_calls": bad}] for bad in bad_calls]
    forms = [
        Format("messages", "", {"messages": "a", "tools": "b", "system": "c"}),
        Format("alpaca", "", {"instruction": "a", "input": "b", "output": "c"}),
        Format("prompt-completion", "", {"prompt": "a", "completion": "b"}),
        Format("columns", "", {"user": "a", "assistant": "b", "system": "c"}),
        Format("preference", "", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        Format("text", "", {"text": "a"}),
    ]
    for _ in range(INPUTS * 4):
        row = {name: chance.choice(values) for name in "abc" if chance.random() < 0.9}
        try:
            sample = read(row, chance.choice(forms))
        except UnusableRow as reason:
            assert str(reason) and "\n" not in str(reason)
            continue
        for turn in sample.messages or []:
            assert isinstance(turn["content"], str)


def test_parsing_is_bounded() -> None:
    """What a JSON reader dies of, at the sizes that it dies of."""
    for raw in (b'{"a":' * 10**6, b"[" * 10**7, b'{"a": ' + b"9" * 10**7 + b"}", b'{"a": "' + b"\\" * 10**7):
        assert parse(raw, LINE, 1).error
