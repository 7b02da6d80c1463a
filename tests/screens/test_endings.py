"""What a run costs and what follows its end, as the app asks for it and shows it."""

from pathlib import Path

import pytest
from textual.widgets import Input

from screens.app import TuituneApp
from screens.dashboard import headline
from screens.endings import CountdownScreen, EndingsScreen
from screens.train import TrainScreen
from tests.screens import histories
from tests.screens.conftest import SIZE, until, words
from tuitune.runs.events import Finished, Notice, Price
from tuitune.runs.folder import Run
from tuitune.settings import Settings, settings_file


async def test_the_dialog_keeps_what_can_be_used_and_says_what_cannot(attached: TuituneApp) -> None:
    attached.settings = Settings(file=settings_file(), folded=True)
    async with attached.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: isinstance(attached.screen, TrainScreen), what="the dashboard")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(attached.screen, EndingsScreen), what="the dialog")
        for field, wrong, said in (
            ("price", "cheap", "is not an amount"),
            ("then", "no-such-command", "There is no command"),
            ("webhook", "file:///etc/passwd", "address cannot be used"),
            ("ntfy", "a b", "address cannot be used"),
        ):
            entry = attached.screen.query_one(f"#{field}", Input)
            entry.focus()
            entry.value = wrong
            await pilot.press("enter")
            await until(pilot, lambda said=said: said in words(pilot), what=said)  # type: ignore[misc]
            assert isinstance(attached.screen, EndingsScreen) and not settings_file().exists()
            entry.value = ""
        attached.screen.query_one("#price", Input).value = "€2"
        attached.screen.query_one("#ntfy", Input).value = "topic-nobody-knows"
        assert "topic-nobody-knows" not in words(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(attached.screen, TrainScreen), what="the dashboard again")
        kept = Settings.load(settings_file())
        assert (kept.price, kept.ntfy, kept.folded) == ("€2", "topic-nobody-knows", True)
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(attached.screen, EndingsScreen), what="the dialog")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(attached.screen, TrainScreen), what="the dashboard again")


async def test_a_command_is_counted_down_to_and_cancelled_by_esc(app: TuituneApp, tmp_path: Path) -> None:
    app.settings = Settings(file=settings_file())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.link.state == "ready", what="a session")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(app.screen, EndingsScreen), what="the dialog")
        app.screen.query_one("#then", Input).value = f"touch {tmp_path / 'ran'}"
        app.screen.query_one("#price", Input).value = "3 credits"
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, EndingsScreen), what="the model screen")
        await app.start_run()
        await app.show_step("train")
        await until(pilot, lambda: isinstance(app.screen, CountdownScreen), what="the countdown")
        await until(pilot, lambda: "This is run in" in words(pilot) and "touch" in words(pilot), what="the command")
        run = app.link.run
        assert run is not None and isinstance(app.link.history.ended, Finished)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, CountdownScreen), what="the dashboard")
        await until(pilot, lambda: "is not run: it was cancelled" in notices(run)[-1], what="the notice")
        assert "credits" in words(pilot) and app.link.then == ""
    assert not (tmp_path / "ran").exists()


def notices(run: Run) -> list[str]:
    return [event.text for event in run.events() if isinstance(event, Notice)]


@pytest.mark.parametrize("currency", ["$", "a\x1b]0;b\x07[bold]"])
def test_the_headline_tells_what_a_run_costs(currency: str) -> None:
    history = histories.of(histories.finished())
    assert "$" not in headline(history, None, is_training=False, problem=None).plain
    history.attempts[-1].price = Price(per_hour=100.0, currency=currency)
    shown = headline(history, None, is_training=False, problem=None).plain
    assert "3.92" in shown and "\x1b" not in shown and "\x07" not in shown


async def test_in_ascii_a_currency_is_told_by_its_letters_as_soon_as_that_is_chosen(attached: TuituneApp) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: bool(attached.link.history.attempts), what="the record")
        attached.link.history.attempts[-1].price = Price(per_hour=3600.0, currency="€")
        attached.action_toggle_ascii()
        await until(pilot, lambda: " EUR" in words(pilot), what="the currency")
        attached.action_toggle_ascii()
        await until(pilot, lambda: "€" in words(pilot), what="the currency's sign")


def test_a_live_run_tells_what_it_will_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    history = histories.of(histories.training())
    history.attempts[-1].price = Price(per_hour=36.0, currency="$")
    monkeypatch.setattr("time.time", lambda: histories.NOW)
    shown = headline(history, None, is_training=True, problem=None).plain
    assert shown.endswith("· 1 min 35 s so far · $0.95 of about $1.35")
