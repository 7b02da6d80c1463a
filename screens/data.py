"""Step 2: the conversations, and which of their tokens are trained."""

from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from screens.actions import bind
from screens.step_screen import StepScreen
from screens.widgets.tokens import tokens_content
from tuitune.errors import TuituneError
from tuitune.text import one_line


class DataScreen(StepScreen):
    """A dataset file, what was recognised in it, and its rows as the trainer sees them."""

    STEP = "data"
    CSS_PATH = "data.tcss"
    BINDINGS = bind("next_row", "previous_row")

    row = 0
    rows = 0
    _shown_for: dict[str, Any] | None = None

    def body(self) -> ComposeResult:
        path = Input(str(self.tuitune.draft.get("data.path") or ""), placeholder="./my-data.jsonl", id="path")
        path.tooltip = "The dataset file: JSONL, JSON, CSV, TSV or Parquet."
        path.border_title = "Dataset file"
        yield path
        yield Static(id="summary")
        with VerticalScroll(id="row", can_focus=True) as row:
            row.tooltip = "The row as the trainer gets it; what stands between ▸ and ◂ is trained."
            yield Static(id="tokens")

    def on_mount(self) -> None:
        self.query_one("#path").focus()

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        if self.tuitune.draft.get("data.path"):
            self.load()

    @on(Input.Changed, "#path")
    def _path_changed(self, event: Input.Changed) -> None:
        self.tuitune.draft.set("data.path", event.value.strip())
        self.show_problem(None)

    @on(Input.Submitted, "#path")
    async def _submitted(self) -> None:
        await self.action_go_on()

    @work(exclusive=True, group="rows", exit_on_error=False)
    async def load(self) -> None:
        """Have the session look at the data, and show the first row."""
        self.row, self.rows = 0, 0
        try:
            recipe = self.tuitune.draft.as_data()
            if recipe == self._shown_for:
                return
            summary = self.query_one("#summary", Static)
            summary.update("Reading…")
            found = await self.tuitune.call("summary", recipe=recipe)
            self.rows = int(found.get("rows", 0))
            summary.update(Content(one_line(f"{self.rows:,} rows · {found.get('format')} · {found.get('reason')}")))
            await self._show_row(recipe)
            self._shown_for = recipe
        except TuituneError as error:
            self.query_one("#summary", Static).update("")
            self.query_one("#tokens", Static).update("")
            self.show_problem(error)

    async def _show_row(self, recipe: dict[str, Any]) -> None:
        found = (await self.tuitune.call("rows", recipe=recipe, start=self.row, stop=self.row + 1))["rows"]
        box = self.query_one("#row")
        tokens = self.query_one("#tokens", Static)
        if not found:
            tokens.update("")
        elif "error" in found[0]:
            box.border_title = f"Row {self.row:,}"
            tokens.update(Content(one_line(found[0]["error"])))
        else:
            row = found[0]
            box.border_title = (
                f"Row {self.row:,} of {self.rows:,} · "
                f"{row['trained_tokens']:,} of {row['total_tokens']:,} tokens trained"
            )
            tokens.update(tokens_content(row["tokens"]))

    @work(exclusive=True, group="rows", exit_on_error=False)
    async def _move(self, by: int) -> None:
        self.row = max(0, min(self.rows - 1, self.row + by))
        try:
            await self._show_row(self.tuitune.draft.as_data())
        except TuituneError as error:
            self.show_problem(error)

    def action_next_row(self) -> None:
        self._move(1)

    def action_previous_row(self) -> None:
        self._move(-1)

    async def action_go_on(self) -> None:
        if not self.tuitune.draft.get("data.path"):
            self.show_problem("Which data? Give the path of a dataset file.")
            return
        await super().action_go_on()
