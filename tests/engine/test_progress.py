"""Weights that are downloaded and loaded are told as numbers, and nothing is drawn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.engine.hub_server import hub_server
from tuitune import backends
from tuitune.backends.progress import weights_loading
from tuitune.recipe import Recipe

Told = list[tuple[str, int, int]]

LOAD_TWICE = """
import json
from tuitune import backends
from tuitune.recipe import Recipe

recipe = Recipe.from_data({"model": {"name": "sea/demo", "backend": "transformers"}, "data": {"path": "unused.jsonl"}})
first, second = [], []
for told in (first, second):
    backends.load(recipe, print, lambda *what: told.append(what))
print(json.dumps([first, second]))
"""


def test_loading_tells_how_many_weights_are_there(capfd: pytest.CaptureFixture[str]) -> None:
    told: Told = []
    recipe = Recipe.from_data(
        {"model": {"name": str(DEMO / "demo_model"), "backend": "transformers"}, "data": {"path": "unused.jsonl"}}
    )
    backends.load(recipe, lambda text: None, lambda text, done, total: told.append((text, done, total)))
    total = told[0][2]
    assert total > 40
    assert told[0] == ("Loading the model's weights", 0, total)
    assert told[-1] == ("Loading the model's weights", total, total)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert "it/s" not in "".join(capfd.readouterr())


def test_bars_of_others_are_left_as_they_were() -> None:
    from transformers.utils import logging

    with weights_loading(lambda *_: None):
        pass
    assert logging.set_tqdm_hook(None) is None


def test_a_download_tells_how_far_it_is(tmp_path: Path) -> None:
    """In a process of its own, whose Hub the environment names; nothing is drawn there either."""
    with hub_server() as hub:
        hub.repositories["models/sea/demo"] = {"main": DEMO / "demo_model"}
        command = [sys.executable, "-c", LOAD_TWICE]
        environment = os.environ | hub.environment(tmp_path)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "it/s" not in done.stderr and "B/s" not in done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    size = (DEMO / "demo_model" / "model.safetensors").stat().st_size // 10**6
    downloads = [(done, total) for text, done, total in first if text == "Downloading the model (MB)"]
    assert size <= downloads[-1][0] == downloads[-1][1] <= size + 2
    assert downloads == sorted(downloads)
    assert first[-1][0] == "Loading the model's weights"
    assert {text for text, _, _ in second} == {"Loading the model's weights"}, "it is there already"
