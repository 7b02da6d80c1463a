"""Shell completion and the examples in `--help`, both held against the parsers."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tuitune.commands.examples import EXAMPLES
from tuitune.commands.parser import _commands, run_command

_ASK = """
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_tuitune
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completions(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    assert run_command(["completion", "bash"]) == 0
    (tmp_path / "tuitune.bash").write_text(capsys.readouterr().out)
    answer = subprocess.run(
        ["bash", "-c", _ASK, "bash", str(tmp_path / "tuitune.bash"), *words],
        env={**os.environ, "TUITUNE_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=True,
    )
    return {word.strip() for word in answer.stdout.split()}


def test_bash_completes_commands_options_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").touch()
    (tmp_path / "runs" / ".partial").mkdir()
    assert completions(tmp_path, capsys, "tuitune", "exp") == {"export"}
    assert completions(tmp_path, capsys, "tuitune", "chat", "--pro") == {"--prompt"}
    assert completions(tmp_path, capsys, "tuitune", "chat", "") == {"first", "second"}
    assert completions(tmp_path, capsys, "tuitune", "completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in _commands())


@pytest.mark.parametrize("name", _commands())
def test_every_example_in_the_help_is_a_line_that_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = _commands().parser(name)
    for line, _ in EXAMPLES[name]:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["tuitune", name]
        parser.parse_args(words[2:])
        assert line in parser.format_help()
