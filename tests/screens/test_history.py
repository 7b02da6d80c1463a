"""The history screen: every run found, compared, repeated, renamed, noted and deleted by keys."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from screens.actions import available
from screens.app import TuituneApp
from screens.compare import CompareScreen
from screens.history import HistoryScreen
from screens.home import HomeScreen
from screens.model import ModelScreen
from screens.run_link import RunLink
from screens.train import TrainScreen
from screens.widgets.axes import Axes
from screens.widgets.overlay_plot import LETTERS, OverlayPlot, cells_of
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, until, words
from tuitune.recipe import Recipe
from tuitune.runs.events import Evaluation, Started, Step
from tuitune.runs.folder import Run, RunWriter, all_runs
from tuitune.runs.manage import write_note
from tuitune.runs.summary import note_of, summarize


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history needs none."""
    monkeypatch.setattr(RunLink, "_start", lambda self: self._set_state("ready"))


def changed(recipe: Recipe, learning_rate: float) -> Recipe:
    train = recipe.train.model_copy(update={"learning_rate": learning_rate})
    return recipe.model_copy(update={"train": train})


@pytest.fixture
def runs(recipe: Recipe, runs_folder: Path) -> Path:
    """Four runs: two that are done, at different rates; one that failed; one that was interrupted, the newest."""
    histories.write(histories.finished(histories.AT - 4_000), recipe, runs_folder, "usual")
    low = histories.slower(histories.finished(histories.AT - 3_000))
    histories.write(low, changed(recipe, 1e-4), runs_folder, "low-rate")
    histories.write(histories.failed(histories.AT - 2_000), recipe, runs_folder, "broken")
    histories.write(histories.training(at=histories.AT), recipe, runs_folder, "going")
    return runs_folder


@pytest.fixture
def app(runs_folder: Path) -> TuituneApp:
    return TuituneApp(None, runs_folder=runs_folder)


async def opened(pilot: Pilot[int], runs: int) -> HistoryScreen:
    """Go from home to the history, and wait until it shows so many runs."""
    await until(pilot, lambda: isinstance(pilot.app.screen, HomeScreen), what="home")
    await pilot.press("h")
    await until(pilot, lambda: listed(pilot) == runs, what=f"{runs} runs")
    assert isinstance(pilot.app.screen, HistoryScreen)
    return pilot.app.screen


def listed(pilot: Pilot[int]) -> int | None:
    screen = pilot.app.screen
    return screen.query_one(DataTable).row_count if isinstance(screen, HistoryScreen) else None


def names(pilot: Pilot[int]) -> list[str]:
    """The runs in the table, from its top."""
    table = pilot.app.screen.query_one(DataTable)
    return [Path(str(key.value)).name for key in table.rows]


async def test_every_run_is_listed_the_newest_first(app: TuituneApp, runs: Path) -> None:
    write_note(Run(runs / "going"), "the one to watch \x1b]52;c;ZXZpbA==\x07 [/b]")
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        assert names(pilot) == ["going", "broken", "low-rate", "usual"]
        shown = words(pilot)
        assert "✘ interrupted going 40/60" in shown and "✔ done usual 60/60 3.100 → 0.536 2 min 21 s" in shown
        assert "the one to watch" in shown and "[/b]" in shown and "\x1b" not in screen_text(pilot)
        assert "Runs: 4" in shown


async def test_an_empty_history_says_what_to_do(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 0)
        await until(pilot, lambda: "There is no run yet. Esc goes home" in words(pilot), what="the sentence")
        for key in ("space", "c", "d", "r", "n", "x", "enter"):
            await pilot.press(key)
        assert isinstance(app.screen, HistoryScreen)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), what="home")


async def test_typed_words_narrow_the_list_and_escape_shows_all(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await pilot.press("slash", *"done", "space", *"LOW")
        await until(pilot, lambda: names(pilot) == ["low-rate"], what="one run")
        assert "Runs: 1 of 4" in words(pilot)
        await pilot.press(*"x")
        await until(pilot, lambda: "No run has all of these words" in words(pilot), what="none")
        await pilot.press("escape")
        await until(pilot, lambda: listed(pilot) == 4, what="all")
        assert not app.screen.query_one(Input).display and isinstance(app.screen.focused, DataTable)


async def test_marked_runs_are_compared(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await pilot.press("c")
        await until(pilot, lambda: "Mark two to 6 runs" in words(pilot), what="the hint")
        await pilot.press("down", "down", "space", "space")
        assert "2 marked" in words(pilot) and screen_text(pilot).count("◆") == 2
        await pilot.press("c")
        await until(pilot, lambda: "train.learning_rate" in words(pilot), what="the difference")
        assert isinstance(app.screen, CompareScreen)
        shown = screen_text(pilot)
        assert "train.learning_rate  0.0001  0.0002" in shown and "Held-out loss over steps" in shown
        assert "A low-rate" in shown and "B usual" in shown
        plot = shown[shown.index("Held-out loss") :]
        assert plot.count("A") >= 4 and plot.count("B") >= 4, "each point bears the letter of its run"
        await pilot.press("m")
        await until(pilot, lambda: "Training loss over steps, smoothed" in words(pilot), what="the training loss")
        await pilot.press("escape")
        await until(pilot, lambda: listed(pilot) == 4, what="the history")
        assert "2 marked" in words(pilot), "the marks stay"


async def test_runs_without_held_out_rows_or_with_other_data_are_compared_and_said_to(
    app: TuituneApp, recipe: Recipe, runs: Path
) -> None:
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": 32})})
    events = [event for event in histories.finished() if not isinstance(event, Evaluation)]
    histories.write(iter(events), other, runs, "other")
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 5)
        await pilot.press("space", "c")
        await until(pilot, lambda: "data.max_length" in words(pilot), what="the difference")
        assert "Their data differ: the losses are of different tokens." in words(pilot)
        assert "Training loss over steps, smoothed" in words(pilot)


async def test_a_recipe_that_cannot_be_read_hides_no_curve(app: TuituneApp, runs: Path) -> None:
    (runs / "usual" / "recipe.yaml").write_text("model: [")
    (runs / "low-rate" / "events.jsonl").unlink()
    (runs / "low-rate" / "events.jsonl").mkdir()
    async with app.run_test(size=SIZE) as pilot:
        screen = await opened(pilot, 4)
        screen._marked = {str(run.folder) for run in all_runs(runs)}
        await pilot.press("c")
        await until(pilot, lambda: "is not valid YAML" in words(pilot), what="the sentence")
        assert app.screen.query_one(OverlayPlot).display


async def test_a_recipe_is_duplicated_into_the_steps(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await pilot.press("down", "down", "d")
        await until(pilot, lambda: isinstance(app.screen, ModelScreen), what="the first step")
        assert app.link.draft.get("train.learning_rate") == 1e-4
        assert app.link.draft.recipe() == Run(runs / "low-rate").recipe()


async def test_enter_opens_the_runs_dashboard(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen), what="the dashboard")
        assert app.link.run == Run(runs / "broken")


async def asked(pilot: Pilot[int], key: str) -> None:
    """Press a key that asks for a line of text, and wait until it can be written."""
    await pilot.press(key)
    await until(pilot, lambda: isinstance(pilot.app.focused, Input), what="the question")


async def test_a_run_is_noted_and_renamed_also_the_one_on_show(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await app.open_run(runs / "going")
        await app.show_step("history")
        await until(pilot, lambda: listed(pilot) == 4, what="the history")
        await asked(pilot, "n")
        await pilot.press(*"too slow", "enter")
        await until(pilot, lambda: "note too slow" in words(pilot), what="the note")
        assert note_of(Run(runs / "going")) == "too slow"
        await asked(pilot, "r")
        await pilot.press("ctrl+u", *"slow-one", "enter")
        await until(pilot, lambda: "slow-one" in names(pilot), what="the new name")
        assert app.link.run == Run(runs / "slow-one") and not (runs / "going").exists()
        await asked(pilot, "r")
        await pilot.press("ctrl+u", *"a/b", "enter")
        await until(pilot, lambda: "cannot be a folder name" in words(pilot), what="the refusal")
        await asked(pilot, "r")
        await pilot.press("escape")
        assert names(pilot)[0] == "slow-one"


async def test_deleting_asks_and_enter_keeps(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 4)
        await app.open_run(runs / "broken")
        await app.show_step("history")
        await until(pilot, lambda: listed(pilot) == 4, what="the history")
        await pilot.press("home", "down", "x")
        await until(pilot, lambda: "Delete Run broken for good?" in words(pilot), what="the question")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, HistoryScreen), what="the history")
        assert (runs / "broken").is_dir()
        await pilot.press("x")
        await until(pilot, lambda: "for good?" in words(pilot), what="the question")
        await pilot.press("y")
        await until(pilot, lambda: listed(pilot) == 3, what="three runs")
        assert not (runs / "broken").exists() and app.link.run is None
        await app.show_step("train")
        assert isinstance(app.screen, HistoryScreen), "nothing is on show"


async def test_a_live_run_is_kept_and_followed(app: TuituneApp, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("screens.history._LOOK_AGAIN_SECONDS", 1.0)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), what="home")  # which a live run would replace
        writer = RunWriter(Run(runs / "going"))
        writer.append(Started(at=histories.NOW, run="going", attempt=2, pid=1))
        await opened(pilot, 4)
        assert "▶ live going 40/60" in words(pilot)
        writer.append(Step(attempt=2, step=41, total_steps=60, epoch=1.0, loss=0.4))
        await until(pilot, lambda: "▶ live going 41/60" in words(pilot), what="the next step")
        await pilot.press("down", "down", "down", "x")  # the other records are written as of years to come
        await until(pilot, lambda: "for good?" in words(pilot), what="the question")
        await pilot.press("y")
        await until(pilot, lambda: "is in use by" in words(pilot), what="the refusal")
        assert (runs / "going" / "recipe.yaml").exists()
    writer.close()


async def test_a_thousand_runs_are_walked(app: TuituneApp, runs: Path) -> None:
    summarize(Run(runs / "usual"))
    for number in range(996):
        shutil.copytree(runs / "usual", runs / f"copy-{number}")
    async with app.run_test(size=SIZE) as pilot:
        await opened(pilot, 1_000)
        await pilot.press("slash", *"copy-99")
        await until(pilot, lambda: listed(pilot) == 7, what="copy-99 and copy-990 to copy-995")
        await pilot.press("escape", "end")
        await until(pilot, lambda: listed(pilot) == 1_000, what="all")


async def test_the_history_is_in_the_palette_everywhere_and_its_key_is_homes(app: TuituneApp, runs: Path) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), what="home")
        keys = {action.name: action.key for action, _ in available(app.screen)}
        assert keys["show_history"] == "h"
        await app.show_step("model")
        keys = {action.name: action.key for action, _ in available(app.screen)}
        assert keys["show_history"] == ""


def test_curves_are_told_apart_without_colour() -> None:
    x = np.arange(200.0)
    curves = [(x, np.sin(x / 30) + number) for number in range(len(LETTERS))]
    rows = cells_of(curves, Axes.around(curves, 70, 16))
    text = ["".join(character for character, _ in row) for row in rows]
    assert all(sum(line.count(letter) for line in text) >= 4 for letter in LETTERS)
    assert {kind for row in rows for _, kind in row} == {*LETTERS.lower(), "axis"}
    drawn = [sum(kind == letter for row in rows for _, kind in row) for letter in LETTERS.lower()]
    assert len(set(drawn)) == len(LETTERS), "each has dashes of its own"


def test_a_curve_of_one_point_or_none_is_drawn() -> None:
    point, nothing = (np.array([3.0]), np.array([1.0])), (np.empty(0), np.empty(0))
    rows = cells_of([nothing, point], Axes.around([nothing, point], 20, 4))
    assert [character for row in rows for character, _ in row if character != " "] == ["B"]
