"""The screens in Japanese: chosen at once, kept, and in their place at 80 columns."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from textual.widgets._footer import FooterKey

from screens.app import ScreenName, TuituneApp
from screens.line_breaks import WORD, break_wide_text
from screens.steps import STEP_NAMES
from screens.widgets.footer import Footer
from screens.widgets.step_bar import StepTab
from tests.screens.conftest import SIZE, screen_text, until
from tuitune.language import language, use
from tuitune.settings import Settings


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
