"""Taking a run home through a real session: several kinds at once, what went wrong, and a session that is killed."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from screens.app import TuituneApp
from screens.export import ExportScreen
from screens.widgets.tick import TickList
from tests.screens.conftest import SIZE, screen_text, settled, until, words
from tuitune.export import export, llama_cpp
from tuitune.runs.folder import Run
from tuitune.session.run_requests import Status


async def export_of(pilot: Pilot[int]) -> ExportScreen:
    app = pilot.app
    assert isinstance(app, TuituneApp)
    await app.show_step("export")
    screen = app.screen
    assert isinstance(screen, ExportScreen)
    await until(pilot, lambda: "[✔] adapter" in screen_text(pilot), what="the kinds of export")
    return screen


async def test_several_kinds_at_once_and_the_lines_to_take_them_home(attached: TuituneApp, tmp_path: Path) -> None:
    async with attached.run_test(size=(100, 40)) as pilot:
        screen = await export_of(pilot)
        screen.query_one("#out", Input).value = str(tmp_path / "out")
        await pilot.press(*["down"] * 12, "space", "enter")
        await until(pilot, lambda: screen.query_one("#made").has_focus, what="what was made")
        await settled(pilot)
        shown = screen_text(pilot)
        assert "✔ adapter" in shown and "scp -r" in shown and "Made · Enter copies a line" in shown
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter", "script"}


async def test_a_folder_is_seen_from_where_the_app_was_started(
    attached: TuituneApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        monkeypatch.chdir(tmp_path)  # where the session, which lives longer than an app, was not started
        screen.query_one("#out", Input).value = "mine"
        await pilot.press("enter")
        await until(pilot, lambda: screen.query_one("#made").has_focus, what="what was made")
        assert (tmp_path / "mine" / "adapter").is_dir()


async def test_an_export_that_fails_says_what_to_do_and_can_be_tried_again(
    attached: TuituneApp, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    async with attached.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        out = screen.query_one("#out", Input)
        out.value = str(tmp_path / "file")
        await pilot.press("enter")
        await until(pilot, lambda: "(File exists)" in words(pilot), seconds=20, what="why not")
        assert "choose another folder" in words(pilot) and "--out" not in words(pilot)
        out.value = str(tmp_path / "out")
        await pilot.press("enter")
        await until(pilot, lambda: "✔ adapter" in screen_text(pilot), what="the adapter")


async def test_one_that_fails_is_said_beside_what_was_made_and_both_are_told_from_what_was_made_before(
    attached: TuituneApp, trained: Run, tmp_path: Path
) -> None:
    (tmp_path / "out" / "script").mkdir(parents=True)  # the user's own, so it is not replaced
    async with attached.run_test(size=(100, 40)) as pilot:
        screen = await export_of(pilot)
        screen.query_one("#out", Input).value = str(tmp_path / "out")
        await pilot.press(*["down"] * 12, "space", "enter")
        await until(pilot, lambda: screen.query_one("#made").has_focus, what="what was made")
        await settled(pilot)
        assert "✘ script · " in words(pilot) and "is not an export of tuitune's" in words(pilot)
        assert "✔ adapter · " in words(pilot) and "made earlier" not in words(pilot)
        await screen.action_export_now().wait()
        assert len(screen._made) == 1 and not screen._earlier, "the same place is not listed twice"


async def test_what_can_be_made_is_looked_at_anew_after_an_export_and_a_folder_is_shown_before_it_is_used(
    attached: TuituneApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    async with attached.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        assert "✔ ready" not in words(pilot) and "can be made" in words(pilot)
        screen.query_one("#out", Input).focus()
        await pilot.press(*str(tmp_path / "out"), "enter")
        await until(pilot, lambda: screen.query_one("#kinds").has_focus, seconds=10, what="the kinds")
        assert f"Enter makes them in {tmp_path}"[:40] in words(pilot) and not screen.exporting
        await pilot.press("home", *["down"] * 5)
        await until(pilot, lambda: "you will be asked before it is downloaded" in words(pilot), what="the question")
        for name in ("conversion", "gguf-py/gguf"):  # as the export of another app on this machine may leave it
            (llama_cpp.converter_folder() / name).mkdir(parents=True)
        for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
            (llama_cpp.converter_folder() / name).touch()
        await pilot.press("enter")
        await until(pilot, lambda: screen.query_one("#made").has_focus, what="what was made")
        await until(pilot, lambda: not screen.kinds["gguf:q8_0"].get("question"), what="no question any more")
        assert screen.query_one(TickList).ticked == {"adapter"}
        assert (tmp_path / "out" / "adapter").is_dir()


async def test_what_was_made_earlier_is_there_when_the_screen_opens_and_says_whether_it_still_holds(
    trained: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "runs" / trained.name)
    shutil.copytree(trained.folder, run.folder)
    exports = [*export(run, ["adapter", "script"], None, lambda *_: None, lambda question: False, lambda: False)]
    assert len(exports) == 2
    config = run.adapter / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    (run.adapter / "manifest.json").unlink()  # as one is told to who changed it
    async with TuituneApp(None, runs_folder=run.folder.parent, attach=run).run_test(size=(100, 60)) as pilot:
        screen = await export_of(pilot)
        await settled(pilot)
        assert screen.query_one("#kinds").has_focus, "choosing comes first"
        assert "✔ script · made earlier · " in words(pilot)
        assert words(pilot).count("adapter has changed since") == 2
        await pilot.press("enter")
        await until(pilot, lambda: screen.query_one("#made").has_focus, what="what was made")
        await settled(pilot)
        assert words(pilot).count("made earlier") == words(pilot).count("adapter has changed since") == 1


async def test_a_session_killed_during_an_export_is_said_and_replaced(attached: TuituneApp, tmp_path: Path) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        screen = await export_of(pilot)
        screen.query_one("#out", Input).value = str(tmp_path / "out")
        pid = (await attached.link.call(Status()))["pid"]
        os.kill(pid, signal.SIGSTOP)  # so that it cannot be done before it is killed
        await pilot.press("enter")
        await until(pilot, lambda: "Waiting for the session" in screen_text(pilot), seconds=10)
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: "killed by signal 9" in screen_text(pilot), seconds=10, what="what happened")
        assert not screen.exporting
        await pilot.press("enter")
        await until(pilot, lambda: "✔ adapter" in screen_text(pilot), what="the adapter")


async def test_with_a_repository_the_kinds_of_the_hub_are_there_and_say_why_not(attached: TuituneApp) -> None:
    """The tests' sessions have no token, which is said of these kinds alone, before any work."""
    async with attached.run_test(size=(100, 40)) as pilot:
        screen = await export_of(pilot)
        assert not any(kind.startswith("hub:") for kind in screen.kinds)
        assert "Takes " in words(pilot) and "on the disk while it is made" in words(pilot)
        screen.query_one("#hub", Input).focus()
        await pilot.press(*"pirate", "enter")
        await until(pilot, lambda: "hub:adapter" in screen.kinds, seconds=30, what="the kinds of the Hub")
        assert "There is no Hub token here" in screen.kinds["hub:adapter"]["missing"]
        assert screen.kinds["adapter"]["ready"]
        screen.query_one("#kinds", TickList).highlighted = list(screen.kinds).index("hub:adapter")
        await until(pilot, lambda: "with a token that may write" in words(pilot), seconds=10, what="why not")
