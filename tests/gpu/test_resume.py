"""On a GPU: a run whose session was killed goes on with the losses and weights of one that was not disturbed."""

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.engine.test_resume import SAVED, STEPS, losses, resume, sample_rows, train_both
from tests.gpu.card import require_card
from tuitune.runs.folder import Run

pytestmark = pytest.mark.gpu
require_card(unsloth=True)


def apart(one: Run, other: Run) -> tuple[float, float]:
    """The largest difference of a step's loss, and of a weight of the adapter."""
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    weight = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs)
    return max(abs(loss - losses(other)[step]) for step, loss in losses(one).items()), weight


def test_a_killed_run_goes_on_as_near_as_the_same_run_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled kernels differ with what a process has run before; two undisturbed runs in two processes tell how far.

    Within one process a run goes on bit for bit: tests/engine/test_going_on.py, which a GPU runs as a CPU does.
    """
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        (folder / "data.jsonl").write_text("".join(sample_rows()))
        asyncio.run(train_both(folder))
    whole, repeated, killed = (
        Run(folders[place] / "runs" / name) for place, name in ((0, "whole"), (1, "whole"), (0, "killed"))
    )
    assert killed.status() == "interrupted"
    asyncio.run(resume(killed))
    assert list(losses(killed)) == list(losses(whole)) == list(range(1, STEPS + 1))
    assert [step.attempt for step in killed.history().steps] == [1] * SAVED + [2] * (STEPS - SAVED)
    floor, difference = apart(repeated, whole), apart(killed, whole)
    print(f"loss and weight: the same run again {floor}, resumed {difference}")
    assert difference[0] <= max(1e-5, 2 * floor[0]) and difference[1] <= max(1e-5, 2 * floor[1])
