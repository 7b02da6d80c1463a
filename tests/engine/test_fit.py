"""Which ways of running a step are timed, which one is taken, and what happens when memory runs out after all."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuitune.errors import TuituneError
from tuitune.plan.optimizer import optimizer_name
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run
from tuitune.runs.history import History
from tuitune.train.autotune import (
    Candidate,
    Trial,
    best,
    candidates,
    halved,
    is_worth_its_memory,
    replays_are_better,
    seconds_of,
)

GIB = 2**30


def recipe(**train: Any) -> Recipe:
    return Recipe.from_data({"model": {"name": "m"}, "data": {"path": "d.jsonl"}, "train": train})


@pytest.mark.parametrize(("step_seconds", "runs"), [([0.2, 0.4], 2), ([0.5, 0.6], 2), ([1.5, 9.0], 1)])
def test_a_step_is_timed_again_unless_it_was_long(
    monkeypatch: pytest.MonkeyPatch, step_seconds: list[float], runs: int
) -> None:
    now = 100.0
    taken: list[float] = []
    monkeypatch.setattr("tuitune.train.autotune.time.perf_counter", lambda: now)

    def step() -> None:
        nonlocal now
        taken.append(step_seconds[len(taken)])
        now += taken[-1]

    assert seconds_of(step) == pytest.approx(sum(step_seconds[:runs]) / runs)
    assert len(taken) == runs


def splits(tried: list[Candidate]) -> list[tuple[int, int, bool]]:
    return [(candidate.batch, candidate.accumulation, candidate.checkpointing) for candidate in tried]


def test_every_candidate_trains_on_the_same_rows_a_step() -> None:
    tried = candidates(recipe(per_device_train_batch_size=6, gradient_accumulation_steps=4), lambda candidate: True)
    assert {candidate.batch * candidate.accumulation for candidate in tried} == {24}
    assert splits(tried) == [(24, 1, False), (12, 2, False), (8, 3, False), (24, 1, True), (12, 2, True)]


def test_what_the_estimate_rules_out_is_not_tried() -> None:
    tried = candidates(recipe(), lambda candidate: candidate.checkpointing and candidate.batch <= 4)
    assert splits(tried) == [(4, 2, True), (2, 4, True)]


def test_one_candidate_is_left_for_the_card_to_refuse() -> None:
    assert splits(candidates(recipe(), lambda candidate: False)) == [(1, 8, True)]


@pytest.mark.parametrize(("fixed", "kinds"), [(True, {True}), (False, {False}), ("auto", {True, False})])
def test_checkpointing_that_the_recipe_fixes_stays(fixed: bool | str, kinds: set[bool]) -> None:
    tried = candidates(recipe(gradient_checkpointing=fixed), lambda candidate: True)
    assert {candidate.checkpointing for candidate in tried} == kinds


def test_the_fastest_that_leaves_a_margin_is_taken() -> None:
    fast, safe, slow = (
        Trial(Candidate(batch, 8 // batch, False), peak * GIB, speed)
        for batch, peak, speed in ((8, 95, 900.0), (4, 60, 800.0), (2, 30, 500.0))
    )
    assert best([fast, safe, slow], 90 * GIB) == safe
    assert best([fast, safe, slow], 100 * GIB) == fast
    assert best([Trial(Candidate(8, 1, False), None, None)], 90 * GIB) is None


def test_of_equal_speeds_the_smaller_peak_is_taken() -> None:
    large, small = (Trial(Candidate(8, 1, kind), peak * GIB, 1000.0 + peak) for kind, peak in ((False, 15), (True, 5)))
    assert best([large, small], 90 * GIB) == small


def test_graphs_are_taken_where_they_are_faster_within_the_run_and_fit() -> None:
    eager = Trial(Candidate(8, 1, False), 17 * GIB, 33_000.0)
    captured = Trial(Candidate(8, 1, False, graphs=True), 20 * GIB, 62_000.0, capture_s=0.3)
    lengths, sizes = [320, 330] * 500, tuple(range(1600, 4800, 256))
    assert replays_are_better(recipe(max_steps=1000), captured, eager, lengths, sizes, 90 * GIB)
    assert not replays_are_better(recipe(max_steps=60), captured, eager, lengths, sizes, 90 * GIB)
    assert replays_are_better(recipe(max_steps=60, cuda_graphs=True), captured, eager, lengths, sizes, 90 * GIB)
    assert not replays_are_better(recipe(max_steps=1000), captured, eager, lengths, sizes, 19 * GIB)
    failed = Trial(captured.candidate, None, None)
    assert not replays_are_better(recipe(max_steps=1000), failed, eager, lengths, sizes, 90 * GIB)


def test_memory_is_spent_on_dequantised_weights_only_for_speed() -> None:
    plain = Trial(Candidate(8, 1, False), 17 * GIB, 60_000.0)
    faster, alike = (
        Trial(Candidate(8, 1, False, dequantize_once=True), 20 * GIB, speed) for speed in (62_500.0, 60_100.0)
    )
    assert is_worth_its_memory(recipe(), faster, plain, 90 * GIB)
    assert not is_worth_its_memory(recipe(), alike, plain, 90 * GIB)
    assert not is_worth_its_memory(recipe(), faster, plain, 19 * GIB)
    assert is_worth_its_memory(recipe(dequantize_once=True), alike, plain, 90 * GIB)


@pytest.mark.parametrize(
    ("batch", "accumulation", "after"), [(8, 1, (4, 2)), (3, 2, (1, 6)), (6, 1, (3, 2)), (5, 2, (2, 5))]
)
def test_halving_keeps_the_rows_a_step(batch: int, accumulation: int, after: tuple[int, int]) -> None:
    train = halved(recipe(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)).train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == after


def test_one_row_cannot_be_halved() -> None:
    with pytest.raises(TuituneError, match="one row a pass"):
        halved(recipe(per_device_train_batch_size=1))


def test_adam_states_are_8_bit_only_where_fp32_ones_would_be_large() -> None:
    assert optimizer_name(recipe(), 11_000_000, 140 * GIB) == "adamw_torch_fused"
    assert optimizer_name(recipe(), 670_000_000, 16 * GIB) == "adamw_8bit"
    assert optimizer_name(recipe(optim="adamw_8bit"), 11_000_000, 140 * GIB) == "adamw_8bit"
    assert optimizer_name(recipe(), 11_000_000, None) == "adamw_torch"


@pytest.mark.parametrize("save_steps", [2, 50])
def test_a_run_goes_on_in_smaller_passes_after_memory_ran_out(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    """From the last checkpoint, or from the start without one, to the same losses as a run with small passes.

    The card is stood in for: a pass of more than two rows runs out of memory from the third step on.
    """
    import torch
    from transformers import LlamaModel

    from tuitune.train.control import Control
    from tuitune.train.run import train

    def run(name: str, **changes: Any) -> tuple[Run, History]:
        settings = {"max_steps": 4, "save_steps": save_steps, "gradient_accumulation_steps": 1, **changes}
        changed = demo_recipe.train.model_copy(update=settings)
        used = demo_recipe.model_copy(
            update={"train": changed, "data": demo_recipe.data.model_copy(update={"eval_share": 0.0})}
        )
        writer = create_run(used, tmp_path / "runs", name)
        train(used, writer.run, Control(), writer.append)
        history = writer.run.history()
        writer.close()
        return writer.run, history

    _, small = run("small", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    whole, passes = LlamaModel.forward, 0

    def on_a_small_card(self: Any, input_ids: Any = None, **others: Any) -> Any:
        nonlocal passes
        passes += self.training
        if self.training and len(input_ids) > 2 and passes > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, input_ids=input_ids, **others)

    monkeypatch.setattr(LlamaModel, "forward", on_a_small_card)
    folder, large = run("large", per_device_train_batch_size=4)
    came_from = "checkpoint-2" if save_steps == 2 else "the start"
    assert [notice.text for notice in large.notices if "Memory" in notice.text] == [
        f"Memory ran out at step 3: going on from {came_from} with 2 × 2 rows a step."
    ]
    assert [step.loss for step in large.steps] == pytest.approx([step.loss for step in small.steps], rel=1e-3)
    assert folder.resolved().train.per_device_train_batch_size == 2
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    assert json.loads(folder.events_file.read_text().splitlines()[-1])["status"] == "done"
