"""An `ollama` on the PATH, the edge of the system: it keeps what it was called with, and does as it is told."""

import json
import os
import sys
from pathlib import Path

import pytest

_PROGRAM = """\
#!{python}
import json, os, sys, time
words = sys.argv[1:]
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(words) + "\\n")
does = {does!r}
sys.stderr.write("\\x1b[?25l\\x1b[1Gpulling \\x1b[K\\x1b[?25h\\n")
if words[0] == "create":
    assert os.path.isfile(words[3]), "the Modelfile is named"
    if does == "refuses":
        sys.exit("\\x1b[1GError: could not connect to\\x07 ollama server")
if words[0] == "run":
    if does == "hangs":
        time.sleep(600)
    asked = sys.stdin.read()  # as Ollama does where it has no terminal
    print("Arr!\\x1b[2J" + asked)
"""


def put_on_path(patch: pytest.MonkeyPatch, folder: Path, does: str) -> Path:
    """Put one into `folder` and that on the PATH; it `answers`, `refuses` or `hangs`. Returns where its calls are."""
    program, calls = folder / "ollama", folder / "calls.jsonl"
    program.write_text(_PROGRAM.format(python=sys.executable, calls=str(calls), does=does))
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def calls_in(path: Path) -> list[list[str]]:
    """The words that it was called with, call by call."""
    return [json.loads(line) for line in path.read_text().splitlines()]
