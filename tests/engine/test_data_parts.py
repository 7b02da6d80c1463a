"""A part of a file, as `data.split` names it, is read, counted, trained on and measured on as a dataset of its own."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engine.test_data import PAIR, jsonl, recipe, section
from tuitune.data import open_dataset
from tuitune.data.prepare import prepare
from tuitune.errors import UnusableInput
from tuitune.model.config import load_tokenizer


@pytest.mark.parametrize(
    ("split", "numbers", "shown"),
    [
        ("train", range(50), ""),
        ("train[:10%]", range(5), ", rows 1 to 5"),
        ("train[90%:]", range(45, 50), ", rows 46 to the end"),
        ("train[-3:]", range(47, 50), ", rows 48 to the end"),
        ("train[20:30]", range(20, 30), ", rows 21 to 30"),
        ("train[40:900]", range(40, 50), ", rows 41 to 900"),
    ],
)
@pytest.mark.parametrize(("name", "kind"), [("rows.jsonl", "JSONL"), ("rows.parquet", "Parquet")])
def test_a_part_of_a_file_is_named_as_datasets_does(
    tmp_path: Path, name: str, kind: str, split: str, numbers: Sequence[int], shown: str
) -> None:
    """Rows, their number and the estimate are of the part, and a row's number is its place in it."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / name
    rows = [{"question": f"Ask {n:02}", "answer": "Ahoy"} for n in range(50)]
    if name.endswith("jsonl"):
        jsonl(path, *rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    dataset = open_dataset(section(path, split=split))
    asked = [(row.index, row.messages[0]["content"]) for row in dataset if row.messages]
    assert asked == [(place, f"Ask {n:02}") for place, n in enumerate(numbers)]
    (second,) = dataset.rows(1, 2)
    assert second.messages and second.messages[0]["content"] == f"Ask {numbers[1]:02}"
    if name.endswith("jsonl"):
        assert dataset.estimated_rows() == pytest.approx(len(numbers), abs=1)
    assert len(dataset) == len(numbers)
    assert dataset.container.text == kind + shown


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("train[x]", "data.split is 'train[x]', which is no single part of a split: write train, train[:10%] or"),
        ("train[:1]+train[3:]", "give further parts in data.also."),
        ("train[5:3]", "data.split is 'train[5:3]', which holds no row: write the first row and the one behind"),
        ("train[80:]", "it holds no rows"),
        ("test", "data.split names the split 'test', and rows.jsonl is one file: leave data.split out, or write"),
    ],
)
def test_a_part_that_is_none_is_refused(tmp_path: Path, split: str, says: str) -> None:
    with pytest.raises(UnusableInput, match=re.escape(says)):
        open_dataset(section(jsonl(tmp_path / "rows.jsonl", *[PAIR] * 9), split=split))


def test_parts_of_one_file_train_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = jsonl(tmp_path / "rows.jsonl", *[{"question": f"Ask {n}", "answer": "Ahoy"} for n in range(40)])
    chosen = recipe(path, split="train[:75%]", eval_split="train[75%:]")
    tokenizer = load_tokenizer(chosen.model)
    prepared = prepare(chosen, tokenizer)
    assert (len(prepared.train), len(prepared.eval)) == (30, 10)
    assert "Ask 30" in tokenizer.decode(prepared.eval[0]["input_ids"])
    # An evaluation file of its own is read whole.
    other = jsonl(tmp_path / "other.jsonl", *[{"question": f"Tell {n}", "answer": "Ahoy"} for n in range(8)])
    chosen = recipe(path, split="train[:5]", eval_path=str(other))
    assert len(prepare(chosen, tokenizer).eval) == 8
