"""Beside a chat: the system prompt, and how the next token is chosen."""

from typing import Any

from pydantic import ValidationError
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.message import Message
from textual.widgets import Select, Static

from screens.widgets.fields import FieldLine
from screens.widgets.prompt import Prompt
from tuitune.chat.sampling import PRESETS, Sampling, preset, preset_of
from tuitune.language import _
from tuitune.recipe import field_errors


class SamplingPanel(VerticalScroll, can_focus=False):
    """The fields, alone or several at once by a preset. `fields` are those that differ from the defaults."""

    class Changed(Message):
        """Something is another than before; what cannot be used is the panel's `problem`, not in its `fields`."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.fields: dict[str, Any] = {}
        self._problems: dict[str, str] = {}
        """Fields whose value cannot be used, and why."""
        self.system = ""

    def compose(self) -> ComposeResult:
        yield Static(_("System prompt"), classes="label")
        system = Prompt(_("none"), id="system")
        system.tooltip = _("What the model is told before the conversation begins.")
        yield system
        yield Static(_("How the next token is chosen"), classes="label")
        with Horizontal(id="preset-line"):
            yield Static(_("preset"), classes="field-name")
            chosen = Select([(name, name) for name in PRESETS], prompt=_("your own"), value="greedy", compact=True)
            chosen.tooltip = _("Several fields at once; notebook is what Unsloth's notebooks chat with.")
            yield chosen
        for name, info in Sampling.model_fields.items():
            yield FieldLine(name, info, info.default)
        yield Static(id="meaning")

    @property
    def problem(self) -> str | None:
        """Why the first value that cannot be used is wrong; None where all can."""
        return next(iter(self._problems.values()), None)

    @property
    def preset(self) -> str | None:
        """The preset that the fields mean."""
        return preset_of(self.fields)

    def next_preset(self) -> str:
        """Take the preset after the one that holds; its name."""
        names = list(PRESETS)
        name = names[(names.index(self.preset) + 1) % len(names)] if self.preset else names[0]
        self._take(name)
        return name

    def take_over(self, other: "SamplingPanel") -> None:
        """Hold what another panel, in whose place this one stands, has held."""
        self.query_one(Prompt).text = other.system
        self._put(other.fields)

    def _take(self, name: str) -> None:
        self._put({**self.fields, **preset(name)})

    def _put(self, fields: dict[str, Any]) -> None:
        sampling = Sampling.model_validate(fields)
        self.fields, self._problems = sampling.model_dump(exclude_defaults=True), {}
        for line in self.query(FieldLine):
            line.show(getattr(sampling, line.field))
            line.mark(None)
        self._show_preset()

    def _show_preset(self) -> None:
        chosen = self.query_one("#preset-line Select", Select)
        with self.prevent(Select.Changed):
            chosen.value = self.preset or Select.NULL
        self.post_message(self.Changed())

    @on(Prompt.Changed, "#system")
    def _system_changed(self, event: Prompt.Changed) -> None:
        self.system = event.text_area.text.strip()
        self.post_message(self.Changed())

    @on(Select.Changed, "#preset-line Select")
    def _preset_chosen(self, event: Select.Changed) -> None:
        if isinstance(event.value, str):
            self._take(event.value)

    @on(DescendantFocus)
    def _explain_field(self, event: DescendantFocus) -> None:
        line = next((parent for parent in event.widget.ancestors if isinstance(parent, FieldLine)), None)
        if line is not None:
            self.query_one("#meaning", Static).update(Content(_(line.info.description or "")))

    @on(FieldLine.Changed)
    def _field_changed(self, message: FieldLine.Changed) -> None:
        name = message.line.field
        try:
            checked = Sampling.model_validate({**self.fields, name: message.value})
        except ValidationError as error:
            self._problems[name] = field_errors(error)[name]
            message.line.mark(self._problems[name])
            self.post_message(self.Changed())
            return
        self._problems.pop(name, None)
        message.line.mark(None)
        self.fields = checked.model_dump(exclude_defaults=True)
        self._show_preset()
