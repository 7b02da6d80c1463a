"""Keys that mean the same everywhere, and what the footer says of them at 80 columns."""

from functools import partial
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList
from textual.widgets._footer import FooterKey

from screens.app import ScreenName, TuituneApp
from screens.help import HelpScreen
from screens.run_link import RunLink
from screens.step_screen import WalkScreen
from screens.widgets.footer import Footer
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, settled, until, words
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run


@pytest.fixture
def app(recipe: Recipe, runs_folder: Path) -> TuituneApp:
    """An app that shows a run which is done, so that each step can be gone to."""
    run = histories.write(histories.finished(), recipe, runs_folder, "one")
    run.adapter.mkdir()
    return TuituneApp(recipe, runs_folder=runs_folder, attach=run)


def is_at(app: TuituneApp, step: str) -> bool:
    return isinstance(app.screen, WalkScreen) and step == app.screen.STEP


async def test_every_entry_of_the_footer_is_seen_whole_at_80_columns(
    app: TuituneApp, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screens: tuple[ScreenName, ...] = ("home", "history", "model", "data", "lora", "train", "chat", "export")

    async def look(name: str) -> None:
        await settled(pilot)
        entries = list(app.screen.query(FooterKey))
        palette = next(entry for entry in entries if entry.has_class("-command-palette"))
        others = [entry for entry in entries if entry is not palette]
        assert max(entry.region.right for entry in others) <= palette.region.x, f"{name}: {screen_text(pilot)}"

    async with app.run_test(size=SIZE) as pilot:
        for name in screens:
            await app.show_step(name)
            await look(name)
        app.link.run, app.link.history = Run(runs_folder / "pirate-1"), histories.of(histories.training())
        monkeypatch.setattr(RunLink, "is_training", True)
        await app.show_step("train")
        app.screen.refresh_bindings()
        await until(pilot, lambda: "p Pause" in screen_text(pilot), what="the keys of a live run")
        await look("train, while it trains")


async def test_a_footer_that_is_gone_makes_no_entries(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        footer = app.screen.query_one(Footer)
        await until(pilot, lambda: bool(footer.query(FooterKey)), seconds=20, what="the entries")
        await footer.remove()
        await footer.recompose()  # asked for a moment before, as when the screen ends
        assert not footer.query(FooterKey)


async def test_digits_go_to_the_steps_where_nothing_is_written(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        for key, step in (("3", "lora"), ("1", "model"), ("4", "train")):
            app.set_focus(None)
            await pilot.press(key)
            await until(pilot, partial(is_at, app, step), what=step)
        await app.show_step("model")
        await pilot.press(*"33")
        assert app.screen.query_one("#name", Input).value.endswith("33"), "a field takes them"


async def test_letters_typed_in_the_list_of_models_go_to_the_filter(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        await until(pilot, lambda: "Llama 3" in screen_text(pilot), what="the list")
        models = app.screen.query_one("#models", OptionList)
        models.focus()
        await pilot.press(*"qwen3-0.6")
        assert app.screen.query_one("#name", Input).value == "qwen3-0.6"
        await until(pilot, lambda: "Qwen3-0.6B" in screen_text(pilot) and "Llama 3" not in screen_text(pilot))


async def test_help_begins_with_the_screens_keys_and_explains_its_words(app: TuituneApp) -> None:
    async with app.run_test(size=(120, 120)) as pilot:
        await app.show_step("train")
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        text = words(pilot)
        places = [text.index(word) for word in ("Curve:", "smoothed:", "grad norm:", "Quit:")]
        assert places == sorted(places)


async def test_home_offers_the_demo_finds_runs_and_deletes_one(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "+ Try the demo" in screen_text(pilot), what="the first row")
        for name in ("one", "other"):
            histories.write(histories.finished(), recipe, runs_folder, name)
        await app.show_step("model")
        await app.show_step("home")
        await until(pilot, lambda: "3.100 → 0.536" in screen_text(pilot), what="the runs")
        assert "+ Try the demo" not in screen_text(pilot)
        await pilot.press("slash", *"oth", "enter")
        await until(pilot, lambda: "Runs: 1 of 2" in screen_text(pilot), what="the run that was sought")
        await pilot.press("x")
        await until(pilot, lambda: "Delete (y)" in words(pilot), what="the question")
        await pilot.press("n")
        assert (runs_folder / "other").is_dir()
        await pilot.press("x")
        await until(pilot, lambda: "Delete (y)" in words(pilot), what="the question")
        await pilot.press("y")
        await until(pilot, lambda: not (runs_folder / "other").exists(), what="it is gone")
        await pilot.press("escape")
        await until(pilot, lambda: "Runs: 1 " in screen_text(pilot), what="the run that is left")
