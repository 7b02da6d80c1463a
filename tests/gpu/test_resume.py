"""On a GPU: a run whose session was killed goes on with the losses and weights of one that was not disturbed."""

import asyncio
import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.engine.test_resume import SAVED, STEPS, losses, resume, sample_rows, train_both
from tuitune.runs.folder import Run

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("unsloth") is None:
    pytest.skip("needs Unsloth", allow_module_level=True)


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "data.jsonl").write_text("".join(sample_rows()))
    asyncio.run(train_both(tmp_path))
    whole, killed = Run(tmp_path / "runs" / "whole"), Run(tmp_path / "runs" / "killed")
    assert killed.status() == "interrupted"
    asyncio.run(resume(killed))
    assert list(losses(killed)) == list(losses(whole)) == list(range(1, STEPS + 1))
    assert [step.attempt for step in killed.history().steps] == [1] * SAVED + [2] * (STEPS - SAVED)
    apart = max(abs(loss - losses(whole)[step]) for step, loss in losses(killed).items())
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (killed, whole))
    weights_apart = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs)
    print(f"largest difference of a loss {apart:.2g}, of a weight {weights_apart:.2g}")
    assert apart <= 1e-5 and weights_apart <= 1e-5
