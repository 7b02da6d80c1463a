"""What the package never does, read from its code: no shell, no unpickling, no remote code, no listener unasked."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuitune

ROOT = Path(tuitune.__file__).parents[1]
FILES = sorted(file for package in ("tuitune", "screens") for file in (ROOT / package).rglob("*.py"))

SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
CODE = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open"}
CODE |= {"torch.load", "yaml.unsafe_load", "yaml.full_load", "dill.load", "joblib.load", "numpy.load", "np.load"}
LISTENERS = {"asyncio.start_server", "socketserver.TCPServer", "http.server.HTTPServer", "socket.create_server"}
DOWNLOADS_CODE = {"from_pretrained", "from_config"}
RUNS_CODE_OF_THE_USER = {"tuitune/rewards/lockdown.py", "tuitune/rewards/worker.py"}
"""Processes of their own that run a reward which the user has confirmed, or unit tests where they were asked for."""
LISTENS_TO_HOSTS = "tuitune/session/hosts.py"
"""Where `--rdzv` names an address of this host's own, and nowhere else: hosts meet there that train one run."""
WITHOUT_REMOTE_CODE = {"PeftModel", "GenerationConfig"}
"""Classes whose `from_pretrained` knows no code of a repository's."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def named(call: ast.Call) -> str:
    return ast.unparse(call.func)


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(argument.value) for argument in call.keywords if argument.arg == name), None)


@pytest.mark.parametrize("forbidden", [SHELLS, CODE, LISTENERS], ids=["shell", "code", "listener"])
def test_it_calls_none_of_these(forbidden: set[str]) -> None:
    assert len(FILES) > 100
    forbidden_calls = [(where, named(call)) for where, call in calls() if named(call) in forbidden]
    elsewhere = [
        (where, name) for where, name in forbidden_calls if where.partition(":")[0] not in RUNS_CODE_OF_THE_USER
    ]
    expected = ["socket.create_server"] if forbidden == LISTENERS else []
    assert [name for where, name in elsewhere if where.startswith(LISTENS_TO_HOSTS)] == expected
    assert [where for where, _ in elsewhere if not where.startswith(LISTENS_TO_HOSTS)] == []


def test_yaml_makes_no_objects() -> None:
    assert all(keyword(call, "Loader") for _, call in calls() if named(call) == "yaml.load")
    named_loaders = set(re.findall(r"\byaml\.(\w*Loader)\b", "".join(file.read_text() for file in FILES)))
    assert named_loaders <= {"SafeLoader", "CSafeLoader"}


def test_no_command_goes_through_a_shell() -> None:
    assert [where for where, call in calls() if keyword(call, "shell") not in (None, "False")] == []


def test_no_model_brings_its_code() -> None:
    """Wherever a model, tokenizer or configuration is opened it is said that code of a repository is off."""
    loads = [(where, call) for where, call in calls() if named(call).rpartition(".")[2] in DOWNLOADS_CODE]
    unsaid = [
        (where, ast.unparse(call.func))
        for where, call in loads
        if keyword(call, "trust_remote_code") != "False" and named(call).partition(".")[0] not in WITHOUT_REMOTE_CODE
    ]
    assert len(loads) >= 8 and unsaid == []
