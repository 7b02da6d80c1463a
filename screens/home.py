"""Where one starts without a recipe: this machine at a glance, the runs, a new one."""

from collections.abc import Sequence
from pathlib import Path

import psutil
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

import tuitune
from screens.actions import bind
from screens.gpus import PickGpu, card_line
from screens.run_state import ago, state_of
from screens.step_screen import WalkScreen
from screens.widgets.bars import sparkline
from screens.widgets.paths import PickPath, has_suffix
from screens.widgets.step_bar import StepBar
from tuitune.errors import TuituneError
from tuitune.machine.hardware import Gpu, choose_gpu, chosen_gpu, gpus
from tuitune.runs.folder import all_runs
from tuitune.runs.summary import Summary, steps_text, summarize
from tuitune.text import one_line
from tuitune.units import gib

_SHOWN_RUNS = 30
_HEAD = "Fine-tune a language model, from your data to a chat with the result, in six steps."


class HomeScreen(WalkScreen):
    """This machine and its runs."""

    CSS_PATH = "home.tcss"
    BINDINGS = bind("show_history", "explain", "pick_gpu", "resume")

    class Looked(Message):
        """What was found of the machine and the runs, in a thread."""

        def __init__(self, cards: list[Gpu], machine: Content, runs: list[Summary]) -> None:
            super().__init__()
            self.cards = cards
            self.machine = machine
            self.runs = runs

    class Examined(Message):
        """What the doctor found wrong."""

        def __init__(self, problems: list[Content]) -> None:
            super().__init__()
            self.problems = problems

    def compose(self) -> ComposeResult:
        yield StepBar(None)
        yield Static(Content.assemble((f"tuitune {tuitune.__version__}", "bold"), f"  {_HEAD}"), id="welcome")
        with Vertical(id="machine") as machine:
            machine.border_title = "This machine"
            yield Static("Looking…", id="hardware")
            yield Static(Content.styled("Checked once the libraries are loaded.", "$foreground 60%"), id="problems")
        starts = OptionList(id="starts", markup=False)
        starts.tooltip = "Enter starts a new run, opens a recipe, or goes to the run under the cursor."
        starts.border_title = "Runs: steps, loss, and how long ago"
        yield starts
        yield Static(id="problem")
        yield Footer()

    def on_mount(self) -> None:
        self._list_starts([])
        self.query_one("#starts").focus()

    def on_screen_resume(self) -> None:
        self.show_state()
        self._look()

    def show_state(self) -> None:
        super().show_state()
        if self.tuitune.link.state == "ready" and not self._examined:
            self._examined = True
            self._examine()

    _examined = False
    _cards: Sequence[Gpu] = ()
    _resumable: frozenset[str] = frozenset()
    """Folders of the listed runs that ended before they were done."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "resume":
            return self._highlighted_run in self._resumable
        return len(self._cards) > 1 if action == "pick_gpu" else True

    @property
    def _highlighted_run(self) -> str:
        """The folder of the run under the cursor; empty where none is."""
        option = self.query_one("#starts", OptionList).highlighted_option
        return str(option.id).removeprefix("run:") if option is not None else ""

    @on(OptionList.OptionHighlighted, "#starts")
    def _tell_of_resume(self) -> None:
        self.refresh_bindings()

    async def action_resume(self) -> None:
        try:
            await self.tuitune.open_run(Path(self._highlighted_run))
        except TuituneError as error:
            self.show_problem(error)
        else:
            self.tuitune.link.resume_run()

    async def action_show_history(self) -> None:
        await self.tuitune.action_show_history()

    @work(exit_on_error=False)
    async def action_pick_gpu(self) -> None:
        chosen = chosen_gpu()
        index = await self.app.push_screen_wait(PickGpu(list(self._cards), chosen.index if chosen else None))
        if index is None or (chosen and index == chosen.index):
            return
        try:
            choose_gpu(index)
        except TuituneError as error:  # it has gone since
            self.show_problem(error)
            return
        await self.tuitune.link.change_session()
        self._look()

    @work(thread=True, exclusive=True, group="look", exit_on_error=False)
    def _look(self) -> None:
        choose_gpu()
        cards = gpus()
        machine = _machine(cards, self.tuitune.link.runs_folder)
        runs = [summarize(run) for run in all_runs(self.tuitune.link.runs_folder)[:_SHOWN_RUNS]]
        self.post_message(self.Looked(cards, machine, runs))

    @on(Looked)
    def _show_looked(self, message: Looked) -> None:
        self._cards = message.cards
        ended_early = ("interrupted", "paused", "stopped", "failed")
        self._resumable = frozenset(str(run.folder) for run in message.runs if run.status in ended_early)
        self.refresh_bindings()
        self.query_one("#hardware", Static).update(message.machine)
        self._list_starts(message.runs)

    def _list_starts(self, runs: list[Summary]) -> None:
        starts = self.query_one("#starts", OptionList)
        at = starts.highlighted or 0
        starts.clear_options()
        starts.add_option(Option(Content.styled("+ New run", "bold"), id="new"))
        starts.add_option(Option(Content.styled("+ Run from a recipe file…", "bold"), id="recipe"))
        for run in runs:
            starts.add_option(Option(_run_line(run), id=f"run:{run.folder}"))
        starts.highlighted = min(at, starts.option_count - 1)

    @work(thread=True, exclusive=True, group="examine", exit_on_error=False)
    def _examine(self) -> None:
        from tuitune.machine.doctor import examine

        found = examine(self.tuitune.link.runs_folder)
        wrong = [each for each in found if each.status != "ok"]
        lines = [
            Content.assemble(
                ("✘ ", "$text-error") if each.status == "fail" else ("! ", "$text-warning"),
                (f"{each.name}: ", "bold"),
                one_line(f"{each.text}. {each.remedy or ''}", max_length=400),
            )
            for each in wrong
        ]
        self.post_message(self.Examined(lines))

    @on(Examined)
    def _show_examined(self, message: Examined) -> None:
        text = Content("\n").join(message.problems) if message.problems else Content("✔ Everything needed is here.")
        self.query_one("#problems", Static).update(text)

    # --- choosing ---------------------------------------------------------------------------------------------

    @on(OptionList.OptionSelected, "#starts")
    async def _chosen(self, event: OptionList.OptionSelected) -> None:
        chosen = str(event.option.id)
        if chosen == "new":
            await self.tuitune.new_run(None)
        elif chosen == "recipe":
            self._open_recipe()
        else:
            try:
                await self.tuitune.open_run(Path(chosen.removeprefix("run:")))
            except TuituneError as error:
                self.show_problem(error)

    @work(exit_on_error=False)
    async def _open_recipe(self) -> None:
        picker = PickPath("Which recipe?", Path.cwd(), has_suffix(".yaml", ".yml"))
        path = await self.app.push_screen_wait(picker)
        if path is None:
            return
        try:
            from tuitune.recipe import Recipe

            await self.tuitune.new_run(Recipe.load(path))
        except TuituneError as error:
            self.show_problem(error)


def _machine(cards: list[Gpu], runs_folder: Path) -> Content:
    chosen = chosen_gpu()
    lines = [
        Content.assemble(
            card_line(card, chosen is not None and len(cards) > 1 and card.index == chosen.index),
            f" · driver {one_line(card.driver, max_length=20)}",
        )
        for card in cards
    ] or [Content.assemble(("GPU    ", "$foreground 60%"), "none: training runs on the CPU, which suits small models")]
    memory = psutil.virtual_memory()
    folder = next(each for each in (runs_folder.absolute(), *runs_folder.absolute().parents) if each.is_dir())
    disk = psutil.disk_usage(str(folder))
    lines.append(
        Content.assemble(
            ("RAM    ", "$foreground 60%"),
            f"{gib(memory.available)} of {gib(memory.total)} free · {psutil.cpu_count()} cores",
            ("   Disk  ", "$foreground 60%"),
            f"{gib(disk.free)} free for runs",
        )
    )
    return Content("\n").join(lines)


def _run_line(run: Summary) -> Content:
    return Content.assemble(
        state_of(run),
        (f"{one_line(run.name, max_length=20):<21}", "bold"),
        f"{steps_text(run) or 'no step':<10} {f'{run.losses[-1]:.3f}' if run.losses else '':<7}",
        (f"{sparkline(run.losses, 10):<11}", "$primary"),
        (ago(run), "$foreground 60%"),
    )
