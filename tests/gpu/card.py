"""What tests on a GPU need; a file of tests is skipped where it is not there."""

import importlib.util
from typing import Any

import pytest


def require_card(*, unsloth: bool) -> Any:
    """torch, where it computes on an NVIDIA GPU; with `unsloth` Unsloth has to be installed, too."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
    if unsloth and importlib.util.find_spec("unsloth") is None:
        pytest.skip("needs Unsloth", allow_module_level=True)
    return torch
