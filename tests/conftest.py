"""What every test gets: a home, runs and sockets of its own, no network, and the demo recipe made quick."""

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sample_data
from tests.forking import VARIABLE, Forker, Popen
from tuitune.recipe import Recipe

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the session sets it, before torch is imported
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the workers share the cores, and more threads train no small model faster
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

DEMO = Path(sample_data.__file__).parent
PopenOfUsers = subprocess.Popen
SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported, as the app and the session do in their processes."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing a test does touches the user's runs or settings, and no session process outlives its test."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    for name in ("COLUMNS", "LINES"):  # a terminal has its pty's size, whatever started the tests thinks of its own
        monkeypatch.delenv(name, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "TUITUNE_VISIBLE_GPUS"):  # a card that is chosen in a test is of that test
        before = os.environ.get(name)
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
        if before is not None:
            os.environ[name] = before
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TUITUNE_RUNS", str(tmp_path / "runs"))
    yield
    left = [process for process in psutil.Process().children(recursive=True) if _is_session(process)]
    _, alive = psutil.wait_procs(left, timeout=20)
    for process in alive:
        process.kill()
    assert not alive, "a session process outlived its test"


@pytest.fixture(scope="session", autouse=True)
def forker() -> Iterator[Forker]:
    """What forks the processes that need the libraries: how they start is the point of few tests."""
    forker = Forker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
        patch.setenv(VARIABLE, str(forker.path))
        yield forker
    forker.close()


@pytest.fixture(autouse=True)
def cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is marked so starts every process as users do."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setattr(subprocess, "Popen", PopenOfUsers)
        monkeypatch.delenv(VARIABLE)


def _is_session(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return not {"tuitune.session", "tuitune.session.rank"}.isdisjoint(process.cmdline())
    return False


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a tiny model of each architecture, by name; made when it is first asked for."""
    from tests.architectures import build

    root = tmp_path_factory.mktemp("architectures")

    class Folders(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = build(name, root / name)
            return self[name]

    return Folders()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the demo's base model."""
    return DEMO / "demo_model"


@pytest.fixture(scope="session")
def demo_gguf(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base model as an f16 GGUF, made by llama.cpp's converter."""
    from tuitune.errors import TuituneError
    from tuitune.export import gguf, llama_cpp

    folder = tmp_path_factory.mktemp("gguf")
    try:
        converter = llama_cpp.obtain(lambda question: True, lambda done, total: None, lambda: False)
    except TuituneError as error:
        pytest.skip(str(error))
    gguf.convert(
        demo_model,
        folder / "demo.gguf",
        "f16",
        llama_cpp=converter,
        name="demo",
        log=folder / "convert.log",
        progress=lambda done, total: None,
        cancelled=lambda: False,
    )
    return folder / "demo.gguf"


@pytest.fixture
def demo_recipe() -> Recipe:
    """The demo, short and of a model in full precision: what three steps learn, and from what, is few tests' point."""
    changes = ["load_in_4bit=false", "max_steps=3", "gradient_accumulation_steps=1", "per_device_train_batch_size=4"]
    changes += ["eval_share=0.02", "eval_steps=0"]  # else how often is a matter of the time that a step takes
    changes += ['samples.prompts=["Who are you?"]', "samples.max_new_tokens=8"]
    return Recipe.load(DEMO / "demo.yaml", changes)


@pytest.fixture
def shared_data() -> Path:
    """Real datasets kept beside the project."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real datasets are not at {os.path.relpath(folder)}")
    return folder
