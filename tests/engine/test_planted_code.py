"""Code that lies in the working folder is never run: no child process looks for modules there."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tuitune
from tuitune.data.columnar import columnar_records
from tuitune.data.container import Container
from tuitune.errors import TuituneError
from tuitune.export import llama_cpp
from tuitune.recipe import Recipe
from tuitune.session.client import Session
from tuitune.session.preparing_requests import Estimate

NAMES = ("tuitune", "pynvml", "random", "types", "queue", "datasets", "pyarrow", "torch", "bitsandbytes", "pip", "rich")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that leave a file named after them when they are imported."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran-')!r} + {name!r}, 'w').close()\nraise SystemExit\n"
        )
    monkeypatch.chdir(folder)
    return folder


def ran(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("ran-*"))


async def test_a_session_runs_none_of_it(planted: Path, demo_recipe: Recipe) -> None:
    session = await Session.start()
    assert await session.call(Estimate(demo_recipe.model_dump(mode="json")))  # after the libraries' import
    await session.close()
    assert ran(planted) == []


def test_the_reader_of_columnar_files_runs_none_of_it(planted: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), planted / "rows.parquet")
    (record,) = columnar_records(Container(planted / "rows.parquet", "parquet", None))
    assert record.value == {"prompt": "a", "completion": "b"}
    assert ran(planted) == []


def test_the_doctor_runs_none_of_it(planted: Path) -> None:
    command = [str(Path(sys.executable).with_name("tuitune")), "doctor", "--json"]
    done = subprocess.run(command, cwd=planted, capture_output=True, text=True, check=False)
    assert '"name": "PyTorch", "status": "ok"' in done.stdout, done.stderr
    assert ran(planted) == []


def test_a_download_runs_none_of_it(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(TuituneError, match="could not be downloaded"):
        llama_cpp._download(planted, progress=lambda done, total: None, cancelled=lambda: False)
    assert ran(planted) == []


def test_every_python_child_is_kept_from_its_working_folder() -> None:
    package = Path(tuitune.__file__).parent
    children = []
    for file in sorted([*package.rglob("*.py"), *(package.parent / "screens").rglob("*.py")]):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        calls = (node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "shlex.join")
        lines_for_the_user = {id(argument) for call in calls for argument in call.args}
        for node in nodes:
            if id(node) in lines_for_the_user or not isinstance(node, ast.List) or not node.elts:
                continue
            if ast.unparse(node.elts[0]) == "sys.executable":
                children.append((os.path.relpath(file, package), ast.unparse(node.elts[1])))
    assert len(children) >= 5 and {argument for _, argument in children} <= {"'-P'", "'-I'"}, children
