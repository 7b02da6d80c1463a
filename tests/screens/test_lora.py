"""What the settings mean in time: measured by a run of this model here, or not told."""

from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input

from screens.app import TuituneApp
from screens.consequences import consequences
from screens.widgets.fields import as_value
from screens.widgets.yaml_area import YamlArea, read_recipe
from tests.conftest import DEMO
from tests.screens.conftest import SIZE, screen_text, settled, until
from tests.screens.machine import be_the_machine, write_nvml
from tuitune import backends
from tuitune.machine.hardware import chosen_gpu
from tuitune.plan.estimate import estimate
from tuitune.recipe import Recipe
from tuitune.recipe_sections import TrainSection
from tuitune.runs.cost import Price
from tuitune.runs.events import Plan, Step
from tuitune.runs.folder import create_run
from tuitune.runs.speed import Speed
from tuitune.session.preparing_requests import Estimate
from tuitune.units import about


def measured_run(recipe: Recipe, runs_folder: Path, tokens_per_second: float) -> None:
    """A run of this recipe, here, at this speed."""
    card = chosen_gpu()
    writer = create_run(recipe, runs_folder)
    writer.append(
        Plan(
            backend=backends.choose(recipe).name,
            device=card.name if card else "CPU",
            rows=350,
            eval_rows=0,
            dropped_rows=0,
            tokens=22_000,
            trained_tokens=9_000,
            trainable_parameters=1,
            total_parameters=2,
            total_steps=3,
        )
    )
    for step in range(1, 6):
        speed = tokens_per_second if step > 1 else 1.0
        writer.append(Step(attempt=1, step=step, total_steps=5, epoch=0.1, loss=1.0, tokens_per_second=speed))
    writer.close()


async def test_the_time_is_that_of_an_earlier_run_or_not_told(recipe: Recipe, runs_folder: Path) -> None:
    three_passes = recipe.train.model_copy(update={"max_steps": -1, "num_train_epochs": 3.0})
    app = TuituneApp(recipe.model_copy(update={"train": three_passes}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await until(pilot, lambda: "measured from the first steps" in screen_text(pilot), what="no time")

        measured_run(recipe, runs_folder, 1_400.0)
        estimate = await app.link.call(Estimate(app.link.draft.as_data()))
        await app.show_step("data")
        await app.show_step("lora")
        told = f"{about(3 * estimate['tokens'] / 1_400)} (F3: its cost) at the 1,400 tokens/s of pirate-1"
        await until(pilot, lambda: told in screen_text(pilot), what=told)

        app.settings.price = "36 credits"
        await app.show_step("data")
        await app.show_step("lora")
        cost = f"(about {3 * estimate['tokens'] / 1_400 / 100:.2f} credits) at the 1,400 tokens/s"
        await until(pilot, lambda: cost in screen_text(pilot), what=cost)


def test_what_more_cards_would_bring_is_told(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvml(tmp_path, cards=4)
    be_the_machine(tmp_path, monkeypatch)

    def told(**train: Any) -> list[str]:
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
        data = estimate(changed).as_dict()
        text = consequences(changed, data, Speed("before", 1.0), price=Price.parse("2")).plain
        return [line for line in text.splitlines() if line.startswith(("Time", "Cards", " "))]

    time, cards, small = told()
    assert time == "Time    about 4 min (about $0.14) at the 1 tokens/s of before"
    assert cards.startswith("Cards   1: 4 min, $0.14 · 2: ")
    assert " · 4: " in cards and cards.endswith(" (computed; train.gpus)")
    assert small.strip().startswith("With 2 cards or more so small a step gains little")
    assert "on one card, × 0.98" in told(gpus="all")[0]
    assert told(gpus="all")[1] == cards

    dpo, grpo = Recipe.load(DEMO / "demo_dpo.yaml"), Recipe.load(DEMO / "demo_grpo.yaml")
    assert "Cards" in consequences(dpo, estimate(dpo).as_dict()).plain
    assert "Cards" not in consequences(grpo, estimate(grpo).as_dict()).plain, "decoding is not computed"


def test_cards_that_are_written_into_the_field_are_numbers(recipe: Recipe) -> None:
    info = TrainSection.model_fields["gpus"]
    for text, cards in (("0, 2", [0, 2]), ("all", "all"), ("auto", "auto")):
        assert TrainSection(gpus=as_value(info, text)).gpus == cards
    with pytest.raises(ValueError, match="two cards or more"):
        TrainSection(gpus=as_value(info, "1"))


def test_an_estimated_time_claims_no_more_than_it_knows() -> None:
    assert [about(seconds) for seconds in (0.2, 42, 250, 5_300, 9_000)] == [
        "about 1 s",
        "about 42 s",
        "about 4 min",
        "about 88 min",
        "about 2.5 h",
    ]


def test_every_wrong_line_of_a_recipe_is_found() -> None:
    text = "model:\n  name: x\ndata:\n  path: y\nlora:\n  r: many\n  lora_alpha: 16\ntrain:\n  steps: 3\n"
    recipe, problems = read_recipe(text)
    assert recipe is None
    assert [line for line, _ in problems] == [5, 8]
    assert problems[0][1] == "lora.r is 'many' but should be a whole number."
    assert read_recipe("model: {name: x}\ndata: [\n")[1][0][0] == 2, "where the YAML itself ends too early"
    assert read_recipe("model: {name: x}\ndata: {path: y}\n")[1] == []
    assert read_recipe("")[0] is None


async def test_a_wrong_line_is_marked_where_it_stands(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await pilot.press("ctrl+t", "ctrl+t")
        await settled(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "xmodel:  ✘" in screen_text(pilot), seconds=10, what="the mark")
        assert "Line 1: " in screen_text(pilot)
        await pilot.press("backspace")
        await until(pilot, lambda: "✘" not in screen_text(pilot), seconds=10, what="no mark")


async def test_a_path_that_cannot_be_shown_as_it_is_stays_as_it_is(recipe: Recipe, runs_folder: Path) -> None:
    path = "/data/two  spaces\x1b[31m.jsonl"
    data = recipe.data.model_copy(update={"path": path})
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        for view in ("goals", "fields", "yaml"):
            await settled(pilot)
            assert app.link.draft.get("data.path") == path, view
            await pilot.press("ctrl+t")
        await pilot.press("ctrl+t", "ctrl+t")
        await settled(pilot)
        await pilot.press("end", "space")
        await until(pilot, lambda: "model: \n" in app.screen.query_one(YamlArea).text, seconds=10, what="the edit")
        assert app.link.draft.get("data.path") == path


async def test_target_modules_are_a_word_or_names(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await settled(pilot)
        await pilot.press("ctrl+t")
        field = app.screen.query_one("#lora-target_modules Input", Input)
        for text, value in (("attention", "attention"), ("q_proj, v_proj", ["q_proj", "v_proj"]), ("auto", "auto")):
            field.value = text
            await pilot.pause()
            assert app.link.draft.get("lora.target_modules") == value
            assert not app.link.draft.errors()
        field.value = ""
        await until(
            pilot, lambda: "should be auto, attention, all, or a list" in screen_text(pilot), what="the problem"
        )
