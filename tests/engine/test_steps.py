"""Steps that are queued ahead of the GPU: the trainer's batches, counts and losses stay what they were."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.training import trained
from tuitune.recipe import Recipe


def test_a_run_whose_steps_are_queued_is_the_run_of_the_trainer_alone(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two epochs that end in the middle of a step, with checkpoints and evaluations in between."""
    from tuitune.train.steps import queue_steps
    from tuitune.train.trainer import make_trainer

    rows = Path(demo_recipe.data.path).read_text(encoding="utf-8").splitlines()[:22]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = demo_recipe.model_copy(
        update={
            "data": demo_recipe.data.model_copy(update={"path": str(tmp_path / "rows.jsonl"), "eval_share": 0.1}),
            "train": demo_recipe.train.model_copy(
                update={
                    **{"max_steps": -1, "num_train_epochs": 2, "save_steps": 3, "eval_steps": 2},
                    **{"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
                }
            ),
        }
    )
    _, alone = trained(recipe, tmp_path, "alone")

    def queued_trainer(*arguments: Any, **options: Any) -> Any:
        trainer = make_trainer(*arguments, **options)
        queue_steps(trainer, None)
        return trainer

    monkeypatch.setattr("tuitune.train.run.make_trainer", queued_trainer)
    _, queued = trained(recipe, tmp_path, "queued")
    assert len(alone.steps) == 8
    assert [(step.loss, step.tokens) for step in queued.steps] == [(step.loss, step.tokens) for step in alone.steps]
    assert [evaluation.loss for evaluation in queued.evaluations] == [
        evaluation.loss for evaluation in alone.evaluations
    ]


def test_what_is_looked_up_once_is_what_the_trainer_looks_up_in_each_step(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that are clipped, and the operations that its state counts."""
    import json

    train = demo_recipe.train.model_copy(update={"max_steps": 3, "max_grad_norm": 0.05, "eval_steps": 0})
    recipe = demo_recipe.model_copy(update={"train": train})

    def told(name: str) -> tuple[list[tuple[float, float | None]], int]:
        run, history = trained(recipe, tmp_path, name)
        state = json.loads((run.checkpoints / "checkpoint-3" / "trainer_state.json").read_text())
        return [(step.loss, step.grad_norm) for step in history.steps], state["total_flos"]

    once = told("once")
    monkeypatch.setattr("tuitune.train.trainer._walk_through_model_once", lambda trainer, loaded: None)
    assert once == told("in-each-step")
    assert min(norm or 0.0 for _loss, norm in once[0]) > 0.05 and once[1] > 0
