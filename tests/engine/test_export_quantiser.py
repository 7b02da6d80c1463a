"""The types of GGUF that xllamacpp's kernels do not mix are written by a llama-quantize of the user's own."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.engine.exporting import export, moved_run
from tuitune.errors import TuituneError
from tuitune.export import llama_cpp
from tuitune.export.kinds import require_known
from tuitune.export.needs import preflight_with_hub
from tuitune.runs.folder import Run

_PROGRAM = """\
#!{python}
import os, signal, sys
source, made, kind = sys.argv[1:]
print("[   1/  48] token_embd.weight", flush=True)
if {does!r} == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if {does!r} == "refuses":
    sys.exit("main: failed to quantize model: this type needs an importance matrix")
from gguf import GGMLQuantizationType
from tuitune.export import quantise
quantise.DEFAULT_TYPES[kind.lower()] = GGMLQuantizationType[kind]
quantise.quantise({kernels!r}, source, made, kind.lower())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def out(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the merged model, from which every GGUF of the run is made."""
    out = tmp_path_factory.mktemp("out")
    export(run, ["merged_16bit"], out, lambda *_: None, lambda question: True, lambda: False)
    return out


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Names a folder of llama.cpp's sources, in which a llama-quantize was built that does what it is told."""
    converter, kernels = llama_cpp.find(), llama_cpp.kernels()
    if converter is None or kernels is None:
        pytest.skip("llama.cpp's converter and kernels are not here")

    def build(does: str) -> Path:
        folder = tmp_path / "llama.cpp"
        (folder / "build" / "bin").mkdir(parents=True)
        for path in converter.iterdir():
            (folder / path.name).symlink_to(path)
        program = folder / "build" / "bin" / "llama-quantize"
        program.write_text(_PROGRAM.format(python=sys.executable, does=does, kernels=str(kernels)))
        program.chmod(0o755)
        monkeypatch.setenv(llama_cpp.VARIABLE, str(folder))
        monkeypatch.setenv("PATH", os.defpath)
        return program

    return build


def make(run: Run, kind: str, out: Path, cancelled: Callable[[], bool] = lambda: False) -> Path:
    (exported,) = export(run, [kind], out, lambda *_: None, lambda question: True, cancelled)
    return exported.path


def test_a_program_in_the_folder_that_is_named_writes_what_the_kernels_do_not(
    run: Run, out: Path, sources: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = preflight_with_hub(run, None, out, require_known(["gguf:q2_k"]))
    assert before.missing and "needs llama.cpp's llama-quantize, which is not on this machine" in before.missing
    program = sources("works")
    assert llama_cpp.quantiser() == program
    (ready,) = preflight_with_hub(run, None, out, require_known(["gguf:q2_k"]))
    assert ready.ready
    path = make(run, "gguf:q2_k", out)
    from gguf import GGUFReader

    reader = GGUFReader(path)
    assert "Q2_K" in {tensor.tensor_type.name for tensor in reader.tensors}
    assert path.with_name(f"{path.name}.parity.json").is_file(), "it was asked the same as the adapter"


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        ("is killed", r"was killed \(SIGKILL\), perhaps for want of memory"),
        ("refuses", "could not write this model as GGUF .*this type needs an importance matrix"),
    ],
)
def test_a_program_that_does_not_finish_is_said_and_leaves_nothing(
    does: str, sentence: str, run: Run, out: Path, sources: Callable[[str], Path]
) -> None:
    sources(does)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(TuituneError, match=sentence):
        make(run, "gguf:q2_k_s", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert all(path.is_file() for path in run.adapter.iterdir())


def test_the_kernels_killed_on_their_way_leave_nothing_and_the_next_export_goes_on(
    run: Run, out: Path, sources: Callable[[str], Path]
) -> None:
    killed: list[int] = []

    def kill() -> bool:  # asked between looks at the child, as whether the user stopped it
        for child in [] if killed else psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):  # another child that has just ended
                if "quantise.py" in " ".join(child.cmdline()):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)
        return False

    sources("works")
    before = set(out.iterdir())
    with pytest.raises(TuituneError, match=r"was killed \(SIGKILL\)"):
        make(run, "gguf:q4_k_s", out, kill)
    assert killed and set(out.iterdir()) == before
    assert make(run, "gguf:q4_k_s", out).is_file()
