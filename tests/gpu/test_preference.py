"""On a GPU: replies laid end to end count as each does alone, and every method of pairs and marks trains."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from tuitune.machine.environment import warm_up

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("unsloth") is None:
    pytest.skip("needs Unsloth", allow_module_level=True)
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
