"""What the benchmarks on a GPU rest on that needs none: what is counted, and what the peer is given."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu_speed, notebook
from benchmarks.shapes import make_chats
from tests.conftest import DEMO


def test_the_peer_counts_the_last_two_thirds_of_the_steps() -> None:
    marks = [(10.0 * step, 100 * step) for step in range(3)] + [(20.0 + step, 200 + 300 * step) for step in range(1, 7)]
    tokens_per_second, seconds_per_step = notebook.speed(marks)
    assert tokens_per_second == pytest.approx(300)
    assert seconds_per_step == pytest.approx(1)


def test_the_peer_trains_on_replies_that_it_can_find(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chats = make_chats(tmp_path / "chats.jsonl", count=20)
    messages = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "demo_model")
    for text, (asked, answered) in zip(
        notebook.texts(tokenizer, {"messages": messages})["text"], messages, strict=True
    ):
        _, user, rest = text.partition(notebook.USER)
        question, assistant, reply = rest.partition(notebook.ASSISTANT)
        assert user and assistant
        assert asked["content"].strip() in question
        assert answered["content"].strip() in reply


def test_a_peer_without_a_result_is_told_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text("import sys; sys.exit('no GPU here')")
    assert gpu_speed.notebook(script, tmp_path, tmp_path, 1) == {"error": "no GPU here\n"}


def test_the_guide_tells_the_faults_that_were_counted() -> None:
    root = Path(gpu_speed.__file__).parents[1]
    counted = json.loads((root / "benchmarks" / "results" / "faults.json").read_text())
    assert counted["injected"] == counted["survived"] + counted["lost"]
    told = "{injected:,} faults were injected, {survived:,} survived and {lost:,} lost".format(**counted)
    assert told in " ".join((root / "docs" / "measured.md").read_text().split())
