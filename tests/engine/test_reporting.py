"""A run's figures reach TensorBoard's files; a reporter that is not installed or fails ends no run."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.training import trained
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe


def reporting(recipe: Recipe, *names: str) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"report_to": list(names)})})


def test_losses_are_in_tensorboards_files(demo_recipe: Recipe, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, history = trained(reporting(demo_recipe, "tensorboard"), tmp_path, "reported")
    scalars = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    losses = {scalar.step: scalar.value for scalar in scalars.Scalars("train/loss")}
    assert losses == {step.step: pytest.approx(step.loss, rel=1e-6) for step in history.steps}
    assert scalars.Scalars("eval/loss")


def test_a_reporter_that_fails_is_told_of_once_and_the_run_goes_on(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file can be made where TensorBoard is told to write."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file"))
    run, history = trained(reporting(demo_recipe, "tensorboard"), tmp_path, "unreported")
    told = [notice.text for notice in history.notices if "not reported to tensorboard any more" in notice.text]
    assert len(told) == 1 and run.status() == "done"


def test_a_reporter_that_is_not_installed_is_refused_before_the_run(demo_recipe: Recipe) -> None:
    from tuitune.train.check import check

    with pytest.raises(
        UnusableInput, match=r"train\.report_to names trackio, which is not installed: `pip install trackio`"
    ):
        check(reporting(demo_recipe, "trackio"))


@pytest.mark.parametrize("value", ["all", ["azure_ml"], "wandb"])
def test_only_known_reporters_are_taken(value: Any, demo_recipe: Recipe) -> None:
    raw = demo_recipe.model_dump(mode="json")
    raw["train"]["report_to"] = value
    with pytest.raises(UnusableInput, match=r"train\.report_to"):
        Recipe.from_data(raw)
