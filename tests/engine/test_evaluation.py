"""Measuring the held-out loss ends when asked to, and fails no run where memory runs out in it."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.training import trained
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Finished, Phase
from tuitune.train.control import Control


@pytest.mark.parametrize(("phase", "status", "step"), [("before", "stopped", 0), ("after", "done", 3)])
def test_a_stop_ends_an_evaluation(demo_recipe: Recipe, tmp_path: Path, phase: str, status: str, step: int) -> None:
    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Phase) and event.name == phase:
            control.stop.set()

    run, history = trained(demo_recipe, tmp_path, "stopped", stop)
    assert isinstance(history.ended, Finished)
    assert (history.ended.status, history.ended.step) == (status, step)
    assert [evaluation.step for evaluation in history.evaluations] == ([] if phase == "before" else [0])
    assert run.adapter.is_dir() == (status == "done")


@pytest.mark.parametrize(("rows_that_fit", "evaluations"), [(1, 2), (0, 0)])
def test_memory_that_runs_out_in_an_evaluation_fails_no_run(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_that_fit: int, evaluations: int
) -> None:
    """The card is stood in for: an evaluation's batch of more rows than fit runs out of memory."""
    import torch
    from transformers import LlamaModel

    assert demo_recipe.train.per_device_train_batch_size > 1
    whole = LlamaModel.forward

    def on_a_small_card(self: Any, input_ids: Any = None, **others: Any) -> Any:
        replying = torch.is_inference_mode_enabled()
        if not self.training and not replying and len(input_ids) > rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, input_ids=input_ids, **others)

    monkeypatch.setattr(LlamaModel, "forward", on_a_small_card)
    run, history = trained(demo_recipe, tmp_path, "small-card")
    assert run.status() == "done"
    assert len(history.evaluations) == evaluations
    told = [notice.text for notice in history.notices if "held-out loss is left out" in notice.text]
    assert len(told) == (0 if rows_that_fit else 2)
    assert {reply.step for reply in history.replies} == {0, 3}


def test_a_failure_while_the_trained_model_is_measured_keeps_the_run_done(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    whole, trained_once = LlamaModel.forward, False

    def breaks_after_training(self: Any, *arguments: Any, **others: Any) -> Any:
        nonlocal trained_once
        trained_once = trained_once or self.training
        if trained_once and not self.training:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return whole(self, *arguments, **others)

    monkeypatch.setattr(LlamaModel, "forward", breaks_after_training)
    run, history = trained(demo_recipe, tmp_path, "broken")
    assert run.status() == "done" and (run.adapter / "adapter_model.safetensors").is_file()
    assert any("measuring it failed (RuntimeError: CUDA error" in notice.text for notice in history.notices)
