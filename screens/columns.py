"""Says which column of a dataset is which, where its format is not recognised."""

from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Select, Static

from tuitune.language import N_, _
from tuitune.text import one_line


class ColumnsScreen(ModalScreen[dict[str, str] | None]):
    """A role for each column; gives role to column, {} for letting tuitune recognise the format, None for no change."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", N_("Close"))]
    DEFAULT_CSS = """
    ColumnsScreen { align: center middle; }
    ColumnsScreen > Vertical {
        width: 78; max-width: 98%; height: auto; max-height: 95%; padding: 0 1;
        background: $surface; border: round $primary;
    }
    ColumnsScreen VerticalScroll { height: auto; max-height: 16; }
    ColumnsScreen .column { height: 1; }
    ColumnsScreen .column-name { width: 20; text-style: bold; }
    ColumnsScreen .column-value { width: 1fr; color: $foreground 60%; padding: 0 1; }
    ColumnsScreen .column-value { text-wrap: nowrap; text-overflow: ellipsis; }
    ColumnsScreen Select { width: 22; }
    ColumnsScreen .buttons { height: auto; margin-top: 1; align-horizontal: right; }
    ColumnsScreen Button { margin-left: 2; }
    """

    def __init__(self, columns: dict[str, str], mappable: list[str], chosen: dict[str, str]) -> None:
        super().__init__()
        self._columns = list(columns)
        self._values = columns
        self._mappable = mappable
        self._roles = {column: role for role, column in chosen.items()}

    def compose(self) -> ComposeResult:
        roles: list[tuple[str, Any]] = [(role, role) for role in self._mappable]
        with Vertical() as panel:
            panel.border_title = _("Which column is which?")
            panel.border_subtitle = _("Tab moves · Enter opens · Esc closes")
            yield Static(Content(_("Map at least user and assistant; or messages; or prompt and completion; or text.")))
            with VerticalScroll(can_focus=False):
                for number, column in enumerate(self._columns):
                    with Horizontal(classes="column"):
                        yield Static(Content(one_line(column, max_length=19)), classes="column-name")
                        role = self._roles.get(column, Select.NULL)
                        yield Select(roles, prompt=_("not used"), value=role, id=f"column-{number}", compact=True)
                        yield Static(Content(one_line(self._values[column], max_length=60)), classes="column-value")
            with Horizontal(classes="buttons"):
                yield Button(_("Use these"), variant="primary", id="use")
                yield Button(_("Recognise by itself"), id="recognise")

    @on(Button.Pressed, "#use")
    def _use(self) -> None:
        chosen = {}
        for number, column in enumerate(self._columns):
            role = self.query_one(f"#column-{number}", Select).value
            if isinstance(role, str):
                chosen[role] = column
        self.dismiss(chosen)

    @on(Button.Pressed, "#recognise")
    def _recognise(self) -> None:
        self.dismiss({})
