"""Every screen and dialog in 80 columns, in each language: no text of ours is cut off by its place."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from textual.content import Content
from textual.pilot import Pilot
from textual.widgets import ContentSwitcher, DataTable, Input, OptionList, Static, TextArea

from screens.app import ScreenName, TuituneApp
from screens.chat import ChatScreen
from screens.compare import CompareScreen
from screens.data import DataScreen
from screens.endings import EndingsScreen
from screens.export import ExportScreen
from screens.lora import LoraScreen, meaning_of
from screens.run_link import RunLink
from screens.templates import PickTemplate
from screens.too_small import COLUMNS, LINES
from screens.train import TrainScreen
from screens.widgets.fields import FieldLine
from screens.widgets.tick import TickList
from tests.conftest import DEMO
from tests.screens import histories
from tests.screens.conftest import SIZE, screen_text, until
from tests.screens.cut_texts import cut_in, cut_texts
from tests.screens.machine import NAME, be_the_machine, write_nvml
from tuitune.chat.conversation import Reply, Side
from tuitune.documents.passage import Passage
from tuitune.language import _, languages, use
from tuitune.methods import METHODS
from tuitune.plan import catalogue
from tuitune.recipe import Recipe, section_of
from tuitune.runs.events import Event, Finished, Price
from tuitune.runs.folder import Run
from tuitune.session.run_requests import EndingStatus
from tuitune.settings import Settings

LEAST = (COLUMNS, LINES)
LONG = "a-run-with-a-name-as-long-as-names-may-get"


class Walk:
    """An app that is led from screen to screen, and what was found to be cut on the way."""

    def __init__(self, pilot: Pilot[int], outside: list[str]) -> None:
        self.pilot = pilot
        self.outside = outside
        self.cut: dict[str, str] = {}

    @property
    def app(self) -> TuituneApp:
        assert isinstance(self.pilot.app, TuituneApp)
        return self.pilot.app

    async def look(self, name: str, *, usual: bool = False) -> None:
        """Note what is cut in as few lines as the app can be shown in; `usual`: and in as many as terminals have."""
        await self.note(name)
        if usual:
            await self.pilot.resize_terminal(*SIZE)
            await self.note(f"{name}, in {SIZE[1]} lines")
            await self.pilot.resize_terminal(*LEAST)

    async def note(self, place: str) -> None:
        """Note what is cut; where the screen has not come to rest yet, what is cut then."""
        texts: list[str] = ["not looked at yet"]
        for _attempt in range(5):
            await self.still()
            if not (texts := cut_texts(self.app.screen, self.outside)):
                return
            await self.pilot.pause(0.1)
        for text in texts:
            self.cut.setdefault(text, place)

    async def explain(self, lines: Iterable[FieldLine], meaning_of: Callable[[FieldLine], Content]) -> None:
        """Have what each field means shown in its place, as the focus does, and note what is cut."""
        place = self.app.screen.query_one("#meaning", Static)
        for line in lines:
            place.update(meaning_of(line), layout=False)
            if cut_in(place, ()):  # its place grows, up to a point
                place.refresh(layout=True)
                await self.note(line.field)

    async def still(self) -> None:
        before = ""
        while before != (now := screen_text(self.pilot)):
            before = now
            await self.pilot.pause(0.02)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        await until(self.pilot, holds, seconds=25, what=what)

    async def go(self, step: ScreenName) -> None:
        await self.app.show_step(step)
        await self.pilot.pause()

    async def over(self, key: str, name: str) -> None:
        """Look at what a key lays over the screen, and take it away by Esc."""
        below = self.app.screen
        await self.press(key)
        await self.until(lambda: self.app.screen is not below, name)
        await self.look(name)
        await self.press("escape")
        await self.until(lambda: self.app.screen is below, f"what was below {name}")

    async def help(self, name: str) -> None:
        self.app.set_focus(None)
        await self.over("f1", f"help of {name}")


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    yield
    use("en")


@pytest.fixture
def runs(trained: Run, tmp_path: Path) -> Path:
    """Runs in every state, one of which was really trained."""
    runs = tmp_path / "runs"
    shutil.copytree(trained.folder, runs / LONG)
    recipe = Recipe.load(DEMO / "demo.yaml")
    day = 86_400.0
    for name, events in {
        "done": histories.finished(histories.AT - day / 8),
        "failed": histories.failed(histories.AT - day / 4),
        "interrupted": histories.training(12, at=histories.AT - 300 * day),
    }.items():
        histories.write(events, recipe, runs, name)
    (tmp_path / "unknown.jsonl").write_text(json.dumps({"frage": "What is 1?", "antwort": "It is 1."}))
    rows = [{"question": f"Count to {n}!", "answer": ", ".join(map(str, range(n)))} for n in range(1, 90)]
    rows += [rows[3], rows[3], {"question": "And then?", "answer": ""}, {"text": "Ahoy!"}]
    (tmp_path / "odd.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return runs


@pytest.mark.parametrize("language", languages())
async def test_no_text_is_cut(language: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvml").mkdir()
    write_nvml(tmp_path / "nvml")
    be_the_machine(tmp_path / "nvml", monkeypatch)
    monkeypatch.chdir(tmp_path)
    use(language)
    app = TuituneApp(None, runs_folder=runs, attach=Run(runs / LONG), settings=Settings(reduced_motion=True))
    outside = [LONG, NAME, "https://", str(tmp_path), str(DEMO / "demo_model"), str(DEMO / "pirate.jsonl")]
    outside += [*(model.name for model in catalogue.known_models()), (tmp_path / "odd.jsonl").read_text()]
    outside += [file.read_text() for file in DEMO.glob("*.jsonl")]
    async with app.run_test(size=LEAST) as pilot:
        walk = Walk(pilot, outside)
        await lead(walk, monkeypatch)
    assert not walk.cut, "\n".join(f"{place}: {text}" for text, place in walk.cut.items())


async def test_a_text_that_is_cut_is_found_wherever_it_stands(runs: Path) -> None:
    app = TuituneApp(None, runs_folder=runs, attach=Run(runs / LONG))
    async with app.run_test(size=LEAST) as pilot:
        walk = Walk(pilot, [LONG])
        await walk.go("history")
        await walk.until(lambda: app.screen.query_one(DataTable).row_count > 3, "the runs")
        await walk.press("slash")
        await walk.until(lambda: app.screen.query_one("#filter").has_focus, "the filter")
        await walk.note("as it is")
        assert not walk.cut
        long = "a text of ours that is longer than what the place has in which it stands " * 2
        app.screen.query_one("#about-run", Static).update(long)
        app.screen.query_one("#filter", Input).placeholder = long
        app.screen.query_one("#runs").border_title = long
        await walk.note("with longer texts")
        for name in ("Static#about-run", "Input#filter", "DataTable#runs"):
            assert any(text.startswith(name) for text in walk.cut), walk.cut


async def lead(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    app = walk.app
    await walk.until(lambda: app.link.state == "ready" and app.link.history.ended is not None, "the session")
    runs, empty = app.link.runs_folder, app.link.runs_folder.parent / "empty"
    await dashboards(walk, monkeypatch)
    await home(walk, runs, empty)
    await history(walk, empty)
    await model(walk)
    await data(walk, runs.parent)
    await settings(walk)
    await chat(walk)
    await export(walk)
    await dialogs(walk)


async def dashboards(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    app, real = walk.app, walk.app.link.history
    screen = app.screen
    assert isinstance(screen, TrainScreen)
    live = {"loading": histories.loading(), "training": histories.training(), "overfitting": histories.overfitting()}
    ended = {"done": histories.finished(), "failed": histories.failed(), "paused": paused()}
    ended["interrupted"] = histories.of_pairs()
    for names, training in ((live, True), (ended, False)):
        with monkeypatch.context() as patched:
            patched.setattr(RunLink, "is_training", training)
            for name, events in names.items():
                app.link.history = histories.of(events)
                app.link.history.attempts[-1].price = Price(per_hour=36.0, currency="$")
                screen.draw()
                screen.refresh_bindings()
                await walk.look(f"train, {name}", usual=True)
                for _pane in range(3 if name in ("overfitting", "done") else 0):
                    await walk.press("l")
                    await walk.look(f"train, {name}, {screen.query_one('#lower', ContentSwitcher).current}")
                for _metric in range(4 if name == "training" else 0):
                    await walk.press("m")
                    await walk.look(f"train, {name}, another curve")
            if training:
                screen._stopping[screen._attempt] = "Stopping after this step; s again: now"
                screen.draw()
                await walk.look("train, stopping")
                await walk.over("s", "the question to stop")
                await walk.over("p", "the question to pause")
    await walk.help("train")
    app.link.history = real
    screen.draw()


def paused() -> Iterator[Event]:
    yield from histories.training()
    yield Finished(at=histories.NOW, status="paused", step=40, seconds=95.0, adapter=None)


async def home(walk: Walk, runs: Path, empty: Path) -> None:
    app = walk.app
    await walk.go("home")
    starts = app.screen.query_one("#starts", OptionList)
    await walk.until(lambda: starts.option_count > 3 and "…" not in text_of(app, "#hardware"), "the runs")
    await walk.look("home", usual=True)
    starts.highlighted = 3
    await walk.look("home, a run")
    await walk.over("x", "the question to delete")
    await walk.press("slash")
    await walk.look("home, finding")
    await walk.press("escape")
    await walk.help("home")
    starts.focus()
    starts.highlighted = 1
    await walk.over("enter", "the choice of a recipe")
    app.link.runs_folder = empty
    await walk.go("model")
    await walk.go("home")
    await walk.until(lambda: str(starts.options[0].id) == "demo", "no runs")
    await walk.look("home without runs")
    app.link.runs_folder = runs


async def history(walk: Walk, empty: Path) -> None:
    app, runs = walk.app, walk.app.link.runs_folder
    app.link.runs_folder = empty
    await walk.go("history")
    await walk.until(lambda: bool(text_of(app, "#about-run")), "nothing")
    await walk.look("history without runs")
    app.link.runs_folder = runs
    await walk.go("home")
    await walk.go("history")
    table = app.screen.query_one(DataTable)
    await walk.until(lambda: table.row_count > 3, "the runs")
    await walk.look("history", usual=True)
    for key in ("r", "n"):
        await walk.over(key, f"history, {key}")
    await walk.press("c")
    await walk.look("history, nothing marked")
    await walk.press("slash", *"none")
    await walk.look("history, nothing found")
    await walk.press("escape")
    await walk.help("history")
    table.focus()
    await walk.press("home", *["space"] * 4)
    await walk.look("history, marked")
    await walk.press("c")
    await walk.until(
        lambda: isinstance(app.screen, CompareScreen) and app.screen.query_one(DataTable).row_count > 0, ""
    )
    await walk.look("compare", usual=True)
    await walk.press("m")
    await walk.look("compare, training loss")
    await walk.press("escape")


async def model(walk: Walk) -> None:
    app = walk.app
    await walk.app.new_run(None)
    screen = app.screen
    models = screen.query_one("#models", OptionList)
    await walk.look("model, at once")
    await walk.until(lambda: models.option_count > 5, "the models")
    await walk.look("model", usual=True)
    for text in ("/nowhere", "~/", "no such model", "someone/something"):
        screen.query_one("#name", Input).value = text
        await walk.press("enter")
        await walk.look(f"model {text}")
    await walk.help("model")


async def data(walk: Walk, folder: Path) -> None:
    app = walk.app
    recipe = Recipe.load(DEMO / "demo.yaml")
    app.link.runs_folder = folder / "empty"
    await app.new_run(None, "data")
    screen = app.screen
    assert isinstance(screen, DataScreen)
    await walk.look("data, nothing chosen")
    await walk.over("ctrl+f", "the choice of a file")
    await walk.over("ctrl+s", "the datasets of the Hub")
    await walk.press("enter")
    await walk.look("data, what is missing")
    await walk.go("model")
    columns = {**recipe.model_dump(mode="json"), "data": {"path": str(folder / "unknown.jsonl")}}
    await app.new_run(Recipe.from_data(columns), "data")
    await walk.until(lambda: app.screen.query_one("#problem").display, "unknown columns")
    await walk.look("data, unknown columns")
    await walk.over("ctrl+o", "the columns")
    await walk.go("model")
    odd = {**recipe.model_dump(mode="json"), "data": {"path": str(folder / "odd.jsonl"), "max_length": 48}}
    await app.new_run(Recipe.from_data(odd), "data")
    screen = app.screen
    assert isinstance(screen, DataScreen)
    await walk.until(
        lambda: "\n" in text_of(app, "#summary") and "!" in text_of(app, "#summary"), "what cannot be used"
    )
    await walk.look("data", usual=True)
    await walk.help("data")
    await walk.over("ctrl+g", "the question for a row")
    app.push_screen(PickTemplate())
    await walk.look("the templates")
    await walk.press("escape")
    await walk.press("ctrl+t")
    await walk.until(lambda: screen.query_one("#views", ContentSwitcher).current == "audit", "the audit")
    await walk.look("audit", usual=True)
    await walk.press("enter")
    await walk.look("data, a finding's row")


async def settings(walk: Walk) -> None:
    app = walk.app
    await app.new_run(Recipe.load(DEMO / "demo.yaml"), "lora")
    screen = app.screen
    assert isinstance(screen, LoraScreen)
    await walk.look("settings, at once")
    goals = screen.query_one("#goals", OptionList)
    for place in range(goals.option_count):
        goals.highlighted = place
        await walk.until(lambda: text_of(app, "#consequences").count("\n") > 4, "the estimate")
        await walk.look(f"settings, goal {place}")
    await walk.help("settings")
    await walk.press("ctrl+t")
    await walk.look("settings, field by field", usual=True)
    lines = [*screen.query(FieldLine)]
    for method in METHODS:
        fields = section_of("method", method).model_fields.items()
        lines += [FieldLine(f"method.{name}", info, None) for name, info in fields if name != "name"]
    await walk.explain(lines, meaning_of)
    await walk.press("ctrl+t")
    await walk.look("settings, YAML")
    screen.query_one("#yaml", TextArea).text = "model: [\n"
    await walk.look("settings, wrong YAML")


async def chat(walk: Walk) -> None:
    app = walk.app
    await app.new_run(Recipe.load(DEMO / "demo.yaml"))
    await walk.go("chat")
    screen = app.screen
    assert isinstance(screen, ChatScreen)
    await walk.look("chat, empty")
    await walk.over("ctrl+b", "who answers")
    await walk.over("ctrl+d", "the documents")
    await walk.press("ctrl+o")
    await walk.look("chat, sampling")
    await walk.explain(screen.query(FieldLine), lambda line: Content(_(line.info.description or "")))
    await walk.press("ctrl+o")
    await walk.press("ctrl+t")
    await walk.look("chat, another preset")
    screen.sides = [Side(screen.run_on_show.folder), Side(screen.run_on_show.folder, adapter=False)]
    screen.documents = [Path("/documents/about.md"), Path("/documents/more.md")]
    screen._show_mode()
    turn = screen.dialogue.say("What is the capital of France?")
    turn.passages = [Passage("cities.md", "Paris lies on the Seine.", "France", 3, 9)]
    cut = Reply("Arr! Paris", 14, 0.5, 0.12, ended=False, seed=3, unseen=12, kept="corrected")
    turn.replies = dict(zip(screen.sides, (cut, Reply("Paris.", 8, 0.25, 0.1, stopped=True)), strict=True))
    await screen.show_branch()
    await walk.look("chat", usual=True)
    await walk.press("ctrl+up")
    await walk.look("chat, a reply")
    await walk.over("c", "the correction")
    await walk.press("up", "up")
    await walk.look("chat, passages")
    await walk.over("1", "a passage")
    await walk.press("up")
    await walk.look("chat, what was said")
    await walk.press("e")
    await walk.look("chat, said anew")


async def export(walk: Walk) -> None:
    app = walk.app
    await walk.go("export")
    screen = app.screen
    assert isinstance(screen, ExportScreen)
    await walk.look("export, at once")
    await walk.until(lambda: bool(screen.kinds), "the kinds")
    kinds = screen.query_one("#kinds", TickList)
    kinds.focus()
    for place in range(kinds.option_count):
        kinds.highlighted = place
        if place % 4 == 1:
            await walk.look(f"export, {list(screen.kinds)[place]}")
    await walk.help("export")
    screen._show_progress({"kind": "merged_16bit", "text": "Writing", "done": 3, "total": 9})
    screen.query_one("#progress").display = True
    await walk.look("export, at work")
    screen._hide_progress()
    await walk.press("tab", "tab")
    await walk.look("export, a repository")
    kinds.focus()
    kinds.highlighted = 0
    await walk.press("enter")
    await walk.until(lambda: screen.query_one("#made").has_focus, "what was made")
    await walk.look("export, made", usual=True)


async def dialogs(walk: Walk) -> None:
    app = walk.app
    await walk.go("train")
    await walk.press("f3")
    await walk.until(lambda: isinstance(app.screen, EndingsScreen), "costs and endings")
    for entry in app.screen.query(Input):
        entry.focus()
        await walk.look(f"costs and endings, {entry.id}")
    app.screen.query_one("#price", Input).value = "cheap"
    await walk.press("enter")
    await walk.look("costs and endings, what is wrong")
    await walk.press("escape")
    await walk.over("e", "the question how to go on")
    ending = EndingStatus(run=LONG, command="sh -c 'sudo poweroff'", state="counting", seconds=7.4)
    app.post_message(RunLink.EndingTold(ending))
    await walk.look("the countdown")


def text_of(app: TuituneApp, query: str) -> str:
    return str(app.screen.query_one(query, Static).render())
