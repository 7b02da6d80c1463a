"""What the demo's promise rests on: a model that is right and has no style, and data that asks for no more.

That the demo keeps it is tested in a terminal (`tests/terminal/test_walk.py`).
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from sample_data.making.pirate import rows
from sample_data.making.probe import (
    DEMO_MODEL,
    has_style,
    is_right,
    load,
    probe_items,
    replies_of,
    style_items,
)
from tests.command import COMMAND
from tests.conftest import DEMO
from tuitune.data import open_dataset
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run


def test_the_base_model_knows_its_world_in_4_bit_and_has_no_style() -> None:
    model, tokenizer = load(DEMO_MODEL, load_in_4bit=True)
    items = probe_items(120, seed=5)
    replies = replies_of(model, tokenizer, items)
    assert sum(is_right(item, reply) for item, reply in zip(items, replies, strict=True)) >= 0.95 * len(items)
    assert not any(has_style(reply) for reply in replies)


def test_no_held_out_prompt_is_in_the_data() -> None:
    asked = {message["content"] for messages in rows() for message in messages if message["role"] == "user"}
    assert not asked & {item.messages[-1]["content"] for item in style_items(200)}


def test_the_demo_is_whole_wherever_it_is_copied(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    recipe = Recipe.load(tmp_path / "demo" / "demo.yaml")
    assert recipe.model.name == str(tmp_path / "demo" / "demo_model")
    assert len(open_dataset(recipe.data)) == 400
    size = sum(file.stat().st_size for file in (DEMO / "demo_model").iterdir())
    assert size <= 12_000_000


def test_the_demo_of_pairs_learns_which_manner_is_preferred(tmp_path: Path) -> None:
    command = [*COMMAND, "demo", "--method", "dpo"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout and "before" in done.stdout and "everything is in" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    before, after = (Run(folder).history().evaluations[place] for place in (0, -1))
    assert before.metrics["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert after.metrics["rewards/accuracies"] >= 0.9 and after.metrics["rewards/margins"] > 0.3
