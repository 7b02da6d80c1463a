"""Where one starts without a recipe: this machine at a glance, the runs, a new one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

import tuitune
from screens.actions import bind
from screens.confirm import ConfirmScreen
from screens.gpus import PickGpu, card_line
from screens.run_state import state_style, state_text
from screens.run_table import RunTable
from screens.step_screen import WalkScreen
from screens.widgets.entry import Entry
from screens.widgets.footer import Footer
from screens.widgets.paths import PickPath, has_suffix
from screens.widgets.scrolled import Scrolled
from screens.widgets.step_bar import StepBar
from screens.widgets.tick import ChoiceList
from tuitune.errors import TuituneError
from tuitune.language import N_, _, language, languages, use
from tuitune.machine.hardware import Gpu, choose_gpu, chosen_gpu, gpus
from tuitune.runs.folder import Run, all_runs
from tuitune.runs.manage import delete, deletion_question
from tuitune.runs.summary import Summary, model_text, summarize
from tuitune.text import one_line
from tuitune.units import gib

_SHOWN_RUNS = 30
_HEAD = N_("Fine-tune a language model, from your data to a chat with the result, in six steps.")


class HomeScreen(WalkScreen):
    """This machine and its runs."""

    CSS_PATH = "home.tcss"
    AUTO_FOCUS = "#starts"
    BINDINGS = bind(
        "open_start",
        "show_history",
        "filter_runs",
        "resume",
        "delete_run",
        "explain",
        "pick_gpu",
        "change_language",
        "go_back",
    )
    ABOUT = N_(
        "A run is one fine-tuning of one model on some data. Start a new one, go on with one that ended early, or open "
        "one to chat with its result and to export it."
    )

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
        yield Static(Content.assemble((f"tuitune {tuitune.__version__}", "bold"), f"  {_(_HEAD)}"), id="welcome")
        with Scrolled(id="machine") as machine:
            machine.border_title = _("This machine")
            yield Static(_("Looking…"), id="hardware")
            yield Static(Content.styled(_("Checked once the libraries are loaded."), "$foreground 60%"), id="problems")
        entry = Entry(
            placeholder=_("Words that stand in a run's name, state, model, data or note"), id="filter", compact=True
        )
        entry.display = False
        yield entry
        starts = ChoiceList(id="starts", markup=False)
        starts.tooltip = _("Enter starts a new run, opens a recipe, or goes to the run under the cursor.")
        yield starts
        yield Static(id="about-run")
        yield Static(id="problem")
        yield Footer()

    def on_mount(self) -> None:
        self._list_starts(self._runs)

    def on_screen_resume(self) -> None:
        self.show_state()
        self.call_after_refresh(self._look)  # beside the paint it would hold that up

    def show_state(self) -> None:
        super().show_state()
        if self.tuitune.link.state == "ready" and not self._examined:
            self._examined = True
            self._examine()

    _examined = False
    _cards: Sequence[Gpu] = ()
    _runs: Sequence[Summary] = ()
    _resumable: frozenset[str] = frozenset()
    """Folders of the listed runs that ended before they were done."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "resume":
            return self._highlighted_run in self._resumable
        if action in ("delete_run", "filter_runs"):
            return bool(self._runs) and (action == "filter_runs" or bool(self._highlighted_run))
        if action == "go_back":
            return any(entry.display for entry in self.query("#filter"))
        return len(self._cards) > 1 if action == "pick_gpu" else True

    @property
    def _highlighted_run(self) -> str:
        """The folder of the run under the cursor; empty where none is."""
        lists = self.query("#starts").results(OptionList)  # none while they are made anew
        option = next((starts.highlighted_option for starts in lists), None)
        chosen = str(option.id) if option is not None else ""
        return chosen.removeprefix("run:") if chosen.startswith("run:") else ""

    @on(OptionList.OptionHighlighted, "#starts")
    def _tell_of_run(self) -> None:
        self.refresh_bindings()
        run = next((run for run in self._runs if str(run.folder) == self._highlighted_run), None)
        self.query_one("#about-run", Static).update(Content("") if run is None else _about(run))

    async def action_resume(self) -> None:
        self.show_problem(None)
        try:
            await self.tuitune.open_run(Path(self._highlighted_run))
        except TuituneError as error:
            self.show_problem(error)
        else:
            self.tuitune.link.resume_run()

    async def action_change_language(self) -> None:
        """Show everything in the next language there is."""
        names = languages()
        use(names[(names.index(language()) + 1) % len(names)])
        await self.tuitune.changed_language()
        self.call_next(self._compose_anew)  # in turn with this screen's messages, none of which then finds it empty

    async def _compose_anew(self) -> None:
        await self.recompose()
        self._examined = False
        self._list_starts(self._runs)
        self.query_one("#starts").focus()
        self.on_screen_resume()
        self.refresh_bindings()

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
        if not get_current_worker().is_cancelled:  # else another look is under way, in another language it may be
            self.post_message(self.Looked(cards, machine, runs))

    @on(Looked)
    def _show_looked(self, message: Looked) -> None:
        self._cards = message.cards
        ended_early = ("interrupted", "paused", "stopped", "failed")
        self._resumable = frozenset(str(run.folder) for run in message.runs if run.status in ended_early)
        self.query_one("#hardware", Static).update(message.machine)
        self._list_starts(message.runs)
        self.refresh_bindings()

    @on(Resize)
    def _fit_again(self) -> None:
        self.call_after_refresh(lambda: self._list_starts(self._runs))  # those of then: it may have looked meanwhile

    def _list_starts(self, runs: Sequence[Summary]) -> None:
        self._runs = runs
        words = self.query_one("#filter", Input).value.split()
        shown = [run for run in runs if run.matches(words)]
        starts = self.query_one("#starts", OptionList)
        cursor = starts.highlighted_option.id if starts.highlighted_option is not None else None
        table = RunTable(shown, starts.scrollable_content_region.width - 2)
        with self.prevent(OptionList.OptionHighlighted):
            starts.clear_options()
            if not runs:
                demo = _("+ Try the demo   a small model talks like a pirate: one minute, no GPU")
                starts.add_option(Option(Content.styled(demo, "bold"), id="demo"))
            if not words:
                starts.add_option(Option(Content.styled(_("+ New run"), "bold"), id="new"))
                starts.add_option(Option(Content.styled(_("+ Run from a recipe file…"), "bold"), id="recipe"))
            if shown:
                starts.add_option(Option(table.heads(), id="heads", disabled=True))
            for run in shown:
                starts.add_option(Option(table.line(run), id=f"run:{run.folder}"))
            names = [option.id for option in starts.options]
            first = 0 if not words else 1
            starts.highlighted = (
                names.index(cursor) if cursor in names else min(first, len(names) - 1) if names else None
            )
        if words:
            starts.border_title = _("Runs: {shown} of {runs}", shown=len(shown), runs=len(runs))
        else:
            starts.border_title = _("Runs: {runs}", runs=len(runs)) if runs else _("Begin")
        self._tell_of_run()

    # --- finding and deleting ---------------------------------------------------------------------------------

    def action_filter_runs(self) -> None:
        entry = self.query_one("#filter", Input)
        entry.display = True
        self.set_focus(entry)
        self.refresh_bindings()

    @on(Input.Changed, "#filter")
    def _filter(self) -> None:
        self._list_starts(self._runs)

    def action_go_back(self) -> None:
        entry = self.query_one("#filter", Input)
        entry.value = ""
        entry.display = False
        self.query_one("#starts").focus()
        self.refresh_bindings()

    @work(exit_on_error=False)
    async def action_delete_run(self) -> None:
        run = Run(Path(self._highlighted_run))
        question = await asyncio.to_thread(deletion_question, run)
        if not await self.app.push_screen_wait(ConfirmScreen(question, _("Delete"), _("Keep"), yes_first=False)):
            return
        self.show_problem(None)
        try:
            await asyncio.to_thread(delete, run)
            await self.tuitune.moved_run(run.folder, None)
        except TuituneError as error:
            self.show_problem(error)
        self._look()

    @work(thread=True, exclusive=True, group="examine", exit_on_error=False)
    def _examine(self) -> None:
        from tuitune.machine.doctor import examine

        checks = examine(self.tuitune.link.runs_folder)
        wrong = [check for check in checks if check.status != "ok"]
        lines = [
            Content.assemble(
                ("✘ ", "$text-error") if check.status == "fail" else ("! ", "$text-warning"),
                (f"{check.name}: ", "bold"),
                one_line(_("{finding}. {remedy}", finding=check.text, remedy=check.remedy or ""), max_length=400),
            )
            for check in wrong
        ]
        if not get_current_worker().is_cancelled:
            self.post_message(self.Examined(lines))

    @on(Examined)
    def _show_examined(self, message: Examined) -> None:
        text = Content("\n").join(message.problems) if message.problems else Content(_("✔ Everything needed is here."))
        self.query_one("#problems", Static).update(text)

    # --- choosing ---------------------------------------------------------------------------------------------

    async def action_open_start(self) -> None:
        starts = self.query_one("#starts", OptionList)
        if self.focused is not starts:  # the words of the filter are whole
            starts.focus()
        elif (option := starts.highlighted_option) is not None:
            await self._open(str(option.id))

    @on(OptionList.OptionSelected, "#starts")
    async def _clicked(self, event: OptionList.OptionSelected) -> None:
        await self._open(str(event.option.id))

    async def _open(self, chosen: str) -> None:
        self.show_problem(None)
        if chosen == "demo":
            await self._try_the_demo()
        elif chosen == "new":
            await self.tuitune.new_run(None)
        elif chosen == "recipe":
            self._open_recipe()
        else:
            try:
                await self.tuitune.open_run(Path(chosen.removeprefix("run:")))
            except TuituneError as error:
                self.show_problem(error)

    async def _try_the_demo(self) -> None:
        """Show its settings, from which Enter starts it: everything before them is chosen."""
        import sample_data
        from tuitune.recipe import Recipe

        try:
            recipe = Recipe.load(Path(sample_data.__file__).parent / "demo.yaml")
        except TuituneError as error:
            self.show_problem(error)
            return
        await self.tuitune.new_run(recipe, "lora")

    @work(exit_on_error=False)
    async def _open_recipe(self) -> None:
        picker = PickPath(_("Which recipe?"), Path.cwd(), has_suffix(".yaml", ".yml"))
        path = await self.app.push_screen_wait(picker)
        if path is None:
            return
        try:
            from tuitune.recipe import Recipe

            await self.tuitune.new_run(Recipe.load(path))
        except TuituneError as error:
            self.show_problem(error)


def _machine(cards: list[Gpu], runs_folder: Path) -> Content:
    import psutil  # this is asked once the first paint is there

    chosen = chosen_gpu()
    lines = [
        Content.assemble(
            card_line(card, chosen is not None and len(cards) > 1 and card.index == chosen.index),
            f" · {_('driver {version}', version=one_line(card.driver, max_length=20))}",
        )
        for card in cards
    ] or [
        Content.assemble(("GPU    ", "$foreground 60%"), _("none: training runs on the CPU, which suits small models"))
    ]
    memory = psutil.virtual_memory()
    folder = next(path for path in (runs_folder.absolute(), *runs_folder.absolute().parents) if path.is_dir())
    disk = psutil.disk_usage(str(folder))
    lines.append(
        Content.assemble(
            ("RAM    ", "$foreground 60%"),
            _(
                "{available} of {total} free · {cores} cores",
                available=gib(memory.available),
                total=gib(memory.total),
                cores=psutil.cpu_count(),
            ),
            (f"   {_('Disk')}  ", "$foreground 60%"),
            _("{available} free for runs", available=gib(disk.free)),
        )
    )
    return Content("\n").join(lines)


def _about(run: Summary) -> Content:
    """The run under the cursor in one line: what its row may have no room for."""
    muted = "$foreground 60%"
    if run.problem:
        return Content.styled(one_line(run.problem, max_length=200), "$text-error")
    data = one_line(", ".join(run.data), max_length=60)
    model = model_text(run, max_length=60)
    return Content.assemble((state_text(run), state_style(run)), "  ", (f"{model} · {data}", muted))
