"""Step 1: which model is fine-tuned."""

from textual import on
from textual.app import ComposeResult
from textual.widgets import Checkbox, Input, Static

from screens.step_screen import StepScreen


class ModelScreen(StepScreen):
    """A model folder or Hub id, and how its weights are held."""

    STEP = "model"
    CSS_PATH = "model.tcss"

    def body(self) -> ComposeResult:
        draft = self.tuitune.draft
        yield Static("Model folder or Hugging Face Hub id", classes="label")
        name = Input(
            str(draft.get("model.name") or ""), placeholder="./my-model or unsloth/Llama-3.2-1B-Instruct", id="name"
        )
        name.tooltip = "A folder with config.json, tokenizer and .safetensors weights, or a Hub id like owner/name."
        yield name
        held = bool(draft.get("model.load_in_4bit"))
        four_bit = Checkbox("Hold the frozen weights in 4-bit", held, id="four-bit")
        four_bit.tooltip = "About a quarter of the memory of 16-bit, at a small cost in accuracy."
        yield four_bit

    def on_mount(self) -> None:
        self.query_one("#name").focus()

    @on(Input.Changed, "#name")
    def _name_changed(self, event: Input.Changed) -> None:
        self.tuitune.draft.set("model.name", event.value.strip())
        self.show_problem(None)

    @on(Checkbox.Changed)
    def _four_bit_changed(self, event: Checkbox.Changed) -> None:
        self.tuitune.draft.set("model.load_in_4bit", event.value)

    @on(Input.Submitted)
    async def _submitted(self) -> None:
        await self.action_go_on()

    async def action_go_on(self) -> None:
        if not self.tuitune.draft.get("model.name"):
            self.show_problem("Which model? Give a model folder or a Hugging Face Hub id.")
            return
        await super().action_go_on()
