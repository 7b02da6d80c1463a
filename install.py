"""Install tuitune and its libraries into a virtual environment, with the build of torch that fits the GPU's driver.

    python3 install.py [--venv .venv] [--system] [--dry-run]

It needs nothing but Python 3.11. `make demo` and `make test` call it.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from tuitune.machine.torch_build import TorchBuild, choose_build, visible_card

PROJECT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
# What belongs to a torch, and so comes from where it does.
_WITH_TORCH = ("torch", "torchvision", "triton", "torchao", "xformers")
_INSTALLED = """
import json
from importlib.metadata import version, PackageNotFoundError
import torch
torch.ones(8, device="cuda").sum().item()
found = {}
for name in %r:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def pinned(constraints: Path) -> dict[str, str]:
    """The versions in a constraints file, by name."""
    lines = (line.strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def usable_torch(python: str) -> dict[str, str] | None:
    """The versions of torch and what belongs to it, where the torch of `python` computes on the GPU; else None."""
    ended = subprocess.run(
        [python, "-P", "-c", _INSTALLED % (_WITH_TORCH,)], capture_output=True, text=True, timeout=300, check=False
    )
    if ended.returncode != 0 or not ended.stdout.strip():
        return None
    found: dict[str, str] = json.loads(ended.stdout.strip().splitlines()[-1])
    release = tuple(int(part) for part in found["torch"].split("+")[0].split(".")[:2] if part.isdigit())
    return found if release >= OLDEST_TORCH and "torchvision" in found else None


def commands(venv: Path, build: TorchBuild, installed: dict[str, str] | None) -> list[list[str]]:
    """What is run, in order. `installed` are versions of the system's Python that are used instead of a build."""
    constraints = PROJECT / "constraints.txt"
    versions = pinned(constraints)
    if installed is not None:
        constraints = venv / "constraints.txt"
    python = str(venv / "bin" / "python")
    extras = "documents,gpu" if build.uses_gpu or installed is not None else "documents"
    pip = [python, "-m", "pip", "install", "--quiet"]
    requirements = [] if installed is not None else build.requirements(versions["torch"], versions["torchvision"])
    options = [] if installed is not None else build.options()
    return [
        [sys.executable, "-m", "venv", *(["--system-site-packages"] if installed is not None else []), str(venv)],
        [*pip, "--upgrade", "pip>=25.1"],
        [*pip, "--constraint", str(constraints), *options, *requirements, "--editable", f"{PROJECT}[{extras}]"],
    ]


def constraints_beside(installed: dict[str, str]) -> str:
    """The pinned versions as a constraints file, with the system's own for torch and what belongs to it."""
    versions = {
        name: version for name, version in pinned(PROJECT / "constraints.txt").items() if name not in _WITH_TORCH
    }
    return "".join(f"{name}=={version}\n" for name, version in {**versions, **installed}.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=PROJECT / ".venv", metavar="DIR", help="where to (default: .venv)")
    parser.add_argument(
        "--system", action="store_true", help="take this Python's own torch where it computes on the GPU, whatever fits"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    arguments = parser.parse_args()
    card = visible_card()
    build = choose_build(card, pinned(PROJECT / "constraints.txt")["torch"])
    gpu_is_lost = card is not None and not build.uses_gpu
    installed = usable_torch(sys.executable) if card is not None and (arguments.system or gpu_is_lost) else None
    if installed is not None:
        print(f"torch {installed['torch']} of {sys.executable} computes on the GPU: it is used as it is.", flush=True)
    else:
        print(build.reason, flush=True)
    print(f"Installing tuitune and its libraries into {arguments.venv}; this takes a few minutes once.", flush=True)
    for command in commands(arguments.venv, build, installed):
        if arguments.dry_run:
            print(shlex.join(command))
            continue
        if "--constraint" in command and installed is not None:
            (arguments.venv / "constraints.txt").write_text(constraints_beside(installed), encoding="utf-8")
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            print(f"This failed with status {status}: {shlex.join(command)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
