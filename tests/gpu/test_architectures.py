"""On a GPU: every architecture trains right through Unsloth, in 16-bit and in 4-bit, up to the merged model."""

import re
from pathlib import Path

import pytest

from tests.architectures import ARCHITECTURES
from tests.gpu.card import require_card

pytestmark = pytest.mark.gpu
require_card(unsloth=True)


WITHOUT_4BIT = {"gpt_oss"}
"""Unsloth has no 4-bit experts for files in 16-bit: refused, in a sentence, before anything is trained."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_trains_as_plain_transformers_would(architecture: str, tmp_path: Path) -> None:
    """Kept apart, loss falling, adapter and merged model as trained, gradients as exact as those of rows alone."""
    from benchmarks.gpu_architectures import problems, prove

    wrong = problems(prove(architecture, tmp_path, tmp_path / "caches"))
    if architecture in WITHOUT_4BIT:
        (refusal,) = wrong
        assert re.search(r"4bit: .*do not hold \d+ of the weights", refusal)
    else:
        assert wrong == []
