"""Step 6: take the result home."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.events import DescendantBlur, DescendantFocus
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from screens.actions import bind
from screens.clipboard import copy
from screens.confirm import ConfirmScreen
from screens.step_screen import StepScreen
from screens.widgets.progress_bar import ProgressBar
from screens.widgets.tick import Line, TickList
from tuitune.errors import TuituneError
from tuitune.export.times import takes, together
from tuitune.language import N_, _
from tuitune.paths import expanded
from tuitune.recipe_sections import ExportSection
from tuitune.session.result_requests import Export, Preflight
from tuitune.text import one_line
from tuitune.units import size

_BY_COMMAND = {"ollama:f16", "ollama:bf16", "ollama:q6_k", "ollama:q5_k_m"}
"""Kinds that `tuitune export` makes and the list leaves out to stay short."""


class ExportScreen(StepScreen):
    """The kinds of export, what each is for and needs, and where the result lies."""

    STEP = "export"
    CSS_PATH = "export.tcss"
    BINDINGS = bind("export_now")

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, dict[str, Any]] = {}
        self._made: dict[str, dict[str, Any]] = {}
        """By path; of the latest export alone, as `_failed` is."""
        self._earlier: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}
        self._lines: dict[str, str] = {}
        self._looked_at: Path | None = None
        self._wanted = ExportSection()
        """What the run's recipe wants to be made."""

    def body(self) -> ComposeResult:
        kinds = TickList(id="kinds")
        kinds.tooltip = _("Space chooses a kind; Enter makes all that are chosen.")
        kinds.border_title = _("Looking at what can be made…")
        yield kinds
        yield Static(id="about-kind")
        with Horizontal(id="into"):
            yield Static(_("Into the folder"), classes="label")
            out = Input(placeholder=_("the run's own"), id="out", compact=True)
            out.tooltip = _("Where the exports are put; left empty, the run's folder.")
            yield out
            yield Static(_("Hub"), classes="label")
            hub = Input(placeholder=_("NAME or OWNER/NAME"), id="hub", compact=True)
            hub.tooltip = _("The repository to upload to; Enter asks whether it may be written to, and lists uploads.")
            yield hub
        with Horizontal(id="progress"):
            yield ProgressBar(id="bar")
            yield Static(id="doing")
        results = OptionList(id="made", markup=False)
        results.tooltip = _("Lines to run the exports and to take them home; Enter copies the one under the cursor.")
        yield results

    def on_mount(self) -> None:
        self._hide_progress()
        self.query_one("#made").display = False

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        if not self.query_one("#made").has_focus:
            self.query_one("#kinds").focus()
        run = self.tuitune.link.run
        if run is not None and run.folder != self._looked_at:
            with suppress(TuituneError):  # the session says what is wrong with a recipe
                self._wanted = run.recipe().export
            with self.prevent(Input.Changed):
                self.query_one("#hub", Input).value = one_line(self._wanted.hub_repo or "", max_length=120)
            self._look(run.folder)

    @property
    def exporting(self) -> bool:
        return any(worker.group == "export" and not worker.is_finished for worker in self.workers)

    # --- what can be made -------------------------------------------------------------------------------------

    @work(exclusive=True, group="preflight", exit_on_error=False)
    async def _look(self, folder: Path) -> None:
        try:
            preflight = await self.tuitune.link.call(Preflight(str(folder), hub_repo=self._repository()))
        except TuituneError as error:
            self.show_problem(error)
            return
        if folder != self._looked_at:
            self._looked_at = folder
            self._made, self._failed = {}, {}
            self._earlier = {export["path"]: export for export in preflight["exports"]}
            self._show_made()
        self._show_kinds(preflight["kinds"])

    def _show_kinds(self, kinds: list[dict[str, Any]]) -> None:
        """Show what can be made now, the usual kinds of it; what was chosen and where the cursor was stays."""
        repository = self._repository()
        kinds = [kind for kind in kinds if kind["kind"] not in _BY_COMMAND]
        kinds = [kind for kind in kinds if repository or not kind["kind"].startswith("hub:")]
        choice = self.query_one("#kinds", TickList)
        wanted = set(self._wanted.to) or {"adapter"}
        cursor, ticked = (choice.highlighted or 0, choice.ticked) if self.kinds else (0, wanted)
        self.kinds = {kind["kind"]: kind for kind in kinds}
        lines = [Line(kind["kind"], _line(kind), kind["ready"]) for kind in kinds]
        choice.show(lines, [line.name for line in lines if line.name in ticked and line.ready])
        choice.border_title = _("What to make (space chooses)")
        choice.highlighted = min(cursor, len(lines) - 1)
        self._show_about()
        self._show_time()

    @on(TickList.Ticked)
    def _kind_ticked(self) -> None:
        self.show_problem(None)
        self._show_time()

    def _show_time(self) -> None:
        """How long all that is chosen takes."""
        choice = self.query_one("#kinds", TickList)
        chosen = [kind for name, kind in self.kinds.items() if name in choice.ticked]
        choice.border_subtitle = Content(_("Enter makes them: {time}", time=together(chosen)) if chosen else "")

    @on(OptionList.OptionHighlighted, "#kinds")
    def _show_about(self) -> None:
        kinds = self.query_one("#kinds", TickList)
        if kinds.highlighted is None or not self.kinds:
            return
        kind = list(self.kinds.values())[kinds.highlighted]
        text = one_line(kind["about"], max_length=300)
        if kind["missing"]:
            text = _("{about} Not here: {missing}", about=text, missing=one_line(kind["missing"], max_length=400))
        elif kind["question"]:
            text = _("{about} Needs llama.cpp's converter: you will be asked before it is downloaded.", about=text)
        if not kind["missing"] and kind["disk_bytes"] is not None:
            text += f" {takes(kind)}"
        self.query_one("#about-kind", Static).update(Content(text))

    # --- making it --------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is no step to go on to."""
        return False if action == "go_on" else super().check_action(action, parameters)

    def why_not(self, action: str) -> str | None:
        if action == "export_now" and not self.kinds:
            return _("What can be made is still being looked at.")
        if action == "export_now" and self.exporting:
            return _("An export is being made; Esc stops it.")
        return None

    @on(DescendantFocus)
    @on(DescendantBlur)
    def _give_room(self) -> None:
        """In a short terminal, what was made has the room that choosing had."""
        results = self.query_one("#made")
        self.set_class(results.has_focus, "-made")
        results.border_subtitle = _("Tab: make others") if results.has_focus else ""

    @on(Input.Changed, "#out")
    def _folder_changed(self) -> None:
        self.query_one("#kinds").border_subtitle = ""
        self.show_problem(None)

    @on(Input.Submitted, "#out")
    def _folder_given(self) -> None:
        """Show where the exports would go; making them is another Enter, on the kinds."""
        out = self._out()
        if out is not None and os.path.exists(out) and not out.is_dir():  # a `Path` raises where a name is too long
            folder = one_line(out, max_length=200)
            self.show_problem(_("{folder} is not a folder: choose another one.", folder=folder))
            return
        kinds = self.query_one("#kinds")
        into = one_line(out, max_length=50) if out else _("the run folder")
        kinds.border_subtitle = Content(_("Enter makes them in {folder}", folder=into))
        kinds.focus()

    @on(Input.Submitted, "#hub")
    def _repository_given(self) -> None:
        """Ask whether it may be written to; what is uploaded is chosen then."""
        run = self.tuitune.link.run
        if run is not None:
            self._look(run.folder)
            self.query_one("#kinds").focus()

    def _repository(self) -> str | None:
        """The repository of the Hub that was given."""
        return self.query_one("#hub", Input).value.strip() or None

    def _out(self) -> Path | None:
        """The folder that was given, seen from where the app was started; None for the run's own."""
        typed = self.query_one("#out", Input).value.strip()
        return expanded(typed).absolute() if typed else None

    @work(exclusive=True, group="export", exit_on_error=False)
    async def action_export_now(self) -> None:
        run = self.tuitune.link.run
        chosen = [kind for kind in self.kinds if kind in self.query_one("#kinds", TickList).ticked]
        if run is None or not chosen:
            self.show_problem(_("Choose at least one kind with the space bar."))
            return
        self.show_problem(None)
        question = next((self.kinds[kind]["question"] for kind in chosen if self.kinds[kind].get("question")), None)
        if question and not await self.app.push_screen_wait(ConfirmScreen(question, N_("Download"), N_("Not now"))):
            return
        self.query_one("#progress").display = True
        self._show_progress({"kind": chosen[0], "text": _("Waiting for the session")})
        out = self._out()
        self._earlier, self._made, self._failed = {**self._made, **self._earlier}, {}, {}
        self._show_made()
        try:
            request = Export(
                str(run.folder),
                chosen,
                str(out) if out else None,
                allow_download=bool(question),
                hub_repo=self._repository(),
                hub_public=self._wanted.hub_public,
                imatrix=self._wanted.imatrix,
            )
            await self.tuitune.link.call(request, self.show_part)
            self.show_all_made()
        except TuituneError as error:
            self.show_problem(error)
        finally:
            self._hide_progress()
        self._look(run.folder)  # llama.cpp may be here now, and the disk be fuller

    def _hide_progress(self) -> None:
        self.query_one("#progress").display = False
        self.query_one("#bar", ProgressBar).update(total=1)  # one that waits moves all the time, unseen too

    def _show_progress(self, content: dict[str, Any]) -> None:
        done, total = content.get("done"), content.get("total")
        self.query_one("#bar", ProgressBar).update(total=total or None, progress=done or 0)
        text = one_line(f"{content.get('kind')}: {content.get('text')}", max_length=200)
        self.query_one("#doing", Static).update(Content(text))

    # --- what was made ----------------------------------------------------------------------------------------

    def show_part(self, part: dict[str, Any]) -> None:
        """Show a part of an `export`: a kind that was made or failed, or how far it is."""
        if "exported" in part:
            export = part["exported"]
            self._earlier.pop(export["path"], None)
            self._made[export["path"]] = export
            self._show_made()
        elif "failed" in part:
            self._failed[part["failed"]["kind"]] = part["failed"]["error"]
            self._show_made()
        else:
            self._show_progress(part)

    def _show_made(self) -> None:
        results = self.query_one("#made", OptionList)
        under_cursor = results.highlighted_option
        copied = self._lines.get(str(under_cursor.id)) if under_cursor else None
        self._lines = {}
        results.clear_options()
        for kind, error in self._failed.items():
            text = f"✘ {one_line(kind)} · {one_line(error, max_length=600)}"
            results.add_option(Option(Content.styled(text, "bold $text-error"), disabled=True))
        for export in self._made.values():
            self._add_export(results, export, "")
        for export in self._earlier.values():
            self._add_export(results, export, f"{_('made earlier')} · ")
        names = {line: name for name, line in self._lines.items()}
        if copied in names:
            results.highlighted = results.get_option_index(names[copied])
        results.border_title = _("Made · Enter copies a line") if self._lines else _("Not made")
        results.display = results.option_count > 0

    def _add_export(self, results: OptionList, export: dict[str, Any], when: str) -> None:
        head = f"✔ {one_line(export['kind'])} · {when}{size(export['bytes'])} · {one_line(export['path'])}"
        results.add_option(Option(Content.styled(head, "bold $text-success"), disabled=True))
        if proof := export.get("proof"):
            results.add_option(
                Option(Content.styled(f"  {one_line(proof, max_length=400)}", "$foreground 60%"), disabled=True)
            )
        for notice in export.get("notices", []):
            results.add_option(Option(Content.styled(f"  ! {one_line(notice)}", "$text-warning"), disabled=True))
        for command in export["commands"]:
            name = f"line-{len(self._lines)}"
            self._lines[name] = command["line"]
            what = Content.styled(f"  {one_line(command['what'])}:\n    ", "$foreground 60%")
            results.add_option(Option(Content.assemble(what, one_line(command["line"])), id=name))

    def show_all_made(self) -> None:
        """Go to what was made, from its beginning."""
        results = self.query_one("#made", OptionList)
        if not results.display:
            return
        results.highlighted = results.get_option_index(next(iter(self._lines))) if self._lines else None
        results.focus()
        self.call_after_refresh(results.scroll_home, animate=False)
        self.app.bell()

    @on(OptionList.OptionSelected, "#made")
    def _copy_line(self, event: OptionList.OptionSelected) -> None:
        copy(self.app, self._lines[str(event.option.id)], _("The line"))

    async def action_go_back(self) -> None:
        if self.exporting:
            self.workers.cancel_group(self, "export")
        else:
            await super().action_go_back()


def _line(kind: dict[str, Any]) -> Content:
    name = f"{one_line(kind['kind'], max_length=20):<15}"
    takes = f"{size(kind['bytes']):>10}" if kind["bytes"] else " " * 10
    if not kind["ready"]:
        return Content.assemble(name, takes, "  ", (_("✘ not here, see below"), "$text-error"))
    return Content.assemble((name, "bold"), takes, "  ", _("can be made"))
