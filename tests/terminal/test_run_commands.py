"""`tuitune runs` and what is done to runs from the command line."""

import csv
import io
import os
from pathlib import Path

import pytest

from tests.engine.records import plan, run, steps
from tests.terminal.terminal import ENTER, Terminal
from tests.terminal.test_commands import json_lines, tuitune
from tuitune.commands.runs import harmless_cell
from tuitune.runs.events import Evaluation, Finished, Started
from tuitune.runs.folder import Run, RunWriter
from tuitune.runs.manage import write_note


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, the newer one noted and trained at another rate."""
    folder = tmp_path / "runs"
    before, after = Evaluation(attempt=1, step=0, loss=3.1), Evaluation(attempt=1, step=3, loss=0.9)
    done = Finished(status="done", step=3, seconds=141.0, adapter=None)
    started = Started(run="older", attempt=1, pid=1)
    run(folder, "older", "some/model", 1_000, started, plan(), before, *steps(1, 2, 3), after, done)
    newer = run(folder, "newer", "some/model", 2_000, plan(), *steps(1, 2))
    recipe = newer.recipe()
    newer.keep_resolved(recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1e-4})}))
    write_note(newer, "=HYPERLINK(1)\x1b]52;c;ZXZpbA==\x07")
    return folder


def test_a_table_names_its_columns_and_harms_no_terminal(runs: Path) -> None:
    head, newer, older = tuitune("runs").stdout.splitlines()
    assert head.split()[:6] == ["run", "state", "model", "data", "method", "steps"]
    assert newer.startswith("newer  interrupted  model  pirate.jsonl  SFT QLoRA  2/60") and "\x1b" not in newer
    assert "3/60   3.100 → 0.900  2 min 21 s" in older
    (only,) = tuitune("runs", "PIRATE", "older").stdout.splitlines()[1:]
    assert only.startswith("older")
    assert "None of the 2 runs in" in tuitune("runs", "no such word").stdout
    assert "There is no run in" in tuitune("runs", "--runs", runs / "nowhere").stdout


def test_a_table_fits_its_terminal(runs: Path) -> None:
    os.rename(runs / "older", runs / f"older-{'x' * 70}")
    terminal = Terminal("runs")
    lines = [line for line in terminal.until("2 min 21 s").splitlines() if line]
    terminal.close()
    assert len(lines) == 3 and "held-out loss" in lines[0] and "…" in lines[2] and "2 min 21 s" in lines[2], lines


def test_csv_is_read_back_and_computes_nothing(runs: Path) -> None:
    newer, older = csv.DictReader(io.StringIO(tuitune("runs", "--csv").stdout))
    assert (older["run"], older["status"], older["held_out"], older["seconds"]) == ("older", "done", "0.9", "141.0")
    assert newer["note"].startswith("'=HYPERLINK(1)␛") and newer["held_out"] == ""
    refused = tuitune("runs", "--csv", "--json")
    assert refused.returncode == 2 and "not allowed with" in refused.stderr


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "|calc", "%0A", " =1", "\x00=1"])
def test_a_cell_that_could_be_a_formula_is_text(text: str) -> None:
    assert harmless_cell(text)[0] not in "=+-@\t\r|%"
    assert harmless_cell("a=1") == "a=1" and harmless_cell(-1.5) == -1.5


def test_a_run_is_renamed_noted_and_compared(runs: Path) -> None:
    assert tuitune("rename", "older", "baseline").stdout == "Run older is now baseline.\n"
    assert tuitune("note", "baseline", "the usual rate").returncode == 0
    assert tuitune("note", "baseline").stdout == "the usual rate\n"
    shown = tuitune("compare", "baseline", "newer").stdout
    assert "train.learning_rate  0.0002" in shown and "0.0001" in shown and "3.100 → 0.900" in shown
    (told,) = json_lines(tuitune("compare", "baseline", "newer", "--json").stdout)
    assert told["differences"] == {"train.learning_rate": ["0.0002", "0.0001"]} and told["not_comparable"] is None
    assert [run["run"] for run in told["runs"]] == ["baseline", "newer"]
    alone = tuitune("compare", "newer", runs / "newer")
    assert alone.returncode == 2 and "two runs or more" in alone.stderr


def test_deleting_asks_and_refuses_a_live_run(runs: Path) -> None:
    unasked = tuitune("delete", "older")
    assert unasked.returncode == 2 and "--yes" in unasked.stderr and (runs / "older").is_dir()
    terminal = Terminal("delete", "older")
    terminal.until("[y/N]")
    terminal.press(ENTER)
    terminal.until("Nothing is deleted.")
    terminal.close()
    assert (runs / "older").is_dir()
    writer = RunWriter(Run(runs / "older"))
    live = tuitune("delete", "older", "--yes")
    assert live.returncode == 1 and "in use" in live.stderr
    writer.close()
    assert tuitune("delete", "older", "--yes").stdout == "Run older is deleted.\n"
    assert [path.name for path in runs.iterdir()] == ["newer"]
