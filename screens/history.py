"""Every run so far: found, opened, compared, repeated with changes, renamed, noted, deleted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message
from textual.widgets import DataTable, Input, Static

from screens.actions import bind
from screens.ask import AskScreen
from screens.compare import MOST_RUNS, CompareScreen
from screens.confirm import ConfirmScreen
from screens.run_state import ago, state_style, state_text
from screens.step_screen import WalkScreen
from screens.widgets.fit import fit
from screens.widgets.footer import Footer
from screens.widgets.step_bar import StepBar
from tuitune.errors import TuituneError
from tuitune.language import N_, _
from tuitune.runs.folder import Run
from tuitune.runs.manage import delete, deletion_question, rename, write_note
from tuitune.runs.summary import (
    Summary,
    cost_text,
    data_names,
    duration_text,
    held_out_text,
    model_name,
    model_text,
    steps_text,
    summaries,
    summarize,
)
from tuitune.text import one_line

_COLUMNS = (
    " ",
    N_("state"),
    N_("run"),
    N_("steps"),
    N_("held-out loss"),
    N_("duration"),
    N_("cost"),
    N_("ago"),
    N_("model"),
    N_("data"),
    N_("method"),
    N_("note"),
)
_MARK = "◆"
_LOOK_AGAIN_SECONDS = 5.0


class HistoryScreen(WalkScreen):
    """The runs as a table, the newest first; keys do something to the one under the cursor, or to the marked ones."""

    CSS_PATH = "history.tcss"
    BINDINGS = bind(
        "filter_runs",
        "mark_run",
        "compare_runs",
        "duplicate_run",
        "rename_run",
        "note_run",
        "delete_run",
        "go_back",
        "explain",
    )
    ABOUT = N_(
        "Every run is kept with its recipe, its losses and its result. Compare a few to see what a change did, "
        "or take one's recipe, change it, and train again."
    )

    class Listed(Message):
        """Every run with its cells, read in a thread."""

        def __init__(self, runs: list[Summary], cells: dict[str, list[Text]]) -> None:
            super().__init__()
            self.runs = runs
            self.cells = cells

    class LiveRead(Message):
        """How the runs stand that were live, read in a thread."""

        def __init__(self, runs: list[Summary]) -> None:
            super().__init__()
            self.runs = runs

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, Summary] = {}
        """By folder, the newest first."""
        self._cells: dict[str, list[Text]] = {}
        """What the table shows of each, without its mark."""
        self._marked: set[str] = set()
        self._listed = False

    def compose(self) -> ComposeResult:
        yield StepBar(None)
        yield Static(_("Enter opens a run; r renames it, n notes something, x deletes it. Esc: home."), id="hint")
        entry = Input(placeholder=_("Words that stand in a run's name, state, model, data or note"), id="filter")
        entry.compact = True
        entry.display = False
        yield entry
        table: DataTable[Text] = DataTable(id="runs", cursor_type="row", cell_padding=1)
        table.tooltip = _("Enter opens the run under the cursor; the left and right arrows show more columns.")
        yield table
        yield Static(id="about-run")
        yield Static(id="problem")
        yield Footer()

    def on_mount(self) -> None:
        table = self._table
        table.border_title = _("Runs: reading…")
        table.focus()
        self.set_interval(_LOOK_AGAIN_SECONDS, self._look_again)

    def on_screen_resume(self) -> None:
        self.show_state()
        self._read()

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#runs", DataTable)

    @property
    def _selected(self) -> Summary | None:
        """The run under the cursor."""
        table = self._table
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        return self._runs.get(str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value))

    # --- reading and showing ----------------------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="list", exit_on_error=False)
    def _read(self) -> None:
        runs = summaries(self.tuitune.link.runs_folder)
        self.post_message(self.Listed(runs, {str(run.folder): self._cells_of(run) for run in runs}))

    def _look_again(self) -> None:
        live = [run for run in self._runs.values() if run.status == "live"]
        if self.is_current and live:
            self._read_live(live)

    @work(thread=True, exclusive=True, group="live", exit_on_error=False)
    def _read_live(self, live: list[Summary]) -> None:
        self.post_message(self.LiveRead([summarize(Run(run.folder)) for run in live]))

    @on(Listed)
    def _show_listed(self, message: Listed) -> None:
        self._runs = {str(run.folder): run for run in message.runs}
        self._cells = message.cells
        self._marked &= self._runs.keys()
        self._listed = True
        table, selected = self._table, self._selected
        table.clear(columns=True)  # columns of a known width need not be measured cell by cell
        for column, name in enumerate(_COLUMNS[1:]):
            head = _(name)
            width = max([cell_len(head), *(cells[column].cell_len for cells in self._cells.values())])
            if not column:
                table.add_column(" ", key=_COLUMNS[0], width=1)
            table.add_column(head, key=name, width=width)
        self._fill(selected)

    @on(LiveRead)
    def _show_live(self, message: LiveRead) -> None:
        table = self._table
        for run in message.runs:
            key = str(run.folder)
            if key not in self._runs:
                continue
            self._runs[key] = run
            self._cells[key] = self._cells_of(run)
            if key in table.rows:
                for name, cell in zip(_COLUMNS[1:], self._cells[key], strict=True):
                    table.update_cell(key, name, cell)
        self._show_selected()

    def _fill(self, selected: Summary | None) -> None:
        """Show the runs in which all words of the filter stand, with the cursor on `selected` where that is one."""
        table, row = self._table, self._table.cursor_row
        words = self.query_one("#filter", Input).value.split()
        shown = [run for run in self._runs.values() if run.matches(words)]
        table.clear()
        for run in shown:
            key = str(run.folder)
            table.add_row(self._mark_of(run), *self._cells[key], key=key)
        if shown:
            places = {run.folder: place for place, run in enumerate(shown)}
            cursor = places.get(selected.folder) if selected else None
            table.move_cursor(row=min(max(0, row), len(shown) - 1) if cursor is None else cursor, animate=False)
        self._show_title()
        self._show_selected()
        self.refresh_bindings()

    def _cells_of(self, run: Summary) -> list[Text]:
        texts = [
            one_line(run.name, max_length=32),
            steps_text(run),
            held_out_text(run),
            duration_text(run),
            cost_text(run),
            ago(run),
            model_name(run)[:32],
            data_names(run)[:32],
            one_line(run.method, max_length=16),
            one_line(run.note, max_length=60),
        ]
        name, *others = map(Text, texts)
        name.stylize("bold")
        state = Text(state_text(run), style=self._colours.get(state_style(run).removeprefix("$"), ""))
        return [state, name, *others]

    @property
    def _colours(self) -> dict[str, str]:
        return {} if self.app.no_color else self.app.theme_variables

    def _mark_of(self, run: Summary) -> Text:
        return Text(_MARK if str(run.folder) in self._marked else " ")

    def _show_title(self) -> None:
        shown, marked = self._table.row_count, len(self._marked)
        title = _("Runs: {runs:,}", runs=shown)
        if shown != len(self._runs):
            title = _("Runs: {shown:,} of {runs:,}", shown=shown, runs=len(self._runs))
        self._table.border_title = _("{title}, {marked} marked", title=title, marked=marked) if marked else title

    @on(DataTable.RowHighlighted)
    def _show_selected(self) -> None:
        run = self._selected
        self.query_one("#about-run", Static).update(self._nothing() if run is None else _about(run))

    def _nothing(self) -> Content:
        if not self._listed:
            return Content("")
        if self._runs:
            return Content(_("No run has all of these words. Esc shows all runs again."))
        return Content(_("There is no run yet. Esc goes home, where Enter starts one."))

    # --- finding and marking ----------------------------------------------------------------------------------

    def action_filter_runs(self) -> None:
        entry = self.query_one("#filter", Input)
        entry.display = True
        self.set_focus(entry)  # at once, so that what is typed next is not taken for keys of the table

    @on(Input.Changed, "#filter")
    def _filter(self) -> None:
        self._fill(self._selected)

    @on(Input.Submitted, "#filter")
    def _filtered(self) -> None:
        self._table.focus()

    async def action_go_back(self) -> None:
        entry = self.query_one("#filter", Input)
        if entry.display:
            entry.value = ""
            entry.display = False
            self._table.focus()
        else:
            await self.tuitune.action_show_home()

    def action_mark_run(self) -> None:
        if (run := self._selected) is None:
            return
        self.show_problem(None)
        self._marked ^= {str(run.folder)}
        table = self._table
        table.update_cell(str(run.folder), _COLUMNS[0], self._mark_of(run))
        table.action_cursor_down()
        self._show_title()

    def action_compare_runs(self) -> None:
        runs = [run for key, run in self._runs.items() if key in self._marked]
        selected = self._selected
        if len(runs) == 1 and selected is not None and selected not in runs:
            runs.append(selected)
        if not 2 <= len(runs) <= MOST_RUNS:
            self.show_problem(_("Mark two to {most} runs with Space first, then c compares them.", most=MOST_RUNS))
            return
        self.show_problem(None)
        self.app.push_screen(CompareScreen(runs))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in the line above the footer what cannot be done."""
        self.show_problem(None)
        try:
            yield
        except TuituneError as error:
            self.show_problem(error)

    # --- what is done to one run ------------------------------------------------------------------------------

    @on(DataTable.RowSelected)
    async def _open(self) -> None:
        if run := self._selected:
            with self._told():
                await self.tuitune.open_run(run.folder)

    async def action_duplicate_run(self) -> None:
        if run := self._selected:
            with self._told():
                await self.tuitune.new_run(Run(run.folder).recipe())

    @work(exit_on_error=False)
    async def action_rename_run(self) -> None:
        if (run := self._selected) is None:
            return
        name = await self.app.push_screen_wait(AskScreen(_("Its new name?"), one_line(run.name)))
        if not name or name == run.name:
            return
        with self._told():
            renamed = rename(Run(run.folder), name)
            await self.tuitune.moved_run(run.folder, renamed)
            self._marked.discard(str(run.folder))
            self._read()

    @work(exit_on_error=False)
    async def action_note_run(self) -> None:
        if (run := self._selected) is None:
            return
        question = _("What to note about it? Nothing removes the note.")
        text = await self.app.push_screen_wait(AskScreen(question, one_line(run.note)))
        if text is not None:
            with self._told():
                write_note(Run(run.folder), text)
                self._read()

    @work(exit_on_error=False)
    async def action_delete_run(self) -> None:
        if (run := self._selected) is None:
            return
        question = await asyncio.to_thread(deletion_question, Run(run.folder))
        if await self.app.push_screen_wait(ConfirmScreen(question, N_("Delete"), N_("Keep"), yes_first=False)):
            with self._told():
                await asyncio.to_thread(delete, Run(run.folder))
                await self.tuitune.moved_run(run.folder, None)
                self._read()


def _about(run: Summary) -> Content:
    """The run under the cursor in three lines: what its row may have no room for."""
    muted = "$foreground 60%"
    if run.problem:
        return Content.styled(run.problem, "$text-error")
    label, text = (_("note"), run.note) if run.note else (_("method"), run.method)
    lines = (
        (_("model"), model_text(run, max_length=60)),
        (_("data"), one_line(", ".join(run.data), max_length=70)),
        (label, one_line(text, max_length=70)),
    )
    return Content("\n").join(Content.assemble((fit(name, 7), muted), value) for name, value in lines)
