"""On a GPU: two processes that share the frozen weights train what two that hold them whole do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.card import require_card
from tuitune.machine.cards import STAND_INS

pytestmark = pytest.mark.gpu
require_card(unsloth=False)

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"


@pytest.mark.parametrize("in_4bit", [True, False])
def test_two_that_share_the_weights_train_what_two_with_whole_ones_do(tmp_path: Path, in_4bit: bool) -> None:
    """Both processes on the one card; with held-out rows and replies, before and after."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {SAMPLE_DATA / 'demo_model'}, backend: transformers, load_in_4bit: {str(in_4bit).lower()}}}\n"
        f"data: {{path: {SAMPLE_DATA / 'pirate.jsonl'}, eval_share: 0.02}}\n"
        "train: {max_steps: 12, learning_rate: 2.0e-3, eval_steps: 0, fit: false, gradient_checkpointing: true}\n"
        "samples: {prompts: [Who are you?], max_new_tokens: 12}\n"
    )

    def events_of(shard: bool) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "tuitune", "run", str(recipe), "--runs", str(tmp_path), "--json"]
        command += ["--name", f"shard-{shard}", "--gpus", "all", "--set", f"train.shard={str(shard).lower()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, STAND_INS: "2"})
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    whole, shared = events_of(False), events_of(True)
    assert any("share the frozen weights" in event["text"] for event in shared if event["event"] == "notice")
    assert not any("share the frozen weights" in event["text"] for event in whole if event["event"] == "notice")
    for kind in ("step", "evaluation"):
        expected, told = ([event["loss"] for event in events if event["event"] == kind] for events in (whole, shared))
        assert len(told) == len(expected) > 1
        assert told == pytest.approx(expected, abs=5e-3), kind
    replies = [[event["reply"] for event in events if event["event"] == "reply"] for events in (whole, shared)]
    assert replies[0][0] == replies[1][0] and len(replies[0]) == len(replies[1]) == 2
