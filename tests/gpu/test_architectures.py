"""On a GPU: every architecture trains right through Unsloth, in 16-bit and in 4-bit, up to the merged model."""

import importlib.util
from pathlib import Path

import pytest

from tests.architectures import ARCHITECTURES

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("unsloth") is None:
    pytest.skip("needs Unsloth", allow_module_level=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_trains_as_plain_transformers_would(architecture: str, tmp_path: Path) -> None:
    """Kept apart, loss falling, adapter and merged model as trained, gradients as exact as those of rows alone."""
    from benchmarks.gpu_architectures import problems, prove

    figures = prove(architecture, tmp_path, tmp_path / "caches")
    assert problems(figures) == []
