"""Step 6: take the result home."""

from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import SelectionList, Static
from textual.widgets.selection_list import Selection

from screens.actions import bind
from screens.step_screen import StepScreen
from screens.units import size
from tuitune.errors import TuituneError
from tuitune.text import one_line, safe_text


class ExportScreen(StepScreen):
    """The kinds of export, what each needs, and where the result lies."""

    STEP = "export"
    CSS_PATH = "export.tcss"
    BINDINGS = bind("export_now")

    def body(self) -> ComposeResult:
        kinds: SelectionList[str] = SelectionList(id="kinds")
        kinds.tooltip = "Space chooses a kind, Enter makes what is chosen."
        kinds.border_title = "What to make"
        yield kinds
        yield Static(id="progress")
        with VerticalScroll(id="results"):
            yield Static(id="made")

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.query_one("#kinds").focus()
        self.look()

    @work(exclusive=True, group="preflight", exit_on_error=False)
    async def look(self) -> None:
        """Ask what can be made here."""
        run = self.tuitune.run_shown
        kinds = self.query_one("#kinds", SelectionList)
        if run is None or kinds.option_count:
            return
        try:
            found = (await self.tuitune.call("preflight", run=str(run.folder)))["kinds"]
        except TuituneError as error:
            self.show_problem(error)
            return
        for kind in found:
            kinds.add_option(
                Selection(_about(kind), kind["kind"], kind["kind"] == "adapter", disabled=not kind["ready"])
            )
        kinds.highlighted = 0

    async def action_go_on(self) -> None:
        self.action_export_now()

    @work(exclusive=True, group="export", exit_on_error=False)
    async def action_export_now(self) -> None:
        run = self.tuitune.run_shown
        chosen = list(self.query_one("#kinds", SelectionList).selected)
        if run is None or not chosen:
            self.show_problem("Choose at least one kind with the space bar.")
            return
        self.show_problem(None)
        progress = self.query_one("#progress", Static)

        def part(content: dict[str, Any]) -> None:
            of = f" {content['done']}/{content['total']}" if content.get("total") else ""
            progress.update(Content(one_line(f"{content.get('kind')}: {content.get('text')}{of}", max_length=200)))

        try:
            answer = await self.tuitune.call("export", part, run=str(run.folder), kinds=chosen, allow_download=False)
        except TuituneError as error:
            self.show_problem(error)
            return
        finally:
            progress.update("")
        self.query_one("#made", Static).update(Content("\n\n").join(_made(each) for each in answer["exports"]))

    @on(SelectionList.SelectionToggled)
    def _toggled(self) -> None:
        self.show_problem(None)


def _about(kind: dict[str, Any]) -> Content:
    ready = f"about {size(kind['bytes'])}" if kind.get("bytes") else "ready"
    if not kind["ready"]:
        ready = one_line(f"missing: {kind.get('missing')}", max_length=200)
    return Content.assemble(
        (f"{one_line(kind['kind']):<14}", "bold"), one_line(kind["about"], max_length=200), "  ", (ready, "dim")
    )


def _made(export: dict[str, Any]) -> Content:
    lines = [f"✔ {one_line(export['kind'])} · {size(export['bytes'])}", safe_text(export["path"])]
    return Content("\n".join([*lines, *("  " + safe_text(command) for command in export.get("commands", []))]))
