"""Taking a run home through a real session: several kinds at once, what went wrong, and a session that is killed."""

import os
import signal
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from screens.app import TuituneApp
from screens.export import ExportScreen
from tests.screens.conftest import SIZE, screen_text, settled, until
from tuitune.run import Run


@pytest.fixture
def exporting(trained: Run) -> TuituneApp:
    return TuituneApp(None, runs_folder=trained.folder.parent, attach=trained)


async def export_of(pilot: Pilot[int]) -> ExportScreen:
    app = pilot.app
    assert isinstance(app, TuituneApp)
    await app.show_step("export")
    screen = app.screen
    assert isinstance(screen, ExportScreen)
    await until(pilot, lambda: "[✔] adapter" in screen_text(pilot), what="the kinds of export")
    return screen


def words(pilot: Pilot[int]) -> str:
    return " ".join(screen_text(pilot).split())


async def test_several_kinds_at_once_and_the_lines_to_take_them_home(exporting: TuituneApp, tmp_path: Path) -> None:
    async with exporting.run_test(size=(100, 40)) as pilot:
        screen = await export_of(pilot)
        screen.query_one("#out", Input).value = str(tmp_path / "out")
        await pilot.press(*["down"] * 5, "space", "enter")
        await until(pilot, lambda: screen.query_one("#made").display, what="what was made")
        await settled(pilot)
        shown = screen_text(pilot)
        assert "✔ adapter" in shown and "scp -r" in shown and "Made · Enter copies a line" in shown
        assert {each.name for each in (tmp_path / "out").iterdir()} == {"adapter", "script"}
        assert screen.query_one("#made").has_focus


async def test_an_export_that_fails_says_what_to_do_and_can_be_tried_again(
    exporting: TuituneApp, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    async with exporting.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        out = screen.query_one("#out", Input)
        out.value = str(tmp_path / "file")
        await pilot.press("enter")
        await until(pilot, lambda: "(File exists)" in words(pilot), seconds=20, what="why not")
        assert "choose another with --out" in words(pilot)
        out.value = str(tmp_path / "out")
        await pilot.press("enter")
        await until(pilot, lambda: "✔ adapter" in screen_text(pilot), what="the adapter")


async def test_a_session_killed_during_an_export_is_said_and_replaced(exporting: TuituneApp, tmp_path: Path) -> None:
    async with exporting.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        screen.query_one("#out", Input).value = str(tmp_path / "out")
        pid = (await exporting.call("status"))["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it cannot be done before it is killed
        await pilot.press("enter")
        await until(pilot, lambda: "Waiting for the session" in screen_text(pilot), seconds=10)
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: "ended unexpectedly" in screen_text(pilot), seconds=10, what="what happened")
        assert not screen.exporting
        await pilot.press("enter")
        await until(pilot, lambda: "✔ adapter" in screen_text(pilot), what="the adapter")
