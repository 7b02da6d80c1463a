"""Measuring the held-out loss ends when asked to, and fails no run where memory runs out in it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.engine.training import trained
from tuitune.recipe import Recipe
from tuitune.recipe_sections import TrainSection
from tuitune.runs.events import Event, Finished, Phase
from tuitune.train.checkpoints import checkpoints_of, step_of
from tuitune.train.control import Control
from tuitune.train.evaluate import patience_of, steps_between


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


SHORT = {
    **{"eval_share": 0.02, "eval_steps": 2, "max_steps": 8, "save_steps": 100, "samples.max_new_tokens": 3},
    **{"per_device_train_batch_size": 2, "samples.prompts": '["Who are you?"]'},
}


def short(**changes: Any) -> Recipe:
    """A run of eight steps that is measured at every second one."""
    fields = {**SHORT, **changes}
    settings = [f"{name}={value}" for name, value in fields.items()]
    return Recipe.load(DEMO / "demo.yaml", ["gradient_accumulation_steps=1", *settings])


def test_a_run_is_measured_on_its_way_and_trains_the_same(tmp_path: Path) -> None:
    """Bit for bit, with dropout, which draws from the random state that replies and evaluations use too."""
    measured, history = trained(short(lora_dropout=0.1), tmp_path, "measured")
    bare, without = trained(short(lora_dropout=0.1, eval_steps=0), tmp_path, "bare")
    assert [evaluation.step for evaluation in history.evaluations] == [0, 2, 4, 6, 8]
    assert [evaluation.step for evaluation in without.evaluations] == [0, 8]
    assert sorted({reply.step for reply in history.replies}) == [0, 2, 4, 6, 8]
    assert [step.loss for step in history.steps] == [step.loss for step in without.steps]
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (measured, bare))
    assert all(ours[name].equal(theirs[name]) for name in ours | theirs)


def test_a_run_that_gains_nothing_ends_with_its_best_adapter(tmp_path: Path) -> None:
    """No loss falls by 100: the first measurement stays the best, and the third one after it ends the run."""
    recipe = short(early_stopping_patience=2, early_stopping_threshold=100, learning_rate=0.05)
    run, history = trained(recipe, tmp_path, "early")
    assert isinstance(history.ended, Finished)
    assert (history.ended.status, history.ended.step) == ("done", 6)
    losses = {evaluation.step: evaluation.loss for evaluation in history.evaluations}
    best = min((loss, step) for step, loss in losses.items() if step)[1]
    assert history.ended.adapter_step == best
    assert any(
        notice.text.startswith(f"Ended early: the held-out loss was lowest at step {best}")
        for notice in history.notices
    )
    saved, kept = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.adapter, run.checkpoints / f"checkpoint-{best}")
    )
    assert all(saved[name].equal(kept[name]) for name in saved | kept)
    before_and_after = history.loss_before_and_after()
    assert before_and_after == (losses[0], losses[best])


def test_the_best_checkpoint_outlives_the_newest(tmp_path: Path) -> None:
    """At this learning rate the adapter only gets worse after its first steps."""
    run, history = trained(short(learning_rate=0.3, save_steps=2, max_steps=10), tmp_path, "worse")
    losses = [(evaluation.loss, evaluation.step) for evaluation in history.evaluations if evaluation.step]
    best = min(losses)[1]
    assert best < 8, losses
    assert [step_of(checkpoint) for checkpoint in checkpoints_of(run)] == [best, 8, 10]
    assert any("--checkpoint best" in notice.text for notice in history.notices)


def test_measurements_keep_to_a_twentieth_of_the_time() -> None:
    assert steps_between(200, step_seconds=1.0, measuring_seconds=0.5) == 20
    assert steps_between(200, step_seconds=1.0, measuring_seconds=3.0) == 60
    assert steps_between(7, step_seconds=10.0, measuring_seconds=0.1) == 1


def test_a_failure_of_a_measurement_on_the_way_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuitune.train import evaluate

    def fails(loaded: Any, prompts: Any, recipe: Any, emit: Any, control: Any, step: int) -> None:
        if 0 < step < 8:
            raise RuntimeError("CUDA out of memory, in a reply")

    monkeypatch.setattr(evaluate, "sample_replies", fails)
    run, history = trained(short(), tmp_path, "replies-fail")
    assert run.status() == "done" and history.step == 8
    assert [
        e.text for e in history.notices if "at step 2 failed (RuntimeError: CUDA out of memory, in a reply)" in e.text
    ]
    assert [evaluation.step for evaluation in history.evaluations] == [0, 2, 8]


@pytest.mark.parametrize(
    ("patience", "epochs", "rows", "expected"),
    [
        ("auto", 3.0, 10, 3),
        ("auto", 2.0, 10, 0),
        ("auto", 3.0, 0, 0),
        (5, 1.0, 10, 5),
        (5, 1.0, 0, 0),
        (0, 9.0, 10, 0),
    ],
)
def test_who_sees_rows_often_is_ended_early_by_default(patience: Any, epochs: float, rows: int, expected: int) -> None:
    assert patience_of(TrainSection(early_stopping_patience=patience), rows, epochs) == expected


@pytest.mark.parametrize(("written", "read"), [("auto", "auto"), ("20", 20), (0, 0), (5, 5)])
def test_steps_between_measurements_are_a_word_or_a_number(written: Any, read: Any) -> None:
    assert TrainSection(eval_steps=written).eval_steps == read


@pytest.mark.parametrize("written", ["often", -1, 2.5, True, None])
def test_other_steps_between_measurements_are_refused(written: Any) -> None:
    with pytest.raises(ValidationError, match="should be auto, or a whole number from 0 on"):
        TrainSection(eval_steps=written)
