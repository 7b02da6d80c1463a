"""The screens in Japanese: chosen at once, kept, and in their place at 80 columns."""

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from babel.messages.pofile import read_po
from rich.console import Console
from rich.text import Text
from textual.widgets._footer import FooterKey

from screens.app import ScreenName, TuituneApp
from screens.appearance import as_ascii
from screens.chat import ChatScreen
from screens.line_breaks import WORD, break_wide_text
from screens.steps import STEP_NAMES
from screens.widgets.footer import Footer
from screens.widgets.prompt import Prompt
from screens.widgets.step_bar import StepTab
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, settled, until, words
from tuitune.chat.conversation import Reply, Side
from tuitune.language import FOLDER, language, use
from tuitune.machine import doctor
from tuitune.recipe import Recipe
from tuitune.runs.summary import model_name, summarize
from tuitune.settings import Settings


def test_no_sign_of_our_own_texts_is_lost_in_ascii() -> None:
    catalogues = [read_po(file.open("rb")) for file in sorted((FOLDER / "ja").glob("*.po"))]
    signs = {sign for catalogue in catalogues for message in catalogue for sign in "".join(message.id)} - {"?"}
    assert not {sign for sign in signs if "?" in as_ascii(sign)}
    assert as_ascii("≤ 4 GiB – “café”") == '< 4 GiB - "cafe"'


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    yield
    use("en")


async def test_another_language_is_chosen_at_home_and_kept(runs_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    app = TuituneApp(None, runs_folder=runs_folder, settings=Settings.load(file))
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "This machine" in screen_text(pilot), what="home")
        await pilot.press("l")
        await until(pilot, lambda: "このマシン" in screen_text(pilot) and "進む" in screen_text(pilot), what="Japanese")
        assert "1 モデル" in screen_text(pilot) and "This machine" not in screen_text(pilot)
        assert Settings.load(file).language == language() == "ja"
        await pilot.press("l")
        await until(pilot, lambda: "This machine" in screen_text(pilot), what="English")


async def test_an_open_chat_is_worded_anew_and_nothing_of_it_is_lost(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        await attached.show_step("chat")
        chat = attached.screen
        assert isinstance(chat, ChatScreen)
        adapter = chat.sides[0]
        chat.sides.append(Side(adapter.run, adapter=False))
        turn = chat.dialogue.say("Who are you?")
        turn.replies = {adapter: Reply("Arr!", 3, 1.0, kept="good"), chat.sides[1]: Reply("A model.", 4, 1.0)}
        await chat.show_branch()
        await pilot.press("ctrl+t", *"half a")
        await until(pilot, lambda: "kept as good" in words(pilot) and "base model" in words(pilot), what="the replies")
        sampling = chat.sampling
        assert sampling
        await attached.show_step("home")
        await pilot.press("l")
        await until(pilot, lambda: "このマシン" in screen_text(pilot), what="Japanese")
        await attached.show_step("chat")
        await until(pilot, lambda: "「良い応答」" in words(pilot), what="how it was kept")
        assert "ベースモデル" in words(pilot) and "base model" not in words(pilot) and "Arr!" in words(pilot)
        assert chat.is_current and chat.sampling == sampling and chat.turns == [turn]
        assert isinstance(chat.focused, Prompt) and chat.focused.text == "half a"


async def test_what_was_looked_at_in_the_language_before_is_not_shown(
    runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor takes seconds: its findings of before may come after those of now."""
    asked, go_on, probe = threading.Event(), threading.Event(), doctor._probe

    def wait_in_english(code: str, *arguments: str) -> dict[str, Any]:
        if language() == "en":
            asked.set()
            go_on.wait(60)
            asked.clear()
        return probe(code, *arguments)

    monkeypatch.setattr(doctor, "_probe", wait_in_english)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, asked.is_set, what="the doctor at work")
        await pilot.press("l")
        await until(pilot, lambda: "NVIDIA GPUが見つかりません" in words(pilot), what="the findings in Japanese")
        go_on.set()
        await until(pilot, lambda: not asked.is_set(), what="the end of the first examination")
        await settled(pilot)
        assert "NVIDIA GPUが見つかりません" in words(pilot) and "no NVIDIA GPU" not in words(pilot)


def test_a_recipe_that_cannot_be_read_is_told_in_the_readers_language(recipe: Recipe, runs_folder: Path) -> None:
    run = histories.write(histories.finished(), recipe, runs_folder, "broken")
    run.recipe_file.write_text("model: [")
    use("ja")
    assert model_name(summarize(run)) == "読み取れないレシピ"
    assert summarize(run).as_dict()["model"] == "unreadable recipe", "what is exported is in no language"


async def test_why_rows_are_left_out_is_told_in_the_readers_language(
    recipe: Recipe, runs_folder: Path, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    rows = [*({"messages": turns} for _row in range(5)), {"messages": turns[:1]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    use("ja")
    app = TuituneApp(
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(file)})}), runs_folder=runs_folder
    )
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "6行" in words(pilot), what="the rows")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "除外：assistantの発話がありません" in words(pilot), what="why a row is left out")


async def test_footers_and_step_names_fit_in_japanese(attached: TuituneApp) -> None:
    use("ja")
    async with attached.run_test(size=SIZE) as pilot:
        steps: tuple[ScreenName, ...] = ("home", "history", *STEP_NAMES)
        for step in steps:
            await attached.show_step(step)
            footer = attached.screen.query_one(Footer)
            await until(pilot, partial(shows_keys, footer), what=f"the footer of {step}")
            keys = [key for key in footer.query(FooterKey) if not key.has_class("-command-palette")]
            palette = footer.query_one("FooterKey.-command-palette")
            assert keys[-1].region.right <= palette.region.x, f"the footer of {step}:\n{screen_text(pilot)}"
            assert all(tab.region.right <= SIZE[0] for tab in attached.screen.query(StepTab)), step


def test_lines_of_japanese_are_filled_and_begin_with_no_full_stop() -> None:
    break_wide_text()
    text = Text("実行 demo を削除しますか？ 記録（1.2 MB）が、すべて消えます。")
    lines = [line.plain.rstrip() for line in text.wrap(Console(), 20)]
    assert lines == ["実行 demo を削除しま", "すか？ 記録（1.2", "MB）が、すべて消えま", "す。"]


def test_lines_of_other_texts_are_broken_at_spaces() -> None:
    text = "  Löss 4.2 → 3.7,  a “mask”…\n\tname=a/b‑c  ✔ 100 %  "
    assert WORD.findall(text) == re.findall(r"\s*\S+\s*", text)


def shows_keys(footer: Footer) -> bool:
    return len(footer.query(FooterKey)) > 1 and bool(footer.query("FooterKey.-command-palette"))
