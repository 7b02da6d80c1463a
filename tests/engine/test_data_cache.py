"""Tokenised rows stay on disk while a process uses them, and go when nobody does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.forking import run_forked
from tuitune.audit.scan import audit
from tuitune.data.cache import KEPT
from tuitune.data.prepare import prepare
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe

PREPARE = """
import os, signal, sys
from tuitune.data.prepare import prepare
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe

def in_the_middle(done, total):
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("in the middle", flush=True)
    sys.stdin.readline()

recipe = Recipe.load(sys.argv[1])
print(len(prepare(recipe, load_tokenizer(recipe.model), in_the_middle).train))
"""


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuitune" / "tokenised"


def rows(path: Path, count: int = 4) -> Path:
    pairs = [{"question": f"{path.stem} asks {n}", "answer": f"Say {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def recipe(path: Path, **fields: Any) -> Recipe:
    return Recipe.from_data({"model": {"name": str(DEMO / "demo_model")}, "data": {"path": str(path), **fields}})


def test_a_mix_of_more_datasets_than_are_kept_is_prepared(tmp_path: Path, entries: Path) -> None:
    also = [{"path": str(rows(tmp_path / f"part{n}.jsonl"))} for n in range(KEPT + 2)]
    mix = recipe(rows(tmp_path / "first.jsonl"), also=also, eval_path=str(rows(tmp_path / "measured.jsonl")))
    tokenizer = load_tokenizer(mix.model)
    prepared = prepare(mix, tokenizer)
    assert len(prepared.train) == 4 * (KEPT + 3) and len(prepared.eval) == 4
    assert audit(mix, tokenizer).used == 4 * (KEPT + 3)
    # What nobody uses any more is deleted again, the least recently used first.
    del prepared
    prepare(recipe(rows(tmp_path / "another.jsonl")), tokenizer)
    assert len(os.listdir(entries)) == KEPT


@pytest.mark.fault
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, entries: Path) -> None:
    file = tmp_path / "recipe.yaml"
    chosen = recipe(rows(tmp_path / "rows.jsonl", 600))
    file.write_text(chosen.to_yaml())
    tokenizer = load_tokenizer(chosen.model)
    command = [sys.executable, "-P", "-c", PREPARE, str(file), "killed"]
    killed = run_forked(command, cwd=tmp_path, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert [entry.name.startswith(".making-") for entry in entries.iterdir()] == [True]
    prepare(recipe(rows(tmp_path / "other.jsonl")), tokenizer)
    assert not list(entries.glob(".making-*"))


def test_what_another_process_is_making_is_left_alone(tmp_path: Path, entries: Path) -> None:
    file = tmp_path / "recipe.yaml"
    chosen = recipe(rows(tmp_path / "rows.jsonl", 600))
    file.write_text(chosen.to_yaml())
    tokenizer = load_tokenizer(chosen.model)
    command = [sys.executable, "-P", "-c", PREPARE, str(file), "waiting"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdin
        assert child.stdout.readline() == "in the middle\n"
        prepare(recipe(rows(tmp_path / "other.jsonl")), tokenizer)
        assert len(list(entries.glob(".making-*"))) == 1
        said, _ = child.communicate("\n" * 9)
    assert child.returncode == 0 and said.splitlines()[-1] == "600"
    assert len(os.listdir(entries)) == 2
