"""A run is paused, resumed, changed and trained further by keys alone, and its replies looked through by step."""

from pathlib import Path

from textual.widgets import Input, OptionList

from screens.app import TuituneApp
from tests.screens.conftest import SIZE, screen_text, until, words
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished


async def test_a_run_is_steered_by_its_keys(recipe: Recipe, runs_folder: Path) -> None:
    train = recipe.train.model_copy(update={"max_steps": 500, "eval_steps": 2, "learning_rate": 0.01})
    app = TuituneApp(recipe.model_copy(update={"train": train}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.start_run()
        await app.show_step("train")
        await until(pilot, lambda: len(app.link.history.reply_steps()) >= 2, what="replies after two and four steps")

        await pilot.press("p")
        await until(pilot, lambda: "Pause the run after this step?" in words(pilot), what="the question")
        await pilot.press("y")
        await until(pilot, lambda: "‖ Paused after" in screen_text(pilot), what="the pause")
        run, paused_at = app.link.run, app.link.history.step
        assert run is not None and run.status() == "paused" and not run.adapter.exists()
        assert "r: go on with it" in screen_text(pilot)

        steps = app.link.history.reply_steps()
        await until(
            pilot, lambda: f"Sample replies after {steps[-1]} steps" in screen_text(pilot), what="the newest replies"
        )
        await pilot.press("comma")
        await until(
            pilot, lambda: f"Sample replies after {steps[-2]} steps" in screen_text(pilot), what="those before them"
        )
        assert f"at {steps[-2]}" in screen_text(pilot)
        await pilot.press("comma", *["comma"] * len(steps))
        await until(
            pilot, lambda: "Sample replies after 2 steps" in screen_text(pilot), what="the first ones, and no others"
        )
        await pilot.press(*["full_stop"] * (len(steps) + 1))
        await until(
            pilot, lambda: f"Sample replies after {steps[-1]} steps" in screen_text(pilot), what="the newest again"
        )

        await app.action_show_home()
        await until(pilot, lambda: "‖" in screen_text(pilot), what="the paused run on home")
        assert "r Resume" not in screen_text(pilot)
        app.screen.query_one("#starts", OptionList).highlighted = 3
        await until(pilot, lambda: "r Resume" in screen_text(pilot), what="the offer to go on")
        await pilot.press("r")
        await until(pilot, lambda: app.link.history.step > paused_at, what="a step more")

        await pilot.press("e")
        await until(pilot, lambda: "How should it go on?" in words(pilot), what="the question how")
        last = app.link.history.step + 10
        app.screen.query_one("#max_steps", Input).value = str(last)
        await pilot.press("tab", "enter")
        await until(pilot, lambda: isinstance(app.link.history.ended, Finished), what="the end")
        history = app.link.history
        assert isinstance(history.ended, Finished) and history.ended.status == "done"
        assert last <= history.step == history.total_steps < 500  # more where it was past them already

        await pilot.press("e")
        await until(pilot, lambda: "How should it go on?" in words(pilot), what="the question how")
        app.screen.query_one("#max_steps", Input).value = "lots"
        await pilot.press("enter")
        await until(
            pilot, lambda: "train.max_steps is 'lots' but should be a whole number" in words(pilot), what="the error"
        )
        assert "✔ Done after" in screen_text(pilot) and "Enter: chat with it" in screen_text(pilot), "it is as it was"
        await pilot.press("e")
        await until(pilot, lambda: "How should it go on?" in words(pilot), what="the question how")
        further = history.step + 2
        app.screen.query_one("#max_steps", Input).value = str(further)
        app.screen.query_one("#learning_rate", Input).value = "1e-5"
        await pilot.press("enter")
        await until(
            pilot, lambda: f"✔ Done after {further} steps" in screen_text(pilot), what="the end of what was added"
        )
        assert (run.history().steps[-1].learning_rate or 1) <= 1e-5
