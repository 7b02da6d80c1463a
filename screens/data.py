"""Step 2: the conversations, and which of their tokens are trained."""

from pathlib import Path
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import ContentSwitcher, Input, OptionList, Static
from textual.widgets.option_list import Option

from screens.actions import ACTIONS, bind, key_name
from screens.audit_view import AuditView
from screens.columns import ColumnsScreen
from screens.step_screen import StepScreen
from screens.widgets.entry import Entry
from screens.widgets.nearby import nearby_files
from screens.widgets.paths import PathSuggester, PickPath, has_suffix
from screens.widgets.tokens import parts_content
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.methods import METHODS
from tuitune.recipe_sections import DATASET_SUFFIXES, HUB
from tuitune.session.preparing_requests import Audit, Columns, DataSummary, Rows, SourceSummary, Summary, Unusable
from tuitune.text import one_line, safe_text
from tuitune.units import size

IS_DATA = has_suffix(*DATASET_SUFFIXES)
_LOOKED_AT = 100
"""Rows of each dataset that are tried before an audit."""
_NEARBY = 20
_MUTED = "$foreground 60%"
_ACCEPTED = N_(
    "A JSONL, JSON, CSV, TSV, Parquet or Arrow file, also packed with gzip; or a dataset of the Hugging Face Hub as "
    "hub:owner/name, which ^s finds. A row is a conversation (messages, or a question and an answer), an instruction "
    "with its output, or plain text."
)


class RowBox(VerticalScroll):
    """The row on show: plain keys go from row to row, and by pages through a long one."""

    BINDINGS = [  # noqa: RUF012
        Binding("down,n", "screen.next_row", show=False),
        Binding("up,p", "screen.previous_row", show=False),
        Binding("space", "page_down", show=False),
    ]


class DataScreen(StepScreen):
    """A dataset, what was recognised in it, its rows as the trainer sees them, and what is wrong with them."""

    STEP = "data"
    CSS_PATH = "data.tcss"
    BINDINGS = [  # noqa: RUF012
        *bind("next_row", "previous_row", "pick_file", "search_datasets", "audit"),
        *bind("next_method", "preview_rewards", "map_columns", "choose_template", "go_to_row", "next_source"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.row = 0
        self.source = 0
        self.sources: list[SourceSummary] = []
        self._shown_for: dict[str, Any] | None = None
        self._proposing = False
        """Whether another dataset was chosen since the last summary: then the method that suits it is taken."""
        self._unseen = False
        """Whether the chosen dataset has shown no row yet."""
        self._lacks_template = False
        """Whether the tokenizer needs a named chat template before its rows can be shown."""
        self._summary = Content("")
        self._from_finding = False
        """Whether the row on show is an example that was chosen in the audit."""

    @property
    def rows(self) -> int:
        """Rows of the dataset that is shown."""
        return int(self.sources[self.source]["rows"]) if self.sources else 0

    def body(self) -> ComposeResult:
        path = Entry(placeholder=_("my-data.jsonl, or hub:owner/name"), suggester=PathSuggester(IS_DATA), id="path")
        path.tooltip = _("A JSONL, JSON, CSV, TSV, Parquet or Arrow file, or hub: and a dataset id. → completes.")
        path.border_title = _("Dataset")
        yield path
        yield Static(id="summary")
        with ContentSwitcher(id="views", initial="row"):
            with RowBox(id="row", can_focus=True) as row:
                row.tooltip = _(
                    "The row as the trainer gets it; what stands between ▸ and ◂ is trained. The arrows up "
                    "and down, n and p show other rows, PageUp and PageDown more of a long one."
                )
                yield Static(id="tokens")
            with Vertical(id="nearby"):
                yield Static(Content(_(_ACCEPTED)), id="accepted")
                files = OptionList(id="files", markup=False)
                files.tooltip = _("Datasets in this folder and the ones in it, the newest first. Enter takes one.")
                files.border_title = _("Files nearby")
                yield files
            yield AuditView(id="audit")

    def on_mount(self) -> None:
        self.query_one("#path").focus()

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        with self.prevent(Input.Changed):
            self.query_one("#path", Input).value = one_line(self.tuitune.link.draft.get("data.path") or "")
        self._list_files()
        if self.tuitune.link.draft.get("data.path"):
            self.load()
        else:
            self._show_nothing()

    def on_screen_suspend(self) -> None:
        self.workers.cancel_group(self, "audit")

    @work(thread=True, exclusive=True, group="files", exit_on_error=False)
    def _list_files(self) -> None:
        paths = nearby_files(Path.cwd(), IS_DATA, _NEARBY)
        self.app.call_from_thread(self._show_files, [one_line(path, max_length=400) for path in paths])

    def _show_files(self, names: list[str]) -> None:
        files = self.query_one("#files", OptionList)
        files.clear_options()
        files.add_options(Option(name, id=name) for name in names)
        if not names:
            files.add_option(Option(_("None here: type a path above, or search the Hub with ^s."), disabled=True))

    @on(OptionList.OptionSelected, "#files")
    def _take_file(self, event: OptionList.OptionSelected) -> None:
        self._show_chosen_dataset(str(event.option.id))
        self.query_one("#row").focus()

    # --- the dataset ------------------------------------------------------------------------------------------

    @on(Input.Changed, "#path")
    def _take_path(self) -> None:
        path = self.query_one("#path", Input).value.strip()
        if path != one_line(self.tuitune.link.draft.get("data.path") or ""):
            self._choose(path)

    def _choose(self, path: str, **fields: str | None) -> None:
        """Put another dataset into the draft; columns, configuration, split and revision of the last one are reset."""
        defaults = {"columns": None, "config": None, "split": "train", "revision": None}
        for name, value in {"path": path, **defaults, **fields}.items():
            self.tuitune.link.draft.set(f"data.{name}", value)
        self._proposing = True
        self._clear()

    def _clear(self) -> None:
        """Clear what was shown of the dataset before; called when the dataset or its settings change."""
        for group in ("rows", "audit", "columns"):
            self.workers.cancel_group(self, group)
        self._unseen = True
        self._show_nothing()
        self.show_problem(None)

    def _show_nothing(self, waiting: str = "") -> None:
        """Clear summary, row and audit; `waiting` says what is waited for, and stands in the summary's place."""
        self.workers.cancel_group(self, "unusable")
        self.row, self.source, self.sources = 0, 0, []
        self.tuitune.link.draft.rows = None
        self._shown_for, self._from_finding = None, False
        self.query_one(AuditView).forget()
        self._summarise(Content(waiting))
        self._show_row(None)
        self.query_one("#views", ContentSwitcher).current = "row" if waiting else "nearby"
        self.refresh_bindings()

    def _method(self, summary: DataSummary) -> Content:
        """What will be learned from the data, and why that is proposed."""
        name = self.tuitune.link.draft.get("method.name")
        reason = _(", for {reason}", reason=summary["method_reason"]) if name == summary["method"] else ""
        another = _("{key}: another", key=key_name(ACTIONS["next_method"]))
        return Content.assemble((_("Method: {method}", method=name), "bold"), f"{reason} · {another}")

    def action_next_method(self) -> None:
        """Choose the next method in the list of all methods."""
        draft = self.tuitune.link.draft
        names = list(METHODS)
        draft.set("method.name", names[(names.index(draft.get("method.name")) + 1) % len(names)])
        self._unseen = True
        self.load()

    def _summarise(self, summary: Content) -> None:
        self._summary = summary
        self.query_one("#summary", Static).update(summary)

    def _show_chosen_dataset(self, path: str, **fields: str | None) -> None:
        """Show a dataset that was chosen in a list or a dialog, not typed into the field."""
        with self.prevent(Input.Changed):
            self.query_one("#path", Input).value = one_line(path)
        self._choose(path, **fields)
        self.load()

    @on(Input.Submitted, "#path")
    async def _submitted(self) -> None:
        await self.action_go_on()

    @work(exit_on_error=False)
    async def action_pick_file(self) -> None:
        picked = await self.app.push_screen_wait(PickPath(_("Which dataset?"), Path.cwd(), IS_DATA))
        if picked is not None:
            self._show_chosen_dataset(str(picked))

    @work(exit_on_error=False)
    async def action_search_datasets(self) -> None:
        """A dataset of the Hub, by words: its id, configuration, split and revision."""
        from screens.hub_datasets import HubDatasets

        typed = self.query_one("#path", Input).value.strip()
        words = "" if typed.startswith(("/", ".", "~")) else typed.removeprefix(HUB)
        chosen = await self.app.push_screen_wait(HubDatasets(words))
        if chosen is not None:
            self._show_chosen_dataset(**chosen)

    @work(exclusive=True, group="rows", exit_on_error=False)
    async def load(self) -> None:
        """Have the session look at the data, and show the first row."""
        try:
            recipe = self.tuitune.link.draft.as_data()
            if recipe == self._shown_for:
                return
            self.show_problem(None)
            self._show_nothing(
                _("Read…") if self.tuitune.link.state == "ready" else _("Read as soon as the libraries are loaded…")
            )
            summary = await self.tuitune.link.call(Summary(recipe))
            if self._proposing:
                self._proposing = False
                self.tuitune.link.draft.set("method.name", summary["method"])
                recipe = self.tuitune.link.draft.as_data()
            self.sources = summary["sources"]
            self.tuitune.link.draft.rows = sum(
                source["rows"] for source in self.sources if source["weight"] is not None
            )
            self._summarise(Content.assemble(_summary(summary), "\n", self._method(summary)))
            await self._ask_row(recipe)
            self._shown_for, self._unseen = recipe, False
            self._tell_unusable(recipe)
        except TuituneError as error:
            self._unseen = True
            self._show_nothing()
            problem, told = explain(error), error.sentence.english
            about_columns, self._lacks_template = "data.columns" in told, "model.chat_template" in told
            if about_columns:
                key = key_name(ACTIONS["map_columns"])
                problem = _("{problem} {key} sets them here.", problem=problem, key=key)
            elif self._lacks_template:
                key = key_name(ACTIONS["choose_template"])
                problem = _("{problem} {key} chooses one here.", problem=problem, key=key)
            self.show_problem(problem)
            self.refresh_bindings()

    @work(exclusive=True, group="unusable", exit_on_error=False)
    async def _tell_unusable(self, recipe: dict[str, Any]) -> None:
        """Add to the summary how many of the first rows cannot be used, before the user asks for the audit."""
        try:
            answer = await self.tuitune.link.call(Unusable(recipe, _LOOKED_AT))
        except TuituneError:  # the session was lost, which another part of the screen says
            return
        if unusable := answer["unusable"]:
            first = unusable[0]
            warning = _(
                "! {count} of the first {looked_at} rows cannot be used; {key} looks at all.",
                count=len(unusable),
                looked_at=answer["looked_at"],
                key=key_name(ACTIONS["audit"]),
            )
            reason = one_line(first["error"], max_length=160)
            if len(self.sources) > 1:
                name = one_line(self.sources[first["source"]]["name"], max_length=24)
                example = _("Row {row:,} of {file}: {reason}", row=first["row"], file=name, reason=reason)
            else:
                example = _("Row {row:,}: {reason}", row=first["row"], reason=reason)
            self._summarise(Content.assemble(self._summary, "\n", (f"{warning} {example}", "$text-warning")))

    # --- its rows ---------------------------------------------------------------------------------------------

    async def _ask_row(self, recipe: dict[str, Any]) -> None:
        answer = await self.tuitune.link.call(Rows(recipe, self.row, self.row + 1, self.source))
        self._show_row(answer["rows"])

    def _show_row(self, parts: list[dict[str, Any]] | None) -> None:
        box, tokens = self.query_one("#row", VerticalScroll), self.query_one("#tokens", Static)
        if not parts:
            box.border_title = box.border_subtitle = None
            tokens.update("")
            return
        place: str = _("Row {row:,} of {rows:,}", row=self.row + 1, rows=self.rows)
        box.border_subtitle = _("↑ ↓ other rows") if self.rows > 1 else None
        if len(self.sources) > 1:
            place = f"{one_line(self.sources[self.source]['name'], max_length=24)} · {place}"
        if "error" in parts[0]:
            box.border_title = Content(_("{place} · left out", place=place))
            problem = Content.styled(f"✘ {one_line(parts[0]['error'])}", "$text-error")
            tokens.update(Content.assemble(problem, "\n\n", (safe_text(parts[0]["raw"]), _MUTED)))
            box.scroll_home(animate=False)
            return
        trained, total = (sum(part[f"{name}_tokens"] for part in parts) for name in ("trained", "total"))
        limit = self.tuitune.link.draft.get("data.max_length")
        at_limit = str(limit).isdigit() and any(part["total_tokens"] >= int(limit) for part in parts)
        repeats = self.query_one(AuditView).repeated(self.row, self.source)
        told = [place, _("{trained:,} of {total:,} tokens trained", trained=trained, total=total)]
        if repeats:
            told.append(repeats)
        if len(parts) > 1:
            told.append(_("{count} parts", count=len(parts)))
        if at_limit:
            told.append(_("cut at max_length {limit}", limit=limit))
        box.border_title = Content(" · ".join(told))
        contents = [parts_content(part["parts"], box.size.width - 2) for part in parts]
        end = Content.styled("✂", "bold $text-warning") if at_limit else Content("")
        tokens.update(Content("\n──\n").join(contents) + end)
        box.scroll_home(animate=False)

    @work(exclusive=True, group="rows", exit_on_error=False)
    async def _show(self, row: int, source: int | None = None) -> None:
        self.source = self.source if source is None else source
        self.row = max(0, min(self.rows - 1, row))
        self.show_problem(None)
        self.query_one("#views", ContentSwitcher).current = "row"
        try:
            await self._ask_row(self.tuitune.link.draft.as_data())
        except TuituneError as error:
            self.show_problem(error)

    def action_preview_rewards(self) -> None:
        from screens.rewards import RewardsScreen

        self.app.push_screen(RewardsScreen(self.tuitune))

    def action_next_row(self) -> None:
        self._show(self.row + 1)

    def action_next_source(self) -> None:
        self._show(0, (self.source + 1) % len(self.sources))

    def action_previous_row(self) -> None:
        self._show(self.row - 1)

    @work(exit_on_error=False)
    async def action_go_to_row(self) -> None:
        from screens.ask import AskScreen

        answer = await self.app.push_screen_wait(
            AskScreen(_("Which row? (1 to {rows:,})", rows=self.rows), str(self.row + 1))
        )
        if answer is None:
            return
        if answer.replace(",", "").isdigit():
            self._show(int(answer.replace(",", "")) - 1)
        else:
            self.show_problem(_("{answer} is not a row: give a number from 1.", answer=one_line(answer, max_length=40)))

    @work(exit_on_error=False)
    async def action_choose_template(self) -> None:
        from screens.templates import PickTemplate

        chosen = await self.app.push_screen_wait(PickTemplate())
        if chosen is not None:
            self.tuitune.link.draft.set("model.chat_template", chosen)
            self._lacks_template = False
            self.load()

    # --- which column is which --------------------------------------------------------------------------------

    @work(exclusive=True, group="columns", exit_on_error=False)
    async def action_map_columns(self) -> None:
        try:
            answer = await self.tuitune.link.call(Columns(self.tuitune.link.draft.as_data()))
        except TuituneError as error:
            self.show_problem(error)
            return
        chosen = self.tuitune.link.draft.get("data.columns") or {}
        mapping = await self.app.push_screen_wait(ColumnsScreen(answer["columns"], answer["mappable"], chosen))
        if mapping is not None:
            self.tuitune.link.draft.set("data.columns", mapping or None)
            self._unseen = True
            self.load()

    # --- what is wrong with it --------------------------------------------------------------------------------

    @work(exclusive=True, group="audit", exit_on_error=False)
    async def action_audit(self) -> None:
        """Audit every row; leaving the screen cancels the audit."""
        summary = self.query_one("#summary", Static)

        def part(content: dict[str, Any]) -> None:
            done, total = content["done"], content.get("total")
            summary.update(
                _("Looking at every row: {done:,} of about {total:,}", done=done, total=total)
                if total
                else _("Looking at every row: {done:,}", done=done)
            )

        self.show_problem(None)
        try:
            summary.update(_("Looking at every row…"))
            audit = await self.tuitune.link.call(Audit(self.tuitune.link.draft.as_data()), part)
        except TuituneError as error:
            self.show_problem(error)
            return
        finally:
            summary.update(self._summary)
        limit = int(self.tuitune.link.draft.recipe().data.max_length)
        self.query_one("#views", ContentSwitcher).current = "audit"
        self.query_one(AuditView).show(audit, limit)

    @on(AuditView.LengthChosen)
    def _take_length(self, message: AuditView.LengthChosen) -> None:
        self.tuitune.link.draft.set("data.max_length", message.max_length)
        self.load()
        self.action_audit()

    @on(AuditView.RowChosen)
    def _show_example(self, message: AuditView.RowChosen) -> None:
        self._from_finding = True
        self._show(message.row, message.source)

    async def action_go_back(self) -> None:
        """Go back from an audited row to the audit, from the audit to the rows, from the rows to the step before."""
        views = self.query_one("#views", ContentSwitcher)
        if self._from_finding:
            self._from_finding = False
            views.current = "audit"
            self.query_one("#findings").focus()
        elif views.current == "audit":
            views.current = "row"
            self.query_one("#row").focus()
        else:
            await super().action_go_back()

    def why_not(self, action: str) -> str | None:
        if action in ("next_row", "previous_row", "go_to_row", "audit") and not self.rows:
            return _("No data is read yet.")
        if action == "next_method" and not self.tuitune.link.draft.get("data.path"):
            return _("No data is read yet.")
        if action == "preview_rewards" and not self.tuitune.link.draft.fields.learns_from_rewards:
            return _("Only GRPO learns from rewards.")
        if action == "next_source" and len(self.sources) < 2:
            return _("The recipe has one dataset.")
        return super().why_not(action)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a template is missing, its key stands in the audit key's place: 80 columns fit one."""
        if action in ("choose_template", "audit") and self._lacks_template != (action == "choose_template"):
            return False
        return super().check_action(action, parameters)

    async def action_go_on(self) -> None:
        """Go to the next step once the dataset was shown; show it first if it was not."""
        self._take_path()  # the last typed letters may not have reached the draft yet
        if not self.tuitune.link.draft.get("data.path"):
            self.show_problem(_("Which data? Give the path of a dataset file."))
        elif not self._unseen:
            await super().action_go_on()
        elif not any(worker.group == "rows" and not worker.is_finished for worker in self.workers):
            self.load()


def _summary(summary: DataSummary) -> Content:
    kind = one_line(summary["kind"], max_length=80)
    takes = [kind, size(summary["bytes"])] if summary["bytes"] else [kind]
    head = f"{_rows(summary)} · {_(', ').join(takes)} · {one_line(summary['format'])}"
    if len(summary["sources"]) == 1:
        return Content.assemble((head, "bold"), _(": {reason}", reason=one_line(summary["reason"], max_length=300)))
    drawn = [source for source in summary["sources"] if source["weight"] is not None]
    measured = [source for source in summary["sources"] if source["weight"] is None]
    parts = [
        _(
            "{rows} × {weight:g} = {share} of what is drawn",
            rows=_named(source),
            weight=source["weight"],
            share=_share(source["share"]),
        )
        if len(drawn) > 1
        else _("trained on: {rows}", rows=_named(source))
        for source in drawn
    ] + [_("measured on: {rows}", rows=_named(source)) for source in measured]
    head = _("{count} datasets · ^r shows the next one's rows", count=len(parts))
    return Content("\n").join([Content.styled(head, "bold"), *map(Content, parts)])


def _share(share: float | None) -> str:
    share = share or 0.0
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _rows(counted: DataSummary | SourceSummary) -> str:
    count = counted["rows"]
    return _("about {count:,} rows", count=count) if counted["rows_estimated"] else _("{count:,} rows", count=count)


def _named(source: SourceSummary) -> str:
    return f"{one_line(source['name'], max_length=40)}{_(', ')}{_rows(source)}"
