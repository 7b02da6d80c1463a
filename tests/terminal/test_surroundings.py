"""The commands where something is missing or odd: a home, standard streams, an encoding, a terminal's size."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import COMMAND
from tests.terminal.terminal import Terminal, write_recipe
from tuitune.recipe import Recipe
from tuitune.runs.folder import find_run


def tuitune(*arguments: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell with redirections, and changes to the environment.

    What is redirected is started as users start it: nothing may come before it that opens a file.
    """
    command = shlex.join([*((sys.executable, "-m", "tuitune") if redirected else COMMAND), *arguments])
    return subprocess.run(
        ["bash", "-c", f"{command} {redirected}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recipe_file(tmp_path: Path, demo_recipe: Recipe) -> str:
    return write_recipe(tmp_path, demo_recipe.to_yaml())


def test_what_the_output_cannot_hold_is_a_question_mark(recipe_file: str) -> None:
    shown = tuitune("inspect", recipe_file, "--rows", "1:1", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "tokens trained\n" in shown.stdout and "<|im_end|>?" in shown.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_as_one_to_nowhere(closed: str) -> None:
    listed = tuitune("runs", redirected=closed)
    assert (listed.returncode, listed.stderr) == (0, "")
    refused = tuitune("run", "none.yaml", redirected=closed)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


def test_without_standard_input_there_is_no_prompt(tmp_path: Path, demo_recipe: Recipe) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text(demo_recipe.to_yaml())
    asked = tuitune("chat", "mine", redirected="<&-")
    assert asked.returncode == 2 and asked.stderr.startswith("tuitune: The prompt is empty")


def test_the_app_has_the_terminals_size_and_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "15")
    app = Terminal()
    app.until("Try the demo")
    app.resize(70, 24)
    app.until("This terminal has 70×24.")
    app.press("\x11")
    assert app.exit_status() == 0


@pytest.mark.parametrize("size", ["0", "-3", "wide"])
def test_a_size_of_nothing_in_the_environment_is_forgotten(
    size: str, recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tuitune("inspect", recipe_file, "--rows", "1:1", COLUMNS=size, LINES=size)
    assert shown.returncode == 0 and "tokens trained" in shown.stdout
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    app = Terminal()
    app.until("Try the demo")
    app.press("\x11")
    assert app.exit_status() == 0


def test_without_a_home_it_is_said_what_to_set(tmp_path: Path) -> None:
    unknown = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if subprocess.run([*unknown, "true"], capture_output=True, check=False).returncode:
        pytest.skip("an unknown user can be had only with the right to")
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    command = [*unknown, sys.executable, "-m", "tuitune"]
    version = subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert version.returncode == 0
    listed = subprocess.run(
        [*command, "runs"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 2 and listed.stderr.startswith("tuitune: There is no home folder: HOME is not set")
    assert not (tmp_path / "~").exists()


def test_where_everybody_may_write_only_the_owner_does(tmp_path: Path, recipe_file: str) -> None:
    before = os.umask(0)
    try:
        ended = tuitune("estimate", recipe_file, XDG_CACHE_HOME=str(tmp_path / "made" / "cache"))
    finally:
        os.umask(before)
    assert ended.returncode == 0, ended.stderr
    files = [tmp_path / "made", *(tmp_path / "made").rglob("*")]
    assert len(files) > 3 and not [file for file in files if file.stat().st_mode & 0o022]


@pytest.mark.fault
def test_a_session_that_is_killed_is_told_in_one_sentence(recipe_file: str, tmp_path: Path) -> None:
    command = [*COMMAND, "run", recipe_file, "--name", "dead", "--set", "max_steps=5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            break
    run = find_run("dead", tmp_path / "runs")
    os.kill(json.loads(run.socket_file.read_text())["pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in said
    (ending,) = (line for line in said.splitlines() if "answer" not in line)  # which a busy machine may delay
    assert "was killed by signal 9 (often: memory ran out); its log is " in ending and str(run.log_file) in ending
    shown = tuitune("attach", "dead")
    assert shown.returncode == 1 and shown.stderr == ""
    assert "Run dead: its session ended before the run did" in shown.stdout
