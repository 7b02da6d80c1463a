"""One line a field: its name, its value in the widget that suits it, and a mark where the value cannot be used."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Checkbox, Input, Select, Static

from screens.draft import default_of
from screens.widgets.entry import Entry
from screens.widgets.tick import Tick
from tuitune.language import _
from tuitune.text import one_line


class FieldLine(Horizontal):
    """A field of a pydantic model, edited in place. The value is checked by whoever hears `Changed`."""

    DEFAULT_CSS = """
    FieldLine {
        height: 1;
        .field-name { width: 30; padding: 0 1; color: $foreground 70%; }
        .field-mark { width: 2; color: $text-warning; }
        .field-note { width: 1fr; }
        &.-wrong .field-mark { color: $text-error; }
        &.-changed .field-name { color: $text; text-style: bold; }
        Input, Select { width: 1fr; max-width: 60; }
        Checkbox { border: none; padding: 0; }
        &:focus-within .field-name { color: $text; text-style: bold; }
    }
    """

    class Changed(Message):
        """The user gave the field another value: text for numbers, which pydantic parses."""

        def __init__(self, line: "FieldLine", value: Any) -> None:
            super().__init__()
            self.line = line
            self.value = value

    def __init__(self, field: str, info: FieldInfo, value: Any) -> None:
        super().__init__(id=field.replace(".", "-"))
        self.field = field
        self.info = info
        self._value = value

    def compose(self) -> ComposeResult:
        yield Static(Content(self.field.rpartition(".")[2]), classes="field-name")
        yield Static("", classes="field-mark")
        choices = choices_of(self.info.annotation)
        entry: Input | Checkbox | Select[Any]
        if not is_editable(self.info.annotation):
            yield Static(Content.styled(_("edited as YAML"), "$foreground 60%"), classes="field-note")
            return
        if self.info.annotation is bool:
            entry = Tick("", bool(self._value), compact=True)
        elif choices:
            entry = Select(choices, value=self._value, allow_blank=False, compact=True)
        else:
            entry = Entry(as_text(self._value), compact=True)
        entry.tooltip = Content(_(self.info.description or ""))
        yield entry

    def show(self, value: Any) -> None:
        """Show another value without telling of a change."""
        self._value = value
        if not is_editable(self.info.annotation):
            return
        entry = self.query_one("Input, Checkbox, Select")
        with self.prevent(Input.Changed, Checkbox.Changed, Select.Changed):
            if isinstance(entry, Input):
                if as_value(self.info, entry.value) != value and entry.value != as_text(value):
                    entry.value = as_text(value)
            elif isinstance(entry, Checkbox):
                entry.value = bool(value)
            elif isinstance(entry, Select):
                entry.value = value

    def mark(self, problem: str | None) -> None:
        """Mark the field as wrong, as another than usual, or not at all."""
        self.query_one(".field-mark", Static).update("✘" if problem else "•" if self.is_changed else "")
        self.set_class(problem is not None, "-wrong")
        self.set_class(self.is_changed, "-changed")

    @property
    def is_changed(self) -> bool:
        """Whether the value is another than the field's default."""
        if self.info.is_required():
            return False
        default = default_of(self.info)
        return self._value != default and as_text(self._value) != as_text(default)

    @property
    def value(self) -> Any:
        """What the field says now; text for numbers, which pydantic parses."""
        if not is_editable(self.info.annotation):
            return self._value
        entry = self.query_one("Input, Checkbox, Select")
        if isinstance(entry, Input):
            # Text may say less than the value (two spaces, a control character in a path): as it was, it means it.
            return self._value if entry.value == as_text(self._value) else as_value(self.info, entry.value)
        assert isinstance(entry, Checkbox | Select)
        return entry.value

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._tell(self.value)

    def _tell(self, value: Any) -> None:
        self._value = value
        self.post_message(self.Changed(self, value))

    @on(Checkbox.Changed)
    def _ticked(self, event: Checkbox.Changed) -> None:
        event.stop()
        self._tell(event.value)

    @on(Select.Changed)
    def _chosen(self, event: Select.Changed) -> None:
        event.stop()
        self._tell(event.value)


def choices_of(annotation: Any) -> list[tuple[str, Any]]:
    """What a field with fixed values can be, labelled; empty for a field that is written."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    choices: list[tuple[str, Any]] = []
    for part in parts:
        if get_origin(part) is Literal:
            choices += [(str(value), value) for value in get_args(part)]
        elif part is bool and len(parts) > 1:
            choices += [(_("yes"), True), (_("no"), False)]
        elif part is types.NoneType:
            choices.append((_("by itself"), None))
        else:
            return []
    return choices


def is_editable(annotation: Any) -> bool:
    """Whether a line can hold the value: not a list of sections, nor a tuple of texts whose spaces and commas count."""
    if get_origin(annotation) is list:
        held = get_args(annotation)[0]
        return get_origin(held) is not Annotated and not (isinstance(held, type) and issubclass(held, BaseModel))
    return get_origin(annotation) is not tuple


def _holds(annotation: Any, kind: type) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_holds(part, kind) for part in get_args(annotation))
    return annotation is kind or get_origin(annotation) is kind


def _words_of(annotation: Any) -> list[str]:
    """The fixed values of a field that takes names of one's own as well."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [word for part in parts if get_origin(part) is Literal for word in get_args(part)]


def as_text(value: Any) -> str:
    """A value as it is edited: lists with commas, dictionaries as `name: value` pairs, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(one_line(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{one_line(name)}: {one_line(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return one_line(value)


def as_value(info: FieldInfo, text: str) -> Any:
    """The value that edited text means; numbers stay text, which pydantic parses or refuses."""
    text = text.strip()
    if _holds(info.annotation, list) and text not in _words_of(info.annotation):
        return [part.strip() for part in text.split(",") if part.strip()]
    if not text and _holds(info.annotation, types.NoneType):
        return None
    if _holds(info.annotation, dict):
        pairs = [part.partition(":") for part in text.split(",") if part.strip()]
        return {name.strip(): value.strip() for name, _colon, value in pairs}
    return text
