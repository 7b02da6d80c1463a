"""Choosing who answers in a chat: the adapter, the base model, checkpoints, other runs."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from screens.widgets.tick import Line, TickList
from tuitune.chat.conversation import Side
from tuitune.export import exports_of
from tuitune.language import N_, _
from tuitune.runs.folder import Run, all_runs
from tuitune.train.checkpoints import checkpoints_of, step_of

_RUNS = 30


def sides_of(run: Run, runs: list[Run], *, documents: bool) -> list[Side]:
    """Everyone who can be asked in a chat with `run`; `documents`: with and without those that are attached."""
    folder = run.folder
    sides = [Side(folder), Side(folder, adapter=False)]
    if documents:
        sides += [Side(folder, documents=False), Side(folder, adapter=False, documents=False)]
    sides += [Side(folder, checkpoint=str(step_of(checkpoint))) for checkpoint in reversed(checkpoints_of(run))]
    ggufs = [export.kind for export in exports_of(run) if export.path.suffix == ".gguf"]
    sides += [Side(folder, engine=kind) for kind in ggufs if kind.startswith("gguf:")]
    return sides + [Side(other.folder) for other in runs if other.folder != folder and other.adapter.is_dir()]


class SidesScreen(ModalScreen[list[Side] | None]):
    """Ticks; Enter takes them, Esc leaves everything as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", N_("Take"), priority=True),
        Binding("escape", "dismiss(None)", N_("Close")),
    ]
    DEFAULT_CSS = """
    SidesScreen { align: center middle; }
    SidesScreen > Vertical {
        width: 56; max-width: 96%; height: auto; max-height: 90%; padding: 0 1;
        background: $surface; border: round $primary;
    }
    SidesScreen TickList { height: auto; max-height: 14; border: none; background: transparent; padding: 0; }
    SidesScreen TickList:focus { border: none; }
    SidesScreen Static { color: $foreground 70%; margin-top: 1; }
    """

    def __init__(self, run: Run, runs_folder_runs: list[Run], chosen: list[Side], *, documents: bool) -> None:
        super().__init__()
        self._chosen = chosen
        self._run = run
        self._sides = sides_of(run, runs_folder_runs, documents=documents)
        self._sides += [side for side in chosen if side not in self._sides]

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            panel.border_title = _("Who answers")
            panel.border_subtitle = _("Space ticks · Enter takes · Esc closes")
            yield TickList(id="sides")
            yield Static(Content(_("Several answer the same, with one seed, one after the other.")))

    def on_mount(self) -> None:
        places = {str(place): side for place, side in enumerate(self._sides)}
        ticks = self.query_one(TickList)
        ticks.show(
            (Line(place, Content(side.label(self._run.folder))) for place, side in places.items()),
            (place for place, side in places.items() if side in self._chosen),
        )
        ticks.highlighted = 0

    def action_take(self) -> None:
        ticked = self.query_one(TickList).ticked
        self.dismiss([side for place, side in enumerate(self._sides) if str(place) in ticked] or None)


def runs_beside(run: Run) -> list[Run]:
    """The newest runs in the folder of a run."""
    return all_runs(run.folder.parent)[:_RUNS]
