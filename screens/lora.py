"""Step 3: the adapter and how long it is trained."""

from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Grid
from textual.widgets import Input, Static

from screens.step_screen import StepScreen
from tuitune.errors import TuituneError
from tuitune.recipe import Recipe

_FIELDS = (
    "lora.r",
    "lora.lora_alpha",
    "lora.lora_dropout",
    "train.max_steps",
    "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps",
    "train.learning_rate",
    "data.max_length",
)


class LoraScreen(StepScreen):
    """The settings that matter most; Enter starts the run."""

    STEP = "lora"
    CSS_PATH = "lora.tcss"

    def body(self) -> ComposeResult:
        with Grid(id="fields"):
            for field in _FIELDS:
                section, _, name = field.partition(".")
                info = Recipe.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
                yield Static(name, classes="label")
                entry = Input(str(self.tuitune.draft.get(field)), id=field.replace(".", "-"), compact=True)
                entry.tooltip = info.description
                yield entry

    def on_mount(self) -> None:
        self.query(Input).first().focus()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        section, _, name = str(event.input.id).partition("-")
        self.tuitune.draft.set(f"{section}.{name}", _number(event.value))
        problem = self.tuitune.draft.errors().get(f"{section}.{name}")
        event.input.set_class(problem is not None, "-invalid")
        self.show_problem(problem)

    @on(Input.Submitted)
    async def _submitted(self) -> None:
        await self.action_go_on()

    async def action_go_on(self) -> None:
        if not self.tuitune.is_training:
            try:
                self.tuitune.start_run()
            except TuituneError as error:
                self.show_problem(error)
                return
        await self.tuitune.show_step("train")


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
