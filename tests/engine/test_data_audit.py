"""Every problem in a dataset is named with its rows, over the whole set, before the first step."""

import json
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.command import COMMAND
from tests.conftest import DEMO
from tuitune.audit.scan import Audit, audit
from tuitune.chat_template.named import TEMPLATES
from tuitune.data import content
from tuitune.data.digest import among, digest, repeats
from tuitune.data.inspect import summary
from tuitune.data.prepare import prepare
from tuitune.errors import TuituneError, UnusableInput
from tuitune.masking import IGNORED, Masker, Message, Sample
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ModelSection


def chat(*contents: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def recipe(path: Path, rows: list[Any], **fields: Any) -> Recipe:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.from_data({"model": {"name": str(DEMO / "demo_model")}, "data": {"path": str(path), **fields}})


def rows_of(report: Audit) -> dict[str, list[int]]:
    return {finding.name: [example.row for example in finding.examples] for finding in report.findings}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_each_problem_is_found_in_its_row(tmp_path: Path) -> None:
    sentence = "The old captain counted the stars twice before the wind turned north and the sails filled with rain"
    token = "hf_" + "a1B2" * 9
    rows: list[Any] = [
        chat(f"What is {n} and {n + 1}?", f"That makes {2 * n + 1}, as you can count.") for n in range(120)
    ]
    problems = {
        "duplicate": {**rows[7], "row-id": 120},
        "near duplicate": chat("What is 7 and 8", "that makes 15; as you can COUNT"),
        "empty reply": chat("Anyone?", "  "),
        "no reply": chat("Hello there?"),
        "roles: two user turns in a row": {"messages": [*chat("Hi")["messages"], *chat("Hm", "Ahoy")["messages"]]},
        "unused column note": {**chat("Which way?", "North it is, by the map."), "note": "x"},
        "secret: Hugging Face token": chat("My token?", f"It is {token}, keep it."),
        "secret: e-mail address": chat("Whom to ask?", "Write to anne.bonny@pirates.org about it."),
        "mojibake": chat("Where?", "At the cafÃ© by the harbour."),
        "invisible characters": chat("What?", "A \u202egnirts\u202c turned around."),
        "script: Cyrillic": chat("How?", "Так держать, капитан."),
        "very short": chat("Yes?", ""),
        "very long": chat("Tell me all.", f"{sentence}. " * 8),
    }
    problems["very short"] = chat("Yes or no, tell me?", "a")
    report = audit(recipe(tmp_path / "rows.jsonl", [*rows, *problems.values()]))
    examples = rows_of(report)
    for number, name in enumerate(problems, len(rows) + 1):
        assert number in examples.get(name, []), f"{name} not found: {examples}"
    alike = {finding.name: finding.like for finding in report.findings}
    assert alike["duplicate"] == alike["near duplicate"] == [(0, 8)]
    assert alike["very long"] == []
    assert "row 122 is like row 8" in report.as_text()
    assert "unused column row-id" not in examples
    assert token not in json.dumps(report.as_dict()) + report.as_text()
    assert report.rows == len(rows) + len(problems)
    assert report.used == report.rows - 2
    assert sum(entry["count"] for entry in report.dropped.values()) == 2


def test_fields_of_turns_that_are_not_read_are_named(tmp_path: Path) -> None:
    scored = chat("Hi", "Ahoy")
    scored["messages"][1]["score"] = 0
    assert rows_of(audit(recipe(tmp_path / "rows.jsonl", [scored, chat("Bye", "Fare well")]))) == {
        "unused field score": [1]
    }


def test_a_mix_is_audited_whole(tmp_path: Path) -> None:
    """Each dataset's counts and share; rows of further ones are told apart from the first's."""
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps({"q": f"Ask {n}", "a": f"Say {n}"}) + "\n" for n in (1, 100, 101)) + "{broken\n"
    )
    (tmp_path / "eval.jsonl").write_text(
        "".join(
            json.dumps(chat(*turns)) + "\n" for turns in (("Ask 2", "Say 2"), ("Ask 101", "Sing"), ("New?", "Yes."))
        )
    )
    extra = {"path": str(tmp_path / "other.jsonl"), "weight": 3, "columns": {"user": "q", "assistant": "a"}}
    rows = [chat(f"Ask {n}", f"Say {n}") for n in range(9)]
    chosen = recipe(tmp_path / "rows.jsonl", rows, also=[extra], eval_path=str(tmp_path / "eval.jsonl"))
    report = audit(chosen)
    assert [(source.name, source.rows, source.used, source.dropped) for source in report.sources] == [
        ("rows.jsonl", 9, 9, 0),
        ("other.jsonl", 4, 3, 1),
    ]
    assert (report.rows, report.used) == (13, 12)
    assert sum(source.trained_tokens for source in report.sources) == report.trained_tokens
    assert sum(source.share for source in report.sources) == pytest.approx(1)
    assert report.sources[1].share == pytest.approx(0.5, abs=0.1)
    (dropped,) = report.dropped.values()
    assert dropped["examples"] == [(1, 4)]
    examples = {finding.name: finding.examples for finding in report.findings}
    assert examples["duplicate"] == [(1, 1)]
    assert examples["in evaluation"] == [(2, 1)]
    assert examples["leak to evaluation"] == [(2, 2)]
    assert (
        "other.jsonl: 3 of 4 rows" in report.as_text()
        and "(other.jsonl: rows 1; other.jsonl: row 1 is like rows.jsonl: row 2)" in report.as_text()
    )


def test_datasets_of_one_file_name_are_told_apart(tmp_path: Path) -> None:
    """In counts, findings and what is left out; the last is the evaluation's."""
    paths = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "rows.jsonl")
    rows = [chat(f"Ask {n}", f"Say {n}") for n in range(6)]
    recipe(paths[1], [rows[0], chat("Hm"), chat("New?", " ")])
    recipe(paths[2], [chat("Other?", "Yes."), rows[1], chat("Well"), chat("Newer?", " ")])
    also = [{"path": str(path)} for path in paths[1:]]
    recipe(tmp_path / "rows.jsonl", [rows[2], chat("Measured?", "Yes.")])
    chosen = recipe(paths[0], rows, also=also, eval_path=str(tmp_path / "rows.jsonl"))
    tokenizer = load_tokenizer(chosen.model)
    report = audit(chosen, tokenizer)
    names = ["rows.jsonl (dataset 1)", "rows.jsonl (dataset 2)", "rows.jsonl (dataset 3)"]
    assert [source.name for source in report.sources] == names
    assert [part["name"] for part in summary(chosen)["sources"]] == [*names, "rows.jsonl"]
    examples = {finding.name: finding.examples for finding in report.findings}
    assert examples["duplicate"] == [(1, 1), (2, 2)]
    assert examples["in evaluation"] == [(3, 1)]
    dropped = {reason.partition(":")[0]: entry["examples"] for reason, entry in report.dropped.items()}
    assert dropped["it has no assistant turn"] == [(1, 2), (2, 3)]
    assert "(rows.jsonl (dataset 2): rows 1; rows.jsonl (dataset 3): rows 2;" in report.as_text()
    counts = {reason: entry.count for reason, entry in prepare(chosen, tokenizer).dropped.items()}
    assert sum(counts.values()) == sum(entry["count"] for entry in report.dropped.values())


@given(st.lists(st.integers(0, 30), max_size=60), st.lists(st.integers(0, 30), max_size=60))
def test_repeats_and_members_are_those_of_plain_python(values: list[int], known: list[int]) -> None:
    drawn, others = (numpy.array(hashes, dtype=numpy.uint64) for hashes in (values, known))
    with patch("tuitune.data.digest._BLOCK", 7):
        assert repeats(drawn).tolist() == [value in values[:place] for place, value in enumerate(values)]
        assert among(drawn, others).tolist() == [value in known for value in values]
        odd = numpy.arange(len(known)) % 2 == 1
        assert among(drawn, others, odd).tolist() == [value in known[1::2] for value in values]


def test_rows_that_differ_in_what_counts_are_no_duplicates(tmp_path: Path) -> None:
    """Another sign or emoji is another row, and a system message that all share does not make them alike."""
    system = {"role": "system", "content": "Answer as a pirate would. " * 30}

    def instructed(*contents: str) -> dict[str, Any]:
        return {"messages": [system, *chat(*contents)["messages"]]}

    rows = [
        *(chat("What is 3+5?", "8"), chat("What is 3-5?", "8"), chat("One emoji?", "😀"), chat("One emoji?", "😢")),
        *(instructed("Which island is near?", "Tortuga, two days west."), instructed("Who sails?", "Anne does.")),
    ]
    assert not {"duplicate", "near duplicate"} & set(rows_of(audit(recipe(tmp_path / "rows.jsonl", rows))))
    examples = rows_of(audit(recipe(tmp_path / "rows.jsonl", [*rows, *rows[-2:]])))
    assert examples["duplicate"] == [7, 8]


def test_rows_that_differ_in_calls_or_thoughts_are_told_apart() -> None:
    def calling(city: str, thought: str = "") -> Sample:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        reply: Message = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": thought}
        return Sample([{"role": "user", "content": "How is the weather?"}, reply])

    samples = [calling("Oslo"), calling("Lima"), calling("Lima", "They said the south."), calling("Oslo")]
    digests = [digest(sample) for sample in samples]
    assert len(set(digests)) == 3 and digests[0] == digests[3]


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    rows = [chat(f"How much is {n} and {m}?", f"{n} and {m} are {n + m}.") for n in range(10) for m in range(10)]
    report = audit(recipe(tmp_path / "rows.jsonl", rows))
    assert report.findings == []
    assert report.used == report.rows == 100
    assert 0 < report.trained_share < 1
    assert report.token_percentiles[50] <= report.token_percentiles[100]


def test_cut_rows_and_the_length_that_keeps_them(tmp_path: Path) -> None:
    rows = [chat(f"Count to {n}.", " ".join(map(str, range(n)))) for n in range(1, 101)]
    whole = audit(recipe(tmp_path / "rows.jsonl", rows))
    longest = whole.token_percentiles[100]
    report = audit(recipe(tmp_path / "rows.jsonl", rows, max_length=longest // 2))
    assert 30 < report.truncated < 70
    # A row one token too long loses only the newline behind its end marker.
    assert report.truncated - 1 <= report.losing_end <= report.truncated
    assert [length.share for length in report.lengths] == [0.95, 0.99, 1.0]
    assert report.lengths[-1].max_length == longest
    kept = audit(recipe(tmp_path / "rows.jsonl", rows, max_length=report.lengths[0].max_length))
    assert kept.truncated <= 5
    memory = [length.memory_bytes or 0 for length in report.lengths]
    assert 0 < memory[0] <= memory[1] <= memory[2]


def test_replies_that_never_end_are_named(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy"), chat("Bye", "Farewell")])
    tokenizer = load_tokenizer(chosen.model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    assert rows_of(audit(chosen, tokenizer))["never ends"] == [1, 2]


def test_a_held_out_prompt_in_the_training_data_is_named(tmp_path: Path) -> None:
    rows = [chat(f"Question {n % 10}?", f"Answer {n} of many.") for n in range(40)]
    assert "leak" in rows_of(audit(recipe(tmp_path / "rows.jsonl", rows, eval_share=0.2)))


def test_long_rows_are_cut_dropped_or_split(tmp_path: Path) -> None:
    long = {
        "messages": [{"role": "system", "content": "Be kind."}, *chat(*[f"Turn {n}" for n in range(40)])["messages"]]
    }
    path = tmp_path / "rows.jsonl"

    def prepared(policy: str) -> Any:
        chosen = recipe(path, [chat("Hi", "Ahoy"), long], max_length=64, over_length=policy)
        tokenizer = load_tokenizer(chosen.model)
        return prepare(chosen, tokenizer), tokenizer

    cut, _ = prepared("cut")
    assert len(cut.train) == 2 and cut.truncated == 1 and cut.longest == 64
    dropped, _ = prepared("drop")
    assert len(dropped.train) == 1
    assert [(reason[:33], rows.examples) for reason, rows in dropped.dropped.items()] == [
        ("it is longer than max_length (64)", [2])
    ]
    split, tokenizer = prepared("split")
    assert len(split.train) > 3 and split.truncated == 0 and sorted(set(split.rows.numbers)) == [0, 1]
    parts = [tokenizer.decode(ids) for ids in split.train["input_ids"][1:]]
    assert all("Be kind." in part for part in parts)
    assert [f"Turn {n}<" for n in range(40)] == [
        f"Turn {n}<" for part in parts for n in range(40) if f"Turn {n}<" in part
    ]


def test_bad_rows_can_refuse_the_run(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy"), chat("Hm")], bad_rows="refuse")
    tokenizer = load_tokenizer(chosen.model)
    says = r"1 rows of rows\.jsonl cannot be used .* row 2 of rows\.jsonl: it has no assistant turn"
    with pytest.raises(UnusableInput, match=says):
        prepare(chosen, tokenizer)
    # Of a mix, the dataset is named that has them.
    recipe(tmp_path / "other.jsonl", [chat("Hm"), chat("Hi", "Ahoy"), chat("Well")])
    also = [{"path": str(tmp_path / name)} for name in ("other.jsonl", "rows.jsonl")]
    recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy"), chat("Hm")])
    chosen = recipe(tmp_path / "good.jsonl", [chat("Hi", "Ahoy")], bad_rows="refuse", also=also)
    says = r"2 rows of other\.jsonl, 1 of other datasets, cannot be used .* row 1 of other\.jsonl: it has no assistant"
    with pytest.raises(UnusableInput, match=says):
        prepare(chosen, tokenizer)


def test_a_mix_without_a_usable_row_names_the_commonest_reason_with_its_dataset(tmp_path: Path) -> None:
    recipe(tmp_path / "other.jsonl", [{"messages": [{"role": "captain", "content": "Aye"}]}, chat("Hm"), chat("Hm?")])
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Well")], also=[{"path": str(tmp_path / "other.jsonl")}])
    says = r"No row of other\.jsonl nor of the 1 other dataset can be .* row 2 of other\.jsonl \(of 2 such\): it has no"
    with pytest.raises(UnusableInput, match=says):
        prepare(chosen, load_tokenizer(chosen.model))


def test_an_evaluation_file_loses_what_is_trained_on(tmp_path: Path) -> None:
    other = tmp_path / "eval.jsonl"
    rows = [chat(f"Question {n}?", f"Answer {n}.") for n in range(20)]
    other.write_text("".join(json.dumps(row) + "\n" for row in [rows[3], chat("Something new?", "Indeed.")]))
    chosen = recipe(tmp_path / "rows.jsonl", rows, eval_path=str(other))
    prepared = prepare(chosen, load_tokenizer(chosen.model))
    assert len(prepared.train) == 20 and len(prepared.eval) == 1
    other.write_text(json.dumps(rows[3]) + "\n")
    with pytest.raises(UnusableInput, match="leaves no row to measure on"):
        prepare(chosen, load_tokenizer(chosen.model))


def test_datasets_are_mixed_by_weight(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"q": f"{n}?", "a": f"It is {n}."}) + "\n" for n in range(10)))
    extra = {"path": str(other), "weight": 2.5, "columns": {"user": "q", "assistant": "a"}}
    chosen = recipe(tmp_path / "rows.jsonl", [chat(f"Ask {n}", f"Say {n}") for n in range(8)], weight=0.5, also=[extra])
    tokenizer = load_tokenizer(chosen.model)
    prepared = prepare(chosen, tokenizer)
    assert len(prepared.train) == 4 + 25
    assert prepared.train["input_ids"][:] == prepare(chosen, tokenizer).train["input_ids"][:]


def test_rows_are_found_again_until_the_content_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chosen = recipe(path, [chat(f"Ask {n}", f"Say {n}") for n in range(8)])
    tokenizer = load_tokenizer(chosen.model)
    first = prepare(chosen, tokenizer)
    calls: list[int] = []
    cached = prepare(chosen, tokenizer, progress=lambda done, total: calls.append(done))
    assert cached.rows.file == first.rows.file and calls == [8]
    path.write_text(path.read_text().replace("Say 3", "Sing 3"))
    changed = prepare(chosen, tokenizer)
    assert changed.rows.file != first.rows.file
    assert cached.rows.file is not None
    cached.rows.file.with_name("counts.json").write_text("{")
    recipe(path, [chat(f"Ask {n}", f"Say {n}") for n in range(8)])
    assert len(prepare(chosen, tokenizer).train) == 8


def test_preparing_can_be_cancelled(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat(f"Ask {n}", f"Say {n}") for n in range(2000)])
    done: list[int] = []
    prepared = prepare(chosen, load_tokenizer(chosen.model), lambda rows, total: done.append(rows), lambda: bool(done))
    assert len(prepared.train) < 2000
    assert not list((tmp_path / "cache" / "tuitune" / "tokenised").glob("[!.]*"))


def test_a_tokenizer_without_a_template_gets_the_named_one(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(DEMO / "demo_model", bare)
    (bare / "chat_template.jinja").unlink()
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy")])
    with pytest.raises(UnusableInput, match=r"set model\.chat_template to one of chatml, llama-3"):
        prepare(chosen, load_tokenizer(chosen.model.model_copy(update={"name": str(bare)})))
    for name in TEMPLATES:
        tokenizer = load_tokenizer(ModelSection(name=str(bare), chat_template=name))
        masked = Masker(tokenizer, "assistant", 512).encode(chat("Hi", "Ahoy", "Bye", "Well")["messages"])
        kept = [token for token, label in zip(masked.input_ids, masked.labels, strict=True) if label != IGNORED]
        text = tokenizer.decode(kept)
        assert text.lstrip().startswith("Ahoy") and "Well" in text and "Bye" not in text, name
        assert masked.ended, name
    with pytest.raises(UnusableInput, match="has a chat template of its own"):
        load_tokenizer(chosen.model.model_copy(update={"chat_template": "gemma"}))


def test_a_hub_dataset_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy")])
    data = chosen.data.model_copy(update={"path": "hub:nobody/nothing"})
    with pytest.raises(UnusableInput, match="nobody/nothing is not downloaded here and HF_HUB_OFFLINE is set"):
        prepare(chosen.model_copy(update={"data": data}), load_tokenizer(chosen.model))


def test_a_hostile_file_cannot_flood_the_report(tmp_path: Path) -> None:
    rows: list[Any] = [{**chat(f"Ask {n}", f"Say {n}"), f"column {n}": n} for n in range(400)]
    rows += [{"messages": [{"role": f"role {n}", "content": "x"}]} for n in range(400)]
    report = audit(recipe(tmp_path / "rows.jsonl", rows))
    assert report.used == 400 and sum(entry["count"] for entry in report.dropped.values()) == 400
    assert len(report.dropped) <= 51 and len(report.findings) <= 210


def test_cancelled_at_once_there_are_no_rows(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy")], eval_share=0.5)
    prepared = prepare(chosen, load_tokenizer(chosen.model), cancelled=lambda: True)
    assert len(prepared.train) == 0 and prepared.eval is None


def test_thinking_that_the_template_leaves_out_is_named(tmp_path: Path) -> None:
    thought = chat("What is 2 and 2?", "Four.")
    thought["messages"][1]["reasoning_content"] = "Count on two fingers twice."
    chosen = recipe(tmp_path / "rows.jsonl", [chat("What is 1 and 1?", "Two."), thought])
    assert rows_of(audit(chosen))["thinking left out"] == [2]
    inline = recipe(tmp_path / "inline.jsonl", [chat("Hm?", "<think>\nhm\n</think>\n\nYes.")])
    assert "thinking left out" not in rows_of(audit(inline))


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    whole = [*COMMAND, "audit", *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


def test_hostile_text_is_looked_through_in_little_time() -> None:
    began = time.monotonic()
    for text in ("eyJa-" * 200_000, "a@" * 500_000, "-----BEGIN " * 100_000, "http://a:" * 100_000, "sk-" * 300_000):
        content.secrets(text)
    assert time.monotonic() - began < 10


def test_the_audit_as_a_program_uses_it(tmp_path: Path) -> None:
    """JSON alone on stdout, and an exit status that tells what can be used."""
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy"), chat("Hm")])
    file = tmp_path / "recipe.yaml"
    file.write_text(chosen.to_yaml())
    done = command(file, "--json")
    assert done.returncode == 0, done.stderr
    (report,) = map(json.loads, done.stdout.splitlines())
    assert (report["rows"], report["used"]) == (2, 1)
    assert [finding["name"] for finding in report["findings"]][:2] == ["no reply", "roles: ends without a reply"]
    (tmp_path / "rows.jsonl").write_text("")
    refused = command(file, "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "rows.jsonl is empty: give a file that holds rows." in refused.stderr
    assert "Traceback" not in refused.stderr


@contextmanager
def a_disk_that_takes(file_bytes: int) -> Iterator[None]:
    """No file can grow beyond this, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file_bytes", [100, 60_000], ids=["first bytes", "in the middle"])
def test_on_a_full_disk_the_rows_go_on_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """Nothing is left behind, and with room again the same recipe makes the same rows and keeps them."""
    monkeypatch.setattr("tuitune.data.cache._BATCH_TOKENS", 2_000)
    chosen = recipe(
        tmp_path / "rows.jsonl", [chat(f"Ask {n}", f"Say {n}. " * (n % 20 + 2)) for n in range(600)], eval_share=0.1
    )
    tokenizer = load_tokenizer(chosen.model)
    entries = tmp_path / "cache" / "tuitune" / "tokenised"
    with a_disk_that_takes(file_bytes):
        in_memory = prepare(chosen, tokenizer)
        report = audit(chosen, tokenizer)
    assert os.listdir(entries) == []
    (notice,) = in_memory.notices
    assert re.fullmatch(
        r"The tokenised rows cannot be written to \S+tokenised \(.*\) and are kept in memory .*", notice
    )
    assert notice in report.as_text()
    kept = prepare(chosen, tokenizer)
    assert kept.notices == [] and len(os.listdir(entries)) == 1
    for part in ("train", "eval"):
        for column in ("input_ids", "labels"):
            assert getattr(in_memory, part)[column][:] == getattr(kept, part)[column][:]


def test_a_disk_that_is_full_after_the_last_row_loses_no_row(tmp_path: Path) -> None:
    """The list of what was left out is longer than the rows and no longer fits."""
    bad: list[Any] = [{"messages": [{"role": f"role {n}", "content": "x"}]} for n in range(60)]
    chosen = recipe(tmp_path / "rows.jsonl", [chat("Hi", "Ahoy"), *bad])
    with a_disk_that_takes(3_000):
        prepared = prepare(chosen, load_tokenizer(chosen.model))
    assert len(prepared.train["input_ids"][:]) == 1 and len(prepared.notices) == 1
    assert os.listdir(tmp_path / "cache" / "tuitune" / "tokenised") == []


def test_without_room_in_memory_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat(f"Ask {n}", f"Say {n}. " * 20) for n in range(400)])
    tokenizer = load_tokenizer(chosen.model)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    with (
        a_disk_that_takes(20_000),
        pytest.raises(TuituneError, match=r"cannot be written to .* memory has no room for them either; make room"),
    ):
        prepare(chosen, tokenizer)
    assert os.listdir(tmp_path / "cache" / "tuitune" / "tokenised") == []


def test_a_cache_entry_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "rows.jsonl", [chat(f"Ask {n}", f"Say {n}.") for n in range(40)])
    tokenizer = load_tokenizer(chosen.model)
    first = prepare(chosen, tokenizer).train["input_ids"][:]
    (file,) = (tmp_path / "cache" / "tuitune" / "tokenised").glob("*/rows.arrow")
    os.truncate(file, file.stat().st_size // 2)
    assert prepare(chosen, tokenizer).train["input_ids"][:] == first
