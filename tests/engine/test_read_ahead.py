"""A model's weights are in the page cache once they were read ahead, and nothing is read that would do harm."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tuitune.model.read_ahead import read_ahead
from tuitune.recipe_sections import ModelSection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in its page cache")


def evict(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(file):
        pytest.skip("this file system keeps what it was asked to drop")


def cached(file: Path) -> bool:
    """Whether any of the file is in memory, by mincore(2), which reads nothing itself."""
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address, size = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, size, pages)
        del first
    assert not failed, os.strerror(ctypes.get_errno())
    return any(page & 1 for page in pages)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a Hub model as the Hub's cache holds them, dropped from memory."""
    repository = tmp_path / "hub" / "models--sea--demo"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    shutil.copy(DEMO / "demo_model" / "model.safetensors", snapshot)
    evict(snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


def test_a_folders_weights_are_read(weights: Path) -> None:
    read_ahead(ModelSection(name=str(weights.parent))).join()
    assert cached(weights)


def test_a_hub_models_weights_are_found_in_its_cache(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(weights.parents[4]))
    read_ahead(ModelSection(name="sea/demo")).join()
    assert cached(weights)


def test_weights_larger_than_half_the_free_memory_stay_on_disk(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    little = psutil.virtual_memory()._replace(available=weights.stat().st_size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    read_ahead(ModelSection(name=str(weights.parent))).join()
    assert not cached(weights)


def test_a_model_that_is_not_here_is_no_concern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    read_ahead(ModelSection(name="sea/none")).join()
    read_ahead(ModelSection(name=str(tmp_path))).join()


def test_nothing_heavy_is_imported_for_it() -> None:
    code = "import sys, tuitune.model.read_ahead; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "huggingface_hub", "unsloth"} & set(done.stdout.split())
