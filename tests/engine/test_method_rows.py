"""What each method makes of a row: what is counted, what is refused with which words, and what the audit says."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO, SHARED
from tuitune.audit.scan import audit
from tuitune.data.dataset import open_dataset
from tuitune.data.inspect import inspect_rows
from tuitune.data.prepare import Prepared, prepare
from tuitune.data.proposal import proposal
from tuitune.errors import UnusableInput
from tuitune.methods import METHODS
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe

PAIR = {"prompt": "What is 1 + 1?", "chosen": "It is 2.", "rejected": "It is 3."}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(recipe_of(Path("-"), "sft").model)


def recipe_of(path: Path, method: str, **data: Any) -> Recipe:
    fields = {"path": str(path), "max_length": 128, **data}
    model = {"name": str(DEMO / "demo_model"), "load_in_4bit": False}
    return Recipe.from_data({"model": model, "data": fields, "method": {"name": method}})


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(path: Path, method: str, tokenizer: Any, rows: list[Any], **data: Any) -> Prepared:
    return prepare(recipe_of(written(path / "rows.jsonl", rows), method, **data), tokenizer)


def parts(path: Path, method: str, row: Any) -> dict[str, str]:
    """Title of each part to what is counted of it, of one row."""
    file = written(path / "one.jsonl", [row])
    (shown,) = inspect_rows(recipe_of(file, method), 0, 1)
    if "error" in shown:
        return {"error": shown["error"]}
    return {
        part["title"]: "".join(token["text"] for token in part["tokens"] if token["trained"]) for part in shown["parts"]
    }


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_of_a_pair_exactly_the_replies_count_each_with_one_end(tmp_path: Path, method: str) -> None:
    counted = parts(tmp_path, method, PAIR)
    assert counted == {"prompt": "", "chosen": "It is 2.<|im_end|>", "rejected": "It is 3.<|im_end|>"}


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "chosen": "Yes", "rejected": "No"},
        {
            "chosen": [*TURNS, {"role": "assistant", "content": "Yes"}],
            "rejected": [*TURNS, {"role": "assistant", "content": "No"}],
        },
        {"messages": TURNS, "preferred": "Yes", "dispreferred": "No", "system": "Be brief"},
        {
            "conversations": [{"from": {"user": "human"}.get(t["role"], "gpt"), "value": t["content"]} for t in TURNS],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: ?\n\nAssistant: Yes",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: ?\n\nAssistant: No",
        },
        {"question": "?", "answer_chosen": "Yes", "answer_rejected": "No"},
    ],
)
def test_pairs_are_read_however_they_are_written(tmp_path: Path, row: dict[str, Any]) -> None:
    """A reply that both sides begin with belongs to the prompt, and is not counted."""
    counted = parts(tmp_path, "dpo", row)
    assert (counted["chosen"], counted["rejected"]) == ("Yes<|im_end|>", "No<|im_end|>")
    assert counted["prompt"] == ""


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path, tokenizer: Any) -> None:
    row = {**PAIR, "rejected": "a <|im_end|> b"}
    (kept,) = prepared(tmp_path, "dpo", tokenizer, [row]).train
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    counted = [
        token for token, label in zip(kept["rejected_input_ids"], kept["rejected_labels"], strict=True) if label >= 0
    ]
    assert counted.count(end) == 1 and counted[-1] == end


@pytest.mark.parametrize(
    ("method", "row", "says"),
    [
        ("dpo", {**PAIR, "rejected": PAIR["chosen"]}, "its chosen and rejected replies are the same: take it out"),
        ("dpo", {"prompt": "a", "completion": "b"}, "it is no pair of a chosen and a rejected reply: map them"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "it has a chosen and a rejected reply but no prompt: add it"),
        ("dpo", {**PAIR, "prompt": "word " * 300}, "its chosen side: all its trained tokens lie beyond max_length"),
        ("orpo", {**PAIR, "rejected": None}, "it has no rejected: fill it in"),
        ("kto", {"prompt": "a", "completion": "b"}, "it has no mark whether its reply is good: map the column"),
        ("pretrain", {"prompt": "a", "completion": "b"}, "it is a conversation, and pretrain learns from raw text"),
        ("sft", {"prompt": "a", "completion": "b", "label": False}, "its reply is marked bad: take it out, or set"),
        ("grpo", {"text": "a"}, "it has no prompt to answer"),
    ],
)
def test_a_row_that_the_method_cannot_use_says_why(tmp_path: Path, method: str, row: dict[str, Any], says: str) -> None:
    assert parts(tmp_path, method, row)["error"].startswith(says)


def test_bad_rows_are_named_with_file_and_row(tmp_path: Path, tokenizer: Any) -> None:
    rows = [PAIR, {**PAIR, "rejected": PAIR["chosen"]}]
    with pytest.raises(
        UnusableInput, match=r"1 rows of rows.jsonl cannot be used .*; row 2 of rows.jsonl: its chosen and"
    ):
        prepared(tmp_path, "dpo", tokenizer, rows, bad_rows="refuse")


@pytest.mark.parametrize(("side", "over_length"), [("chosen", "drop"), ("rejected", "split")])
def test_a_reply_that_is_too_long_is_cut_or_left_out(
    tmp_path: Path, tokenizer: Any, side: str, over_length: str
) -> None:
    rows = [PAIR, {**PAIR, side: "again and " * 100}]
    cut = prepared(tmp_path, "dpo", tokenizer, rows, max_length=64)
    assert cut.truncated == 1 and cut.longest == 64 and cut.train[1][f"{side}_labels"][-1] >= 0
    left = prepared(tmp_path, "dpo", tokenizer, rows, max_length=64, over_length=over_length)
    assert len(left.train) == 1 and f"its {side} side is longer than max_length (64)" in next(iter(left.dropped))


def test_marks_are_read_however_they_are_written_and_pairs_count_as_two(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "a", "completion": "b", "thumbs_up": mark} for mark in (True, 0, "👍", "down", "maybe")]
    marked = prepared(tmp_path, "kto", tokenizer, rows)
    assert [row["desirable"] for row in marked.train] == [[1], [0], [1], [0]]
    assert next(iter(marked.dropped)) == "its thumbs_up says neither good nor bad: write true or false"
    assert [row["desirable"] for row in prepared(tmp_path, "kto", tokenizer, [PAIR]).train] == [[1], [0]]


def test_documents_are_packed_with_an_end_behind_each(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"Document {number} says nothing new."} for number in range(40)]
    packed = prepared(tmp_path, "pretrain", tokenizer, rows, max_length=64)
    lengths = [len(row["input_ids"]) for row in packed.train]
    assert set(lengths[:-1]) == {64} and lengths[-1] <= 64
    ids = [token for row in packed.train for token in row["input_ids"]]
    assert len(ids) == packed.tokens and ids.count(tokenizer.eos_token_id) == 40
    trained = [label for row in packed.train for label in row["labels"] if label >= 0]
    assert len(trained) == packed.trained_tokens and len(ids) - len(trained) <= 40  # only what begins a document is not


def test_a_document_longer_than_a_row_loses_nothing(tmp_path: Path, tokenizer: Any) -> None:
    packed = prepared(tmp_path, "pretrain", tokenizer, [{"text": "one word and another " * 100}], max_length=32)
    assert len(packed.train) > 5 and not packed.truncated


@pytest.mark.parametrize(
    ("rows", "method"),
    [
        ([PAIR], "dpo"),
        ([{"prompt": "a", "completion": "b", "label": True}], "kto"),
        ([{"question": "a", "answer": "so #### 4"}], "grpo"),
        ([{"prompt": "a"}], "grpo"),
        ([{"text": "It was a dark night."}], "pretrain"),
        ([{"text": "### Instruction: a"}], "sft"),
        ([{"question": "a", "answer": "Because it is."}], "sft"),
        ([{"text": "great", "label": True}], "pretrain"),
    ],
)
def test_the_method_is_proposed_from_the_rows(tmp_path: Path, rows: list[Any], method: str) -> None:
    proposed = proposal(open_dataset(recipe_of(written(tmp_path / "rows.jsonl", rows), "sft").data))
    assert proposed["method"] == method and proposed["method_reason"]


def test_the_audit_tells_of_length_bias_and_empty_replies(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"A long and thorough answer {n}.", "rejected": "No."} for n in range(30)
    ]
    rows[3]["rejected"] = ""
    report = audit(recipe_of(written(tmp_path / "rows.jsonl", rows), "dpo"), tokenizer)
    told = {finding.name: finding for finding in report.findings}
    assert told["length bias"].text.startswith("the chosen reply is the longer one in 100% of pairs (mean length 30")
    assert told["empty rejected"].examples == [(0, 4)]


def test_the_audit_tells_which_weight_mends_an_imbalance(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"{n}?", "completion": f"Answer {n}.", "label": n % 4 == 0} for n in range(40)]
    report = audit(recipe_of(written(tmp_path / "rows.jsonl", rows), "kto"), tokenizer)
    text = next(finding.text for finding in report.findings if finding.name == "imbalance")
    assert text == "10 replies are good and 30 bad, which weighs them 0.33 to 1: set method.desirable_weight: 3"


def test_every_method_says_what_it_is() -> None:
    for method in METHODS.values():
        assert method.sentence.endswith(".") and method.loss_says.endswith(".")
        assert all(len(metric.title) <= 14 and metric.meaning.endswith(".") for metric in method.metrics)


def test_real_pairs_are_read_whole(tokenizer: Any) -> None:
    file = SHARED / "data" / "gsm8k_preference.jsonl"
    if not file.is_file():
        pytest.skip("the gsm8k pairs are not on this machine")
    pairs = prepare(recipe_of(file, "dpo", max_length=4096), tokenizer)
    assert len(pairs.train) == len(file.read_text().splitlines()) - sum(entry.count for entry in pairs.dropped.values())
    assert not pairs.truncated and len(pairs.train) > 500
