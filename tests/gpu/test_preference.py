"""On a GPU: replies laid end to end count as each does alone, and every method of pairs and marks trains."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.card import require_card
from tuitune.machine.environment import warm_up

pytestmark = pytest.mark.gpu
require_card(unsloth=True)
warm_up()

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
STEPS, STOPPED_AT = 6, 3


@pytest.mark.parametrize("model", [SAMPLE_DATA / "demo_model", Path(os.environ.get("M1", SAMPLE_DATA / "demo_model"))])
def test_replies_end_to_end_count_as_each_does_alone(model: Path) -> None:
    from benchmarks.gpu_preference import compare, load

    loaded, rows = load(model, SAMPLE_DATA / "preferences.jsonl")
    assert loaded.padding_free
    report = compare(loaded, [rows[place] for place in range(8)])
    print(report)
    assert report["logp_difference"] <= 2e-2
    # A model of random weights rounds by more than that; what laying end to end adds to it must not be seen.
    rounding = 1 - report["gradient_cosine_padded"]
    assert 1 - report["gradient_cosine"] <= max(1e-4, 1.5 * rounding)


def recipe_of(method: str) -> Any:
    from tuitune.recipe import Recipe

    return Recipe.load(
        SAMPLE_DATA / "demo_dpo.yaml",
        [
            f"method={method}",
            f"max_steps={STEPS}",
            "learning_rate=1e-3",
            "eval_steps=0",
            "fit=false",
            "samples.max_new_tokens=2",
            "per_device_train_batch_size=4",
        ],
    )


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo"])
def test_a_method_trains_and_goes_on_from_a_checkpoint(method: str, tmp_path: Path) -> None:
    from tests.engine.training import trained
    from tuitune.runs.events import Event, Started, Step
    from tuitune.runs.folder import RunWriter
    from tuitune.train.control import Control
    from tuitune.train.resume import resumption_of
    from tuitune.train.run import train

    whole, history = trained(recipe_of(method), tmp_path, "whole")
    begins = {"dpo": 0.6931, "kto": 0.5}.get(method)
    assert begins is None or history.steps[0].loss == pytest.approx(begins, abs=1e-2)
    assert history.plan is not None and history.plan.batches == "end to end", history.notices
    assert history.plan.isolation["gradient_cosine"] >= 0.999

    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == STOPPED_AT:
            control.pause.set()
            control.stop.set()

    run, _ = trained(recipe_of(method), tmp_path, "stopped", stop)
    writer = RunWriter(run)
    resumed = resumption_of(run, writer.append)
    writer.append(Started(run=method, attempt=resumed.attempt, pid=os.getpid()))
    train(run.resolved(), run, Control(), writer.append, resumed=resumed)
    writer.close()
    losses = [[step.loss for step in trained_run.history().steps] for trained_run in (run, whole)]
    print(method, losses)
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)


def test_fit_times_the_passes_of_pairs(tmp_path: Path) -> None:
    from tests.engine.training import trained

    recipe = recipe_of("dpo")
    fitted = recipe.model_copy(update={"train": recipe.train.model_copy(update={"fit": True, "max_steps": 2})})
    _, history = trained(fitted, tmp_path, "fitted")
    assert any("Chosen by timing" in notice.text for notice in history.notices)


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_a_replayed_pass_of_pairs_is_the_same_pass(method: str) -> None:
    """Against the pass as the trainer makes it kernel by kernel, which reads back from the GPU, and against itself."""
    from benchmarks.gpu_pass import move_off_zero, pass_graphs
    from benchmarks.gpu_preference import load
    from tuitune.train.graphs import can_capture
    from tuitune.train.isolation import _cosine
    from tuitune.train.methods import learner_of
    from tuitune.train.methods.reply_trainer import Totals
    from tuitune.train.sizes import pass_sizes

    loaded, rows = load(SAMPLE_DATA / "demo_model", SAMPLE_DATA / "preferences.jsonl", method=method)
    move_off_zero(loaded)
    loaded.padding_free, loaded.gradient_checkpointing = True, False
    loaded.backend.for_training(loaded)
    assert can_capture(loaded)
    learner: Any = learner_of(loaded.recipe)
    lengths = learner.method.lengths(rows)
    pairs = [rows[place] for place in range(8)]
    plain = learner.collator(loaded)(pairs)
    loaded.pass_sizes = (pass_sizes(lengths, 8)[-1],)
    batches = [learner.collator(loaded)([rows[at + place] for place in range(8)]) for at in (0, 8)]
    batches = [{name: tensor.pin_memory() for name, tensor in batch.items()} for batch in batches]
    amounts = learner.amounts([plain])
    named = dict(loaded.model.named_parameters())

    def gradients() -> dict[str, Any]:
        found = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        for parameter in named.values():
            parameter.grad = None
        return found

    def as_the_trainer() -> tuple[float, dict[str, tuple[float, int]], dict[str, Any]]:
        outcome = learner.loss(loaded.recipe).outcome(loaded, plain, Totals(*amounts))
        outcome.loss.backward()
        sums = {name: (float(value), int(count)) for name, (value, count) in outcome.sums.items()}
        return outcome.loss.item(), sums, gradients()

    expected = as_the_trainer()
    gc.collect()  # what is left of that pass belongs to another stream than captures do
    graphs = pass_graphs(loaded, 16, max(lengths))
    told = []
    for batch in (batches[0], batches[1], batches[0], batches[1], batches[0]):
        loss, figures = graphs.run(batch, amounts)
        values = {name: (float(value), int(count)) for name, (value, count) in figures.items()}
        told.append((loss.item(), values, gradients()))
    assert graphs.captured >= 1
    first, last = told[0], told[-1]
    assert last[:2] == first[:2]  # a replay, after one of other rows, against the pass kernel by kernel
    assert _cosine(first[2], last[2]) >= 0.99999
    assert last[0] == pytest.approx(expected[0], abs=2e-3)
    assert set(last[1]) == set(expected[1])
    for name, (value, count) in expected[1].items():
        assert last[1][name][1] == count, name
        assert last[1][name][0] / count == pytest.approx(value / count, abs=0.05, rel=1e-2), name
    assert _cosine(expected[2], last[2]) >= 0.999


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_a_run_of_pairs_with_graphs_is_the_run_without_them(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over more than one epoch, so that the reference is known before; with measurements in between."""
    from tests.engine.training import trained
    from tuitune.train.graphs import PassGraphs

    captured = []
    replay = PassGraphs.run

    def run(graphs: Any, batch: Any, amounts: Any) -> Any:
        told = replay(graphs, batch, amounts)
        captured.append(graphs.captured)
        return told

    monkeypatch.setattr(PassGraphs, "run", run)
    recipe = recipe_of(method)
    changes = {"max_steps": 24, "eval_steps": 7, "gradient_checkpointing": False, "per_device_train_batch_size": 8}
    runs = {}
    for graphs in (False, True):
        train = recipe.train.model_copy(update={**changes, "cuda_graphs": graphs})
        _, runs[graphs] = trained(recipe.model_copy(update={"train": train}), tmp_path, f"graphs-{graphs}")
    steps, plain = runs[True].steps, runs[False].steps
    print(method, [step.loss for step in steps], [step.loss for step in plain])
    assert len(steps) == len(plain) == 24
    assert max(captured) >= 1
    assert [step.tokens for step in steps] == [step.tokens for step in plain]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in plain], abs=3e-2)
    assert set(steps[-1].metrics) == set(plain[-1].metrics)
    assert steps[0].metrics["rewards/margins"] == pytest.approx(plain[0].metrics["rewards/margins"], abs=1e-2)
