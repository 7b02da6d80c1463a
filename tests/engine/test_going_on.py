"""A run is changed while it goes, trained further once it is done, or begun with what another one has learnt."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.engine.training import trained
from tuitune.commands.run import recipe_beginning_with
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Finished, Started, Step
from tuitune.runs.folder import Run, RunWriter
from tuitune.runs.history import History
from tuitune.train.control import Control
from tuitune.train.resume import changed, require_unfinished, resumption_of
from tuitune.train.run import train

CHANGES = ["max_steps=9", "learning_rate=5e-4"]


def recipe(*changes: str) -> Recipe:
    fields = [
        "max_steps=12",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=1",
        "eval_share=0.02",
        "eval_steps=0",
        "lora_dropout=0.1",
        "warmup_steps=0",
    ]
    fields += ["samples.max_new_tokens=2", 'samples.prompts=["Who are you?"]']
    return Recipe.load(DEMO / "demo.yaml", [*fields, *changes])


def gone_on(run: Run, settings: Recipe) -> History:
    """The history of a run that has ended, after it went on in this process."""
    writer = RunWriter(run)
    try:
        resumed = resumption_of(run, writer.append)
        writer.append(Started(run=run.name, attempt=resumed.attempt, pid=os.getpid()))
        train(settings, run, Control(), writer.append, resumed=resumed)
    finally:
        writer.close()
    return run.history()


def weights(run: Run) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in load_file(run.adapter / "adapter_model.safetensors").items()}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, History]:
    """A run that was changed at its fourth step, while it went."""

    def change(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 4 and event.total_steps == 12:
            control.recipe = changed(recipe(), CHANGES)

    return trained(recipe(), tmp_path_factory.mktemp("live"), "live", change)


def test_a_change_of_a_live_run_is_trained_from_the_next_step_on(live: tuple[Run, History]) -> None:
    run, history = live
    assert [(step.step, step.total_steps) for step in history.steps] == [
        *((step, 12) for step in range(1, 5)),
        *((step, 9) for step in range(5, 10)),
    ]
    rates = [step.learning_rate or 0.0 for step in history.steps]
    peak = recipe().train.learning_rate
    assert rates[3] > 5e-4 and peak > 5e-4
    assert rates[4:] == pytest.approx([5e-4 * (9 - done) / 9 for done in range(4, 9)])
    assert isinstance(history.ended, Finished) and history.ended.status == "done"
    assert run.recipe().train.max_steps == 12 and run.resolved().train.max_steps == 9


@pytest.mark.parametrize("shorter", [["max_steps=3"], ["max_steps=-1", "num_train_epochs=0.001"]])
def test_a_run_that_is_past_the_end_it_is_given_ends_there(shorter: list[str], tmp_path: Path) -> None:
    def change(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 4:
            control.recipe = changed(recipe(), shorter)

    run, history = trained(recipe(), tmp_path, "past", change)
    assert run.status() == "done" and run.adapter.exists()
    assert history.step == history.total_steps == 4


def test_a_run_that_is_resumed_with_the_same_change_comes_to_the_same(
    live: tuple[Run, History], tmp_path: Path
) -> None:
    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 4:
            control.stop.set()

    run, _ = trained(recipe(), tmp_path, "stopped", stop)
    history = gone_on(run, changed(run.resolved(), CHANGES))
    assert [step.loss for step in history.steps] == [step.loss for step in live[1].steps]
    assert weights(run) == weights(live[0])


def test_a_run_that_is_done_can_be_trained_further(live: tuple[Run, History]) -> None:
    run, before = live
    with pytest.raises(UnusableInput, match="is done after 9 steps: `tuitune resume live --set max_steps=18`"):
        require_unfinished(run, run.resolved())
    further = changed(run.resolved(), ["max_steps=11", "learning_rate=1e-4"])
    require_unfinished(run, further)
    history = gone_on(run, further)
    assert history.steps[:9] == before.steps
    assert [(step.step, step.attempt) for step in history.steps[9:]] == [(10, 2), (11, 2)]
    assert run.status() == "done"


def test_what_would_make_it_another_run_cannot_be_changed() -> None:
    for change in ("lora.r=5", "max_length=64", "train.seed=1", "per_device_train_batch_size=3"):
        with pytest.raises(UnusableInput, match="A run that has begun can change train"):
            changed(recipe(), [change])


def test_epochs_are_changed_only_where_they_decide() -> None:
    with pytest.raises(UnusableInput, match=r"ends after train\.max_steps: 12 steps, whatever its epochs"):
        changed(recipe(), ["num_train_epochs=3"])
    assert changed(recipe(), ["num_train_epochs=3", "max_steps=-1"]).train.num_train_epochs == 3


def test_a_new_run_begins_where_another_one_ended(live: tuple[Run, History], tmp_path: Path) -> None:
    run, _ = live
    beginning = recipe_beginning_with(run, None, None, ["max_steps=1", "learning_rate=1e-9"])
    assert beginning.lora.init_adapter == str(run.adapter)
    _, begun = trained(beginning, tmp_path, "begun")
    assert begun.evaluations[0].loss == run.history().evaluations[-1].loss


def test_an_adapter_of_another_shape_is_not_begun_with(live: tuple[Run, History], tmp_path: Path) -> None:
    beginning = recipe_beginning_with(live[0], None, None, ["max_steps=1", "lora.r=5"])
    with pytest.raises(
        UnusableInput, match="cannot be begun with, because it differs from what the recipe's lora section"
    ):
        trained(beginning, tmp_path, "other")
    (tmp_path / "other.yaml").write_text(recipe("model.name=/other/model").to_yaml())
    with pytest.raises(UnusableInput, match="is for another base model than run live"):
        recipe_beginning_with(live[0], None, tmp_path / "other.yaml", [])
