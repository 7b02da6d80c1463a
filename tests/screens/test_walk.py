"""The whole walk with keys alone, against a real session that trains the demo model."""

from pathlib import Path

from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.export import ExportScreen
from tests.screens.conftest import SIZE, screen_text, until
from tuitune.run import all_runs


async def test_enter_goes_from_the_model_to_an_export(app: TuituneApp, runs_folder: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "demo_model" in screen_text(pilot), what="the model screen")
        await pilot.press("enter")
        await until(pilot, lambda: "tokens trained" in screen_text(pilot), what="the first row's tokens")
        await pilot.press("enter")
        await until(pilot, lambda: "3 Settings" in screen_text(pilot), what="the settings")
        await pilot.press("enter")
        await until(pilot, lambda: "✔ Done after 3 steps" in screen_text(pilot), what="the end of the run")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), what="the chat")
        await pilot.press(*"hello", "enter")
        chat = app.screen
        assert isinstance(chat, ChatScreen)
        await until(pilot, lambda: not chat.replying and bool(chat.turns), what="a reply")
        assert chat.turns[0].said == "hello"
        assert chat.turns[0].replies["adapter"]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ExportScreen), what="the exports")
        await until(pilot, lambda: "[✔] adapter" in screen_text(pilot), what="the kinds of export")
        await pilot.press("enter")
        await until(pilot, lambda: "Made" in screen_text(pilot), what="the export")
    run = all_runs(runs_folder)[0]
    assert run.status() == "done"
    assert list(run.exports.rglob("adapter_model.safetensors"))
