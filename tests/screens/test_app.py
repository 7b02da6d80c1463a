"""How the app behaves around its screens: leaving, a lost session, small terminals, what it keeps."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from textual.content import Content
from textual.events import Resize
from textual.geometry import Size
from textual.message import Message
from textual.widgets import OptionList

from screens.actions import available
from screens.app import TuituneApp
from screens.data import DataScreen
from screens.home import HomeScreen
from screens.lora import LoraScreen
from screens.model import ModelScreen
from screens.run_link import RunLink
from screens.too_small import TooSmall
from screens.train import TrainScreen
from screens.widgets.step_bar import StepTab
from tests.conftest import DEMO
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, settled, until, words
from tuitune.errors import UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.events import Step, to_json
from tuitune.runs.folder import Run, all_runs, create_run
from tuitune.runs.summary import summarize
from tuitune.session.client import Session
from tuitune.session.run_requests import Status, Train
from tuitune.settings import Settings


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session is started."""
    monkeypatch.setattr(RunLink, "_start", lambda self: self._set_state("ready"))


@pytest.mark.fault
async def test_a_lost_session_is_said_once_and_replaced(recipe: Recipe, runs_folder: Path) -> None:
    train = recipe.train.model_copy(update={"max_steps": 500})
    app = TuituneApp(recipe.model_copy(update={"train": train}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.start_run()
        await app.show_step("train")
        await until(pilot, lambda: len(app.link.history.steps) >= 2, what="two steps")
        status = await app.link.call(Status())
        os.kill(status["pid"], signal.SIGKILL)
        told = (
            "was killed by signal 9 (often: memory ran out).",
            "No checkpoint had been saved",
            "r goes on with it.",
            "r: go on with it",
        )

        def said() -> bool:
            shown = " ".join(screen_text(pilot).split())
            return all(sentence in shown for sentence in told)

        await until(pilot, said, what="what has happened and what to do")
        await until(pilot, lambda: app.link.state == "ready", what="a new session")
        assert (await app.link.call(Status()))["pid"] != status["pid"]
        run = all_runs(runs_folder)[0]
        assert run.status() == "interrupted"
        await pilot.press("r")
        await until(pilot, lambda: app.link.is_training and app.link.history.steps[-1].attempt == 2, what="a step more")
        for attempt in (2, 3):  # a stop that was asked for is of its attempt alone
            await pilot.press("s")
            await until(pilot, lambda: "Stop the run after this step?" in words(pilot), what="the question")
            await pilot.press("y")
            await until(pilot, lambda: "Resume" in words(pilot), what="the end")
            started = run.history().started
            assert run.status() == "stopped" and started is not None and started.attempt == attempt
            if attempt == 2:
                await pilot.press("r")
                await until(pilot, lambda: app.link.history.steps[-1].attempt == 3, what="a step more")
                assert "Stopping" not in words(pilot)


@pytest.mark.parametrize("size", [SIZE, (60, 15)], ids=["dashboard", "too small"])
async def test_a_change_of_the_run_is_shown_once(size: tuple[int, int], attached: TuituneApp) -> None:
    changes = []

    def count(message: Message) -> None:
        if isinstance(message, RunLink.RunChanged):
            changes.append(message)

    async with attached.run_test(size=size, message_hook=count) as pilot:
        await until(pilot, lambda: attached.link.history.ended is not None, what="the record")
        await settled(pilot)
        changes.clear()
        attached.post_message(RunLink.RunChanged())
        await settled(pilot)
    assert 1 < len(changes) < 10  # the app and one screen, or two, handle it, and each that it is passed to


async def test_a_record_that_cannot_be_read_is_said_on_the_dashboard(
    attached: TuituneApp, trained: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "runs" / "broken")
    shutil.copytree(trained.folder, run.folder)
    run.events_file.unlink()
    run.events_file.mkdir()
    async with attached.run_test(size=SIZE) as pilot:
        await attached.open_run(run.folder)
        await until(pilot, lambda: "The record of run broken cannot be read" in words(pilot), what="what is wrong")


async def test_a_run_that_ended_before_its_first_step_says_so_and_can_be_gone_on_with(
    recipe: Recipe, runs_folder: Path
) -> None:
    """Also where its record is read only after the dashboard was drawn."""
    run = histories.write(histories.loading(), recipe, runs_folder, "one")
    app = TuituneApp(None, runs_folder=runs_folder, attach=run)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "Interrupted at step 0" in words(pilot), what="the record")
        await until(pilot, lambda: "The session of this run ended before the run did" in words(pilot), what="why")
        await until(pilot, lambda: "r Resume" in screen_text(pilot), what="the key")


async def test_the_draft_outlives_the_session_while_an_older_run_is_on_show(
    attached: TuituneApp, trained: Run, recipe: Recipe, tmp_path: Path
) -> None:
    async with attached.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: attached.link.state == "ready", what="the session")
        assert attached.link.draft.recipe() == trained.recipe(), "what was trained can be changed and trained again"
        await attached.new_run(recipe)
        await attached.show_step("lora")
        os.kill((await attached.link.call(Status()))["pid"], signal.SIGKILL)
        await until(pilot, lambda: attached.link.state == "session lost", what="the loss")
        await until(pilot, lambda: attached.link.state == "ready", what="a new session")
        assert attached.link.draft.recipe() == recipe
        await attached.link.change_session()
        await until(pilot, lambda: attached.link.state == "ready", what="another session")
        attached.link.runs_folder = tmp_path / "new"
        await pilot.press("enter")
        await until(pilot, lambda: bool(all_runs(tmp_path / "new")), what="the run")
        assert all_runs(tmp_path / "new")[0].recipe() == recipe
        await until(pilot, lambda: attached.link.history.ended is not None, what="the run's end")


@pytest.mark.usefixtures("still")
async def test_of_several_live_runs_none_is_shown_unasked(recipe: Recipe, runs_folder: Path) -> None:
    writers = [create_run(recipe, runs_folder, name) for name in ("one", "two")]
    async with TuituneApp(None, runs_folder=runs_folder).run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "one" in screen_text(pilot) and "two" in screen_text(pilot), what="both runs")
        assert isinstance(pilot.app.screen, HomeScreen)
    for writer in writers:
        writer.close()


@pytest.mark.usefixtures("still")
async def test_runs_that_are_listed_while_the_terminal_is_resized_stay(recipe: Recipe, runs_folder: Path) -> None:
    async with TuituneApp(None, runs_folder=runs_folder).run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "GPU" in screen_text(pilot), what="the machine")
        home = pilot.app.screen
        assert isinstance(home, HomeScreen)
        create_run(recipe, runs_folder, "one").close()
        home.post_message(Resize(Size(*SIZE), Size(*SIZE)))
        home.post_message(HomeScreen.Looked([], Content("GPU"), [summarize(Run(runs_folder / "one"))]))
        await until(pilot, lambda: "Runs: 1" in screen_text(pilot), what="the run")
        await settled(pilot)
        assert "Runs: 1" in screen_text(pilot)


@pytest.mark.usefixtures("still")
async def test_a_record_that_is_read_late_is_not_shown_as_another_runs(trained: Run, tmp_path: Path) -> None:
    for name in ("long", "short"):
        shutil.copytree(trained.folder, tmp_path / "runs" / name)
    long, short = Run(tmp_path / "runs" / "long"), Run(tmp_path / "runs" / "short")
    with long.events_file.open("a") as file:
        file.writelines(f"{to_json(step)}\n" for step in histories.training(20_000) if isinstance(step, Step))
    app = TuituneApp(None, runs_folder=tmp_path / "runs")
    async with app.run_test(size=SIZE) as pilot:
        await app.open_run(long.folder)
        await app.open_run(short.folder)
        await until(pilot, lambda: app.link.history.ended is not None, what="the short record")
        await asyncio.to_thread(long.history)  # begun later than the app's reading of it, so it ends later
        await pilot.pause()
        assert app.link.history.step == 1


async def test_another_run_of_the_same_session_is_not_shown_as_the_run_on_show(app: TuituneApp, tmp_path: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await app.start_run()
        await app.show_step("train")
        await until(pilot, lambda: app.link.run is not None and app.link.run.session_socket() is not None, what="a run")
        assert app.link.run is not None
        other = await Session.attach(app.link.run)
        await until(pilot, lambda: app.link.history.ended is not None, what="the run's end")
        await other.call(Train(app.link.draft.as_data(), str(tmp_path / "theirs"), "theirs"))
        await app.link.call(Status())
        assert app.link.history.started is not None
        assert app.link.history.started.run == app.link.run.name
        await other.close()


async def test_who_waits_for_a_session_is_served_by_the_one_that_replaces_it(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE):
        await app.link.change_session()
        asked = asyncio.create_task(app.link.call(Status()))
        await asyncio.sleep(0)  # it waits now for a session that is being started
        await app.link.change_session()
        assert (await asyncio.wait_for(asked, 60))["pid"]


async def test_a_run_is_stopped_by_its_key_and_by_nothing_else(recipe: Recipe, runs_folder: Path) -> None:
    train = recipe.train.model_copy(update={"max_steps": 500})
    app = TuituneApp(recipe.model_copy(update={"train": train}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await app.start_run()
        await app.show_step("train")
        await until(pilot, lambda: len(app.link.history.steps) >= 2, what="two steps")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "Ctrl+C copies what is" in screen_text(pilot), what="how to leave")
        (said,) = (notification.message for notification in app._notifications)
        assert "^q leaves the app; the run goes on then. s on its dashboard stops it." in said
        await pilot.press("s")
        await until(pilot, lambda: "Stop the run after this step?" in words(pilot), what="the question")
        await pilot.press("escape")
        steps = len(app.link.history.steps)
        await until(pilot, lambda: len(app.link.history.steps) > steps + 1, what="the run goes on")
        await pilot.press("s")
        await until(pilot, lambda: "Stop the run after this step?" in words(pilot), what="the question again")
        await pilot.press("y")
        await until(pilot, lambda: "✔ Stopped after" in screen_text(pilot), what="the run has stopped")
        assert "Enter: chat with it" in screen_text(pilot) and "Messages" in screen_text(pilot)
        assert app.link.run is not None
        later = TuituneApp(None, runs_folder=runs_folder, attach=app.link.run)
    async with later.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "✔ Stopped after" in screen_text(pilot), what="the record")
        assert later.link.draft.recipe().train.max_steps == 500, "what was trained can be changed and trained again"


async def test_a_small_terminal_is_told_the_size_and_nothing_is_lost(
    recipe: Recipe, runs_folder: Path, still: None
) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.resize_terminal(60, 20)
        await until(pilot, lambda: isinstance(app.screen, TooSmall), seconds=5)
        assert "80×20" in screen_text(pilot) and "60×20" in screen_text(pilot)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: isinstance(app.screen, ModelScreen), seconds=5)
        assert app.focused is not None and app.focused.id == "name"


async def test_escape_leads_back_to_home(recipe: Recipe, runs_folder: Path, still: None) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        assert isinstance(app.screen, LoraScreen)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DataScreen), seconds=5)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelScreen), seconds=5)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), seconds=5)


async def test_steps_that_cannot_be_gone_to_say_why(recipe: Recipe, runs_folder: Path, still: None) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await until(pilot, lambda: "Chat" in screen_text(pilot), seconds=5)
        await pilot.click(app.screen.query(StepTab)[4])
        await until(pilot, lambda: "There is nothing trained" in screen_text(pilot), seconds=5)
        assert isinstance(app.screen, ModelScreen)


@pytest.mark.parametrize("step", ["model", "data", "lora", "train", "chat", "export"])
async def test_every_action_of_a_screen_is_in_the_palette(
    step: str, recipe: Recipe, runs_folder: Path, still: None
) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=(100, 60)) as pilot:
        app.link.run = Run(runs_folder / "x")
        app.link.run.adapter.mkdir(parents=True)
        await app.show_step(step)  # type: ignore[arg-type]
        await pilot.pause()
        here = [action.label for action, _ in available(app.screen)]
        await pilot.press("ctrl+p")
        await until(pilot, lambda: all(label in screen_text(pilot) for label in here[:10]), seconds=10, what=str(here))


async def test_wrong_settings_are_marked_where_they_stand(recipe: Recipe, runs_folder: Path, still: None) -> None:
    app = TuituneApp(recipe, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("lora")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: app.focused is not None and app.focused.parent is not None, seconds=5)
        await settled(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "lora.r is 'x'" in screen_text(pilot), seconds=5)
        assert "✘" in screen_text(pilot)
        with pytest.raises(UnusableInput, match=r"lora\.r"):
            await app.start_run()


async def test_a_rolled_back_history_is_drawn_as_it_now_is(recipe: Recipe, runs_folder: Path, still: None) -> None:
    from screens.widgets.metric_plot import Curves

    history = histories.of(histories.training(20))
    curves = Curves()
    curves.follow(history)
    resumed = history.steps[9]
    history.add(resumed)
    curves.follow(history)
    steps, losses = curves.of("loss")
    assert list(steps) == list(range(1, 11))
    assert list(losses) == [step.loss for step in history.steps]
    drawn_anew = Curves()
    drawn_anew.follow(history)
    assert list(curves.smoothed[1]) == list(drawn_anew.smoothed[1])


async def test_the_dashboard_is_a_function_of_the_events(recipe: Recipe, runs_folder: Path, still: None) -> None:
    async def drawn() -> str:
        app = TuituneApp(recipe, runs_folder=runs_folder)
        async with app.run_test(size=SIZE) as pilot:
            app.link.run = Run(runs_folder / "pirate-1")
            app.link.history = histories.of(histories.finished())
            await app.show_step("train")
            await settled(pilot)
            assert isinstance(app.screen, TrainScreen)
            return screen_text(pilot)

    assert await drawn() == await drawn()


def test_settings_are_kept_and_nonsense_in_them_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "config" / "settings.json"
    settings = Settings.load(file)
    settings.theme, settings.folded = "colour-blind-safe", True
    settings.save()
    assert Settings.load(file) == settings
    file.write_text('{"theme": 5, "folded": "yes", "ascii": true, "unknown": 1}')
    assert Settings.load(file) == Settings(ascii=True)
    file.write_text("[" * 100_000)
    assert Settings.load(file) == Settings()


async def test_a_chosen_theme_is_kept(recipe: Recipe, tmp_path: Path, still: None) -> None:
    file = tmp_path / "settings.json"
    app = TuituneApp(recipe, runs_folder=tmp_path, settings=Settings.load(file))
    async with app.run_test(size=SIZE) as pilot:
        app.theme = "colour-blind-safe"
        await pilot.pause()
        await asyncio.sleep(0)
    assert Settings.load(file).theme == "colour-blind-safe"


async def test_another_gpu_is_chosen_with_a_new_session(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards are made up, at NVML's edge; the session is real."""
    from tests.engine.test_hardware import FakeNvml
    from tuitune.machine import hardware

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(hardware, "_connected", FakeNvml)
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "GPU 1" in screen_text(pilot) and app.link.state != "starting…", what="the cards")
        first = (await app.link.call(Status()))["pid"]
        await pilot.press("g")
        await until(pilot, lambda: "Which GPU?" in screen_text(pilot), what="the choice")
        await pilot.press("down", "enter")
        await until(pilot, lambda: os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb", what="the second card")
        assert (await app.link.call(Status()))["pid"] != first
        await until(pilot, lambda: "in use here" in screen_text(pilot), what="the mark")


@pytest.mark.usefixtures("still")
async def test_a_typed_model_is_told_of_before_it_is_gone_on_from(runs_folder: Path) -> None:
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        await pilot.press(*str(DEMO / "demo_model"), "enter")
        await until(pilot, lambda: "holds a whole model: Enter goes on" in words(pilot), what="what it is")
        assert isinstance(app.screen, ModelScreen)
        await pilot.press("x")
        await until(pilot, lambda: "holds a whole model" not in words(pilot), what="nothing on another name")
        await pilot.press("enter")
        await until(pilot, lambda: "demo_modelx does not exist" in words(pilot), what="why not")
        await pilot.press("backspace", "enter")
        await until(pilot, lambda: "holds a whole model: Enter goes on" in words(pilot), what="what it is")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DataScreen), what="the data")


@pytest.mark.usefixtures("still")
async def test_a_model_in_the_folder_one_is_in_is_found_by_its_bare_name(
    runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEMO)
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        await pilot.press(*"demo_model")
        await until(pilot, lambda: "a model folder" in words(pilot), what="what stands there")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DataScreen), what="the data")
        assert app.link.draft.get("model.name") == "demo_model"


@pytest.mark.usefixtures("still")
async def test_down_goes_from_the_field_to_the_line_that_is_shown(runs_folder: Path) -> None:
    app = TuituneApp(None, runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("model")
        models = app.screen.query_one("#models", OptionList)
        await until(pilot, lambda: models.option_count > 2, what="the list")
        shown = models.highlighted
        await pilot.press("down")
        assert models.has_focus
        assert models.highlighted == shown
        await pilot.press("down")
        assert models.highlighted != shown
