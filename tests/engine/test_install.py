"""What `make demo` installs on machines with other drivers: `nvidia-smi` and PyTorch's index are faked, and no more."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from install import PROJECT, constraints_beside, pinned

TORCH = pinned(PROJECT / "constraints.txt")["torch"]
TORCHVISION = pinned(PROJECT / "constraints.txt")["torchvision"]


class Index(SimpleHTTPRequestHandler):
    """PyTorch's index as pages in a folder."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("index")
    python, machine = f"cp{sys.version_info.major}{sys.version_info.minor}", os.uname().machine
    for tag in ("cpu", "cu126", "cu129"):
        (folder / tag / "torch").mkdir(parents=True)
        name = f"torch-{TORCH}%2B{tag}-{python}-{python}-manylinux_2_28_{machine}.whl"
        (folder / tag / "torch" / "index.html").write_text(f'<a href="/{name}">{name.replace("%2B", "+")}</a>\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def install(tmp_path: Path, says: str | None, *options: str, index: str = "http://127.0.0.1:9", status: int = 0) -> str:
    """What `install.py --dry-run` prints where `nvidia-smi` says this, or is missing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if says is not None:
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
        (programs / "nvidia-smi").chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TUITUNE_TORCH_INDEX": index,
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    command = [sys.executable, "install.py", "--dry-run", "--venv", str(tmp_path / "venv"), *options]
    ended = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def pip_of(output: str) -> list[str]:
    """The arguments of the last pip command, which installs tuitune."""
    return shlex.split(output.splitlines()[-1])


@pytest.mark.parametrize(
    ("says", "tag"),
    [
        ("525.60.13, 7.5", "cu126"),
        ("535.183.01, 9.0", "cu126"),
        ("550.54.15, 8.9", "cu126"),
        ("570.86.15, 9.0\n570.86.15, 9.0", "cu126"),
        ("570.86.15, 10.0", "cu129"),
        ("580.65.06, 7.0", "cu126"),
    ],
    ids=["525", "535", "550", "570", "570 with Blackwell", "580 with Volta"],
)
def test_an_older_driver_or_card_gets_a_build_of_torch_that_can_use_it(
    tmp_path: Path, index: str, says: str, tag: str
) -> None:
    output = install(tmp_path, says, index=index)
    command = pip_of(output)
    assert f"the {tag} build of torch is taken" in output
    assert command[command.index("--extra-index-url") + 1] == f"{index}/{tag}"
    assert f"torch=={TORCH}+{tag}" in command
    assert f"torchvision=={TORCHVISION}+{tag}" in command
    assert command[-1] == f"{PROJECT}[documents,gpu]"


def test_a_driver_for_cuda_13_gets_what_the_package_index_has(tmp_path: Path, index: str) -> None:
    output = install(tmp_path, "580.65.06, 9.0", index=index)
    assert "580.65.06 runs CUDA 13" in output
    assert "--extra-index-url" not in output
    assert pip_of(output)[-1] == f"{PROJECT}[documents,gpu]"


def test_without_a_gpu_torch_for_the_cpu_is_taken_where_it_can_be_had(tmp_path: Path, index: str) -> None:
    output = install(tmp_path, None, index=index)
    assert "finds no NVIDIA GPU" in output
    assert f"torch=={TORCH}+cpu" in pip_of(output)
    assert pip_of(output)[-1] == f"{PROJECT}[documents]"


@pytest.mark.parametrize(
    "says", [None, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."]
)
def test_where_only_the_package_index_is_reachable_its_own_torch_is_taken(tmp_path: Path, says: str | None) -> None:
    output = install(tmp_path, says, status=9)
    assert "the package index's own build" in output
    assert "torch==" not in output
    assert pip_of(output)[-1] == f"{PROJECT}[documents]"


def test_an_older_driver_whose_build_cannot_be_had_is_told_what_to_do(tmp_path: Path) -> None:
    output = install(tmp_path, "550.54.15, 9.0")
    assert "cannot use this GPU. Update the driver, or give a Python that has a CUDA build of torch" in output
    assert "torch==" not in output


def test_a_driver_that_no_torch_runs_on_trains_on_the_cpu(tmp_path: Path, index: str) -> None:
    output = install(tmp_path, "470.82.01, 7.5", index=index)
    assert "470.82.01 is too old" in output
    assert f"torch=={TORCH}+cpu" in pip_of(output)
    assert pip_of(output)[-1] == f"{PROJECT}[documents]"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python as rented images have it: with torch and torchvision of its own, and this torch computes on the GPU."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name, version in (("torch", "2.11.0+cu128"), ("torchvision", "0.26.0+cu128")):
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (packages / "torch.py").write_text(
        "class ones:\n    def __init__(self, *shape, device): pass\n    def sum(self): return self\n    item = sum\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(("says", "options"), [("550.54.15, 9.0", []), ("580.65.06, 9.0", ["--system"])])
def test_the_torch_of_an_image_is_used_where_no_build_can_be_had_or_its_python_was_named(
    tmp_path: Path, says: str, options: list[str]
) -> None:
    output = install(tmp_path, says, *options)
    assert "torch 2.11.0+cu128 of" in output
    assert "--system-site-packages" in output
    command = pip_of(output)
    assert command[command.index("--constraint") + 1] == str(tmp_path / "venv" / "constraints.txt")
    assert command[-1] == f"{PROJECT}[documents,gpu]"


def test_what_belongs_to_torch_is_pinned_as_the_image_has_it() -> None:
    constraints = constraints_beside({"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128"}).splitlines()
    assert "torch==2.11.0+cu128" in constraints
    assert f"torch=={TORCH}" not in constraints
    assert not [line for line in constraints if line.startswith("xformers==")]
    assert f"trl=={pinned(PROJECT / 'constraints.txt')['trl']}" in constraints


def test_a_named_python_without_a_torch_is_only_a_python(tmp_path: Path, index: str) -> None:
    output = install(tmp_path, "550.54.15, 9.0", "--system", index=index)
    assert "the cu126 build of torch is taken" in output
