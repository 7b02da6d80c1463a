"""`tuitune export`: what `--check` says before, and how a copy of what was made is checked."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.engine.training import trained
from tests.terminal.terminal import write_recipe
from tests.terminal.test_commands import json_lines, tuitune
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step; no test changes it."""
    recipe = Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False},
            "data": {"path": str(DEMO / "pirate.jsonl"), "max_length": 64},
            "train": {"max_steps": 1, "gradient_accumulation_steps": 1},
        }
    )
    return trained(recipe, tmp_path_factory.mktemp("runs"), "one")[0]


@pytest.fixture
def run(trained_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained_run.folder, tmp_path / "runs" / "one")
    return Run(tmp_path / "runs" / "one")


def damage(file: Path) -> None:
    """Flip a bit of the last byte."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


KINDS = ("--to", "adapter", "--to", "merged_16bit")


def test_a_check_says_what_each_kind_takes_before_and_after_one_was_made_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of a user who has exported nothing yet
    check = ("export", "one", "--check", "--out", tmp_path / "out", *KINDS)
    size = r"\d+\.\d [KM]iB"
    told = tuitune(*check)
    assert told.returncode == 0 and not told.stderr
    adapter, merged = told.stdout.splitlines()
    unmeasured = r"over \d+ s \(writing alone: none like it made here\)"
    assert re.fullmatch(rf"adapter ✔ Takes {unmeasured}, {size} on the disk while it is made\. \({size}\)", adapter)
    disk_and_memory = rf"{size} on the disk while it is made, and {size} of memory\."
    assert re.fullmatch(rf"merged_16bit ✔ Takes {unmeasured}, {disk_and_memory} \({size}\)", merged)
    assert not (tmp_path / "out").exists(), "only looked at"

    assert tuitune("export", "one", "--out", tmp_path / "out", "--to", "adapter").returncode == 0
    adapter, merged = tuitune(*check).stdout.splitlines()
    assert re.match(r"adapter ✔ Takes about \d+ s, ", adapter) and re.search(unmeasured, merged)


@pytest.mark.cold
def test_an_audit_and_an_export_start_as_a_user_starts_them(run: Run, tmp_path: Path) -> None:
    (report,) = json_lines(tuitune("audit", write_recipe(tmp_path, run.recipe().to_yaml()), "--json").stdout)
    assert report["rows"] == 400 and report["used"] > 0
    (exported,) = json_lines(tuitune("export", "one", "--to", "adapter", "--json", "--out", tmp_path / "out").stdout)
    assert [Path(made["path"]) for made in exported["exports"]] == [tmp_path / "out" / "adapter"]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_check_says_what_is_damaged_as_an_export_would(run: Run, tmp_path: Path) -> None:
    damage(run.adapter / "adapter_model.safetensors")
    problem = f"The adapter in {run.adapter} is not what training saved (adapter_model.safetensors has changed since)"
    told = tuitune("export", "one", "--check", *KINDS)
    assert told.returncode == 1 and not told.stderr
    for line, kind in zip(told.stdout.splitlines(), KINDS[1::2], strict=True):
        assert line.startswith(f"{kind} ✘ {problem}: bring it back from a copy, or delete its manifest.json")
    (report,) = json_lines(tuitune("export", "one", "--check", "--json", *KINDS).stdout)
    assert [kind["ready"] for kind in report["kinds"]] == [False, False]
    refused = tuitune("export", "one", "--to", "adapter")
    assert refused.returncode == 2 and problem in refused.stderr

    (run.adapter / "adapter_model.safetensors").unlink()
    told = tuitune("export", "one", "--check", "--to", "adapter")
    assert told.returncode == 1 and "adapter ✘ " in told.stdout and "holds no adapter" in told.stdout


def test_the_line_that_checks_a_copy_tells_a_good_one_from_a_damaged_one(run: Run, tmp_path: Path) -> None:
    made = tuitune("export", "one", "--to", "adapter", "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    line = next(line.strip() for line in made.stdout.splitlines() if "sha256sum" in line)
    there = tmp_path / "there"
    shutil.copytree(tmp_path / "out" / "adapter", there / "adapter")

    def check() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"LC_ALL": "C"}
        command = ["bash", "-c", line]
        return subprocess.run(command, cwd=there, env=environment, check=False, capture_output=True, text=True)

    good = check()
    assert good.returncode == 0 and "adapter_model.safetensors: OK" in good.stdout
    damage(there / "adapter" / "adapter_model.safetensors")
    damaged = check()
    assert damaged.returncode != 0 and "adapter_model.safetensors: FAILED" in damaged.stdout
