"""What makes the libraries' import quicker, on packages that look like them."""

import subprocess
import sys
from pathlib import Path

UNSLOTH = {
    "unsloth/__init__.py": "from unsloth.models import rl\nrl.PatchFastRL()\n",
    "unsloth/models/__init__.py": "",
    "unsloth/models/rl.py": (
        "rewritten = []\n"
        "def _patch_trl_rl_trainers(name):\n    rewritten.append(name)\n"
        "def patch_trl_rl_trainers():\n    [_patch_trl_rl_trainers(n) for n in ('dpo_trainer', 'sft_trainer')]\n"
        "def PatchFastRL():\n    patch_trl_rl_trainers()\n"
    ),
}


def python(folder: Path, code: str, *, bytecode: bool = True) -> str:
    """What `code` prints in a fresh interpreter that finds the packages of `folder` first."""
    environment = {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}", "PATH": ""}
    if not bytecode:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return ended.stdout.strip()


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


ONE = "import sys; from tuitune.machine.quick_import import OneTrainer; sys.meta_path.insert(0, OneTrainer())\n"


def test_only_the_trainer_in_use_is_rewritten(tmp_path: Path) -> None:
    package(tmp_path, UNSLOTH)
    assert python(tmp_path, "import unsloth; print(unsloth.rl.rewritten)") == "['dpo_trainer', 'sft_trainer']"
    assert python(tmp_path, ONE + "import unsloth; print(unsloth.rl.rewritten)") == "['sft_trainer']"


def test_an_unsloth_that_is_made_otherwise_is_left_alone(tmp_path: Path) -> None:
    other = {**UNSLOTH, "unsloth/models/rl.py": "rewritten = 'all'\ndef PatchFastRL():\n    pass\n"}
    package(tmp_path, other)
    assert python(tmp_path, ONE + "import unsloth; print(unsloth.rl.rewritten)") == "all"


KEEP = (
    "import sys; from pathlib import Path; from tuitune.machine.quick_import import keep_bytecode\n"
    "keep_bytecode(Path({folder!r})); import transformers; print(sys.pycache_prefix)"
)


def test_bytecode_is_kept_where_python_was_told_to_write_none(tmp_path: Path) -> None:
    libraries = package(
        tmp_path / "site", {f"{name}/__init__.py": "value = 1\n" for name in ("torch", "transformers", "unsloth")}
    )
    cache = tmp_path / "cache"
    assert python(libraries, KEEP.format(folder=str(cache))) == "None"  # Python writes it beside the libraries
    for compiled in libraries.rglob("*.pyc"):
        compiled.unlink()
    assert python(libraries, KEEP.format(folder=str(cache)), bytecode=False) == str(cache)
    assert [file.name for file in cache.rglob("transformers/*.pyc")]


def test_what_is_compiled_imports_the_compiler_when_it_is_called() -> None:
    code = (
        "import sys, torch; from tuitune.machine.quick_import import compiled_when_called\n"
        "now = torch.compile\n"
        "with compiled_when_called():\n"
        "    import bitsandbytes\n"
        "    doubled = torch.compile(backend='eager', dynamic=False)(lambda x: 2 * x)\n"
        "print('torch._inductor.compile_fx' in sys.modules, 'torch._dynamo' in sys.modules, torch.compile is now)\n"
        "print(doubled(torch.ones(2)).tolist(), 'torch._dynamo' in sys.modules)\n"
    )
    libraries = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert libraries.stdout.splitlines()[-2:] == ["False False True", "[2.0, 2.0] True"]
