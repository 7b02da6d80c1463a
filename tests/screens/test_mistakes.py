"""What a user types wrong and takes back: no screen ends by it, and each tells of what stands in its fields."""

from pathlib import Path

from textual.events import Key, Paste
from textual.widgets import Input, OptionList, Static

from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.documents import DocumentsScreen
from screens.widgets.fields import FieldLine
from screens.widgets.paths import PickPath, has_suffix
from screens.widgets.prompt import Prompt
from tests.conftest import DEMO
from tests.screens.conftest import SIZE, screen_text, settled, until, words
from tuitune.recipe import Recipe

TOO_LONG = f"/tmp/{'x' * 300}"
"""A name that no file system takes: `Path.exists` raises."""


async def test_a_wrong_number_of_a_row_is_told_until_a_row_is_shown(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "Row 1 of 400" in screen_text(pilot), what="the first row")
        await pilot.press("ctrl+g", "home", "shift+end", *"abc", "enter")
        await until(pilot, lambda: "abc is not a row" in screen_text(pilot), what="why not")
        await pilot.press("ctrl+g", "home", "shift+end", *"7", "enter")
        await until(pilot, lambda: "Row 7 of 400" in screen_text(pilot), what="the row")
        assert "abc" not in screen_text(pilot)


async def test_yaml_that_is_wrong_means_nothing_until_it_is_mended(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await until(pilot, lambda: "400 rows" in screen_text(pilot), what="what it means")
        await pilot.press("ctrl+t", "ctrl+t")
        await settled(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "xmodel:  ✘" in screen_text(pilot), what="the mark")
        means = app.screen.query_one("#consequences", Static)
        assert not str(means.render())
        await app.show_step("data")
        await app.show_step("lora")
        await settled(pilot)
        assert "xmodel:  ✘" in screen_text(pilot)
        assert not str(means.render()), "nothing is told of settings that are not on show"
        await pilot.press("home", "delete")
        await until(pilot, lambda: "400 rows" in str(means.render()), what="what the mended recipe means")


async def test_what_was_wrong_with_the_data_is_not_told_of_other_data(recipe: Recipe, runs_folder: Path) -> None:
    data = recipe.data.model_copy(update={"path": "/nowhere.jsonl"})
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await until(pilot, lambda: "There is no dataset file" in screen_text(pilot), what="what is wrong")
        app.link.draft.set("data.path", recipe.data.path)
        await app.show_step("model")
        await app.show_step("lora")
        await until(pilot, lambda: "400 rows" in screen_text(pilot), what="what it means")
        assert "There is no dataset file" not in screen_text(pilot)


async def test_rewards_are_edited_as_yaml_beside_a_field_that_is_wrong(recipe: Recipe, runs_folder: Path) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        app.link.draft.set("method.name", "grpo")
        await app.show_step("lora")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: bool(app.screen.query("#method-rewards")), what="the lines of GRPO")
        rewards = app.screen.query_one("#method-rewards", FieldLine)
        assert not rewards.query(Input) and not rewards.is_changed
        app.screen.query_one("#lora-r Input", Input).value = ""
        await until(pilot, lambda: "lora.r is ''" in words(pilot), what="the wrong field")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "Settings: YAML" in screen_text(pilot), what="the YAML")
        assert {"name": "numeric_match"}.items() <= app.link.draft.get("method.rewards")[0].items()


async def test_paths_that_are_no_files_are_told_of(runs_folder: Path) -> None:
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        for screen in (PickPath("Which?", DEMO, has_suffix(".yaml")), DocumentsScreen([])):
            app.push_screen(screen)
            await until(pilot, lambda screen=screen: app.screen is screen, what="the question")  # type: ignore[misc]
            entry = screen.query_one(Input)
            entry.value = TOO_LONG
            await pilot.press("enter")
            await until(pilot, lambda: "There is no such file" in screen_text(pilot), what="why not")
            if isinstance(screen, PickPath):
                entry.value = str(DEMO)
                await pilot.press("enter")
                await until(pilot, lambda: "That is a folder" in screen_text(pilot), what="why not")
            app.pop_screen()


async def test_a_file_is_no_model_and_the_cursor_stands_behind_what_was_taken(
    recipe: Recipe, runs_folder: Path
) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        name = app.screen.query_one("#name", Input)
        await until(pilot, lambda: "Llama 3" in screen_text(pilot), what="the list")
        name.value = recipe.data.path
        await pilot.press("enter")
        await until(pilot, lambda: "is a file: give the folder of a whole model" in words(pilot), what="why not")
        name.value = "qwen3-0.6"
        await until(pilot, lambda: "Llama 3" not in screen_text(pilot), what="the models that match")
        await pilot.press("enter", "x")
        assert name.value.endswith("x")


async def test_letters_faster_than_the_focus_and_a_paste_reach_the_field(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        await until(pilot, lambda: "Llama 3" in screen_text(pilot), what="the list")
        models = app.screen.query_one("#models", OptionList)
        models.focus()
        await pilot.pause()
        for letter in "/data/llama_3-8b.v2":
            models.post_message(Key(letter, letter))
        await until(pilot, lambda: app.focused is not models, what="the focus")
        await pilot.pause()
        name = app.screen.query_one("#name", Input)
        assert name.value == "/data/llama_3-8b.v2"
        models.focus()
        await pilot.pause()
        app.post_message(Paste("/data/other model\n"))
        await until(pilot, lambda: name.value == "/data/other model", what="what was pasted")


async def test_nothing_is_asked_with_sampling_settings_that_are_wrong(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        await attached.show_step("chat")
        chat = attached.screen
        assert isinstance(chat, ChatScreen)
        await pilot.press("ctrl+o")
        chat.query_one("#top_p Input", Input).value = ""
        await until(pilot, lambda: "top_p is ''" in screen_text(pilot), what="what is wrong")
        chat.query_one("#top_k Input", Input).value = "20"
        await pilot.pause()
        assert "top_p is ''" in screen_text(pilot), "it is still so when another field is right"
        await pilot.press("ctrl+o", *"hi", "enter")
        await pilot.pause()
        assert not chat.turns and chat.query_one("#prompt", Prompt).text == "hi"
        assert "top_p is ''" in screen_text(pilot)
        await pilot.press("ctrl+t")  # a preset says what every field is
        await pilot.press("enter")
        await until(pilot, lambda: len(chat.turns) == 1 and not chat.replying, what="a reply")
        assert "top_p is ''" not in screen_text(pilot)


async def test_a_kind_that_is_chosen_takes_back_that_none_was(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        await attached.show_step("export")
        await until(pilot, lambda: "can be made" in screen_text(pilot), what="what can be made")
        await settled(pilot)
        title = str(attached.screen.query_one("#kinds").border_subtitle)
        assert len(title) < SIZE[0] - 6, "the line holds it"
        await pilot.press("space", "enter")
        await until(pilot, lambda: "Choose at least one kind" in screen_text(pilot), what="what to do")
        await pilot.press("space")
        await until(pilot, lambda: "Choose at least one kind" not in screen_text(pilot), what="nothing is wrong")
