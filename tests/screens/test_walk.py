"""The whole walk with keys alone, against a real session that trains the demo model."""

from pathlib import Path

from textual.widgets._footer import FooterKey

from screens.app import TuituneApp
from screens.chat import ChatScreen
from screens.export import ExportScreen
from tests.screens.conftest import SIZE, screen_text, until
from tuitune.runs.folder import all_runs


def grey(app: TuituneApp) -> dict[str, bool]:
    """Of each entry of the footer, whether it is drawn as one that cannot be used."""
    return {entry.action: entry.has_class("-disabled") for entry in app.screen.query(FooterKey)}


def unusable(app: TuituneApp) -> dict[str, bool]:
    """Of each entry of the footer, whether its key does nothing."""
    bindings = {active.binding.action: not active.enabled for active in app.screen.active_bindings.values()}
    return {action: bindings[action] for action in grey(app)}


async def test_enter_goes_from_the_model_to_an_export(app: TuituneApp, runs_folder: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "demo_model" in screen_text(pilot), what="the model screen")
        await pilot.press("enter")
        await until(pilot, lambda: "tokens trained" in screen_text(pilot), what="the first row's tokens")
        await until(pilot, lambda: grey(app) == unusable(app), seconds=10, what="a true footer")
        await pilot.press("enter")
        await until(pilot, lambda: "3 Settings" in screen_text(pilot), what="the settings")
        await pilot.press("enter")
        await until(pilot, lambda: "✔ Done after 3 steps" in screen_text(pilot), what="the end of the run")
        await until(pilot, lambda: grey(app) == unusable(app), seconds=10, what="a true footer")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ChatScreen), what="the chat")
        await pilot.press(*"hello", "enter")
        chat = app.screen
        assert isinstance(chat, ChatScreen)
        await until(pilot, lambda: not chat.replying and bool(chat.turns), what="a reply")
        await until(pilot, lambda: grey(app) == unusable(app), seconds=10, what="a true footer")
        assert chat.turns[0].said == "hello"
        assert all(reply.text for reply in chat.turns[0].replies.values())
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ExportScreen), what="the exports")
        await until(pilot, lambda: "[✔] adapter" in screen_text(pilot), what="the kinds of export")
        await until(pilot, lambda: grey(app) == unusable(app), seconds=10, what="a true footer")
        await pilot.press("enter")
        await until(pilot, lambda: "Made" in screen_text(pilot), what="the export")
        await until(pilot, lambda: grey(app) == unusable(app), seconds=10, what="a true footer")
    run = all_runs(runs_folder)[0]
    assert run.status() == "done"
    assert list(run.exports.rglob("adapter_model.safetensors"))
