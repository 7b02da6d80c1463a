"""Step 3: the adapter and how long it is trained; by goal, field by field, or as YAML."""

from asyncio import to_thread
from typing import Any

import yaml
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.timer import Timer
from textual.widgets import ContentSwitcher, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from screens.actions import ACTIONS, bind, key_name
from screens.consequences import consequences
from screens.step_screen import StepScreen
from screens.widgets.fields import FieldLine
from screens.widgets.tick import ChoiceList
from screens.widgets.yaml_area import YamlArea, read_recipe
from tuitune.advice import USUAL
from tuitune.errors import TuituneError
from tuitune.glance import measured_speed
from tuitune.recipe import Recipe
from tuitune.text import safe_text

_SHORT_RUN = {"train.num_train_epochs": 1.0, "lora.r": 16, "lora.lora_alpha": 16.0}
GOALS: dict[str, tuple[str, dict[str, Any]]] = {
    "Quick try": ("60 steps: does it work, and does the loss fall?", {"train.max_steps": 60, **_SHORT_RUN}),
    "Balanced": ("one pass over the data", {"train.max_steps": -1, **_SHORT_RUN, "data.eval_share": 0.05}),
    "Thorough": (
        "three passes, with a larger adapter",
        {
            "train.max_steps": -1,
            "train.num_train_epochs": 3.0,
            "lora.r": 32,
            "lora.lora_alpha": 32.0,
            "data.eval_share": 0.05,
        },
    ),
}
_OWN = "As chosen"
_VIEWS = {"goals": "by goal", "fields": "every field", "yaml": "YAML"}
_SETTLE_SECONDS = 0.4


class LoraScreen(StepScreen):
    """Three views of the same recipe, and what it would mean here."""

    STEP = "lora"
    CSS_PATH = "lora.tcss"
    BINDINGS = bind("next_view")

    def __init__(self) -> None:
        super().__init__()
        self._settling: Timer | None = None
        self._goals: list[str] = []

    def body(self) -> ComposeResult:
        with ContentSwitcher(id="views", initial="goals"):
            goals = ChoiceList(id="goals", markup=False)
            goals.tooltip = "What you want from this run; Enter starts it."
            yield goals
            with Vertical(id="fields"):
                with VerticalScroll(id="lines", can_focus=False):
                    yield from self._field_lines()
                yield Static(id="meaning")
            text = YamlArea("", id="yaml", compact=True, tab_behavior="indent")
            text.tooltip = "The whole recipe; what you write is taken over as soon as it is valid."
            yield text
        with VerticalScroll(id="means", can_focus=False) as means:
            means.border_title = "What that means"
            yield Static(id="consequences")

    def _field_lines(self) -> ComposeResult:
        for section, info in Recipe.model_fields.items():
            kind: Any = info.annotation
            yield Static(Content(section.capitalize()), classes="heading")
            for name, field_info in kind.model_fields.items():
                field = f"{section}.{name}"
                yield FieldLine(field, field_info, self.tuitune.link.draft.get(field))

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self._title()
        self._show_draft()
        self._focus_view()
        self._look_ahead()

    @property
    def view(self) -> str:
        return self.query_one("#views", ContentSwitcher).current or "goals"

    def _title(self) -> None:
        views = self.query_one("#views")
        views.border_title = Content(f"Settings: {_VIEWS[self.view]}")
        others = ", then ".join(title for name, title in _VIEWS.items() if name != self.view)
        key = "Enter" if self.view == "goals" else key_name(ACTIONS["go_on"], last=True)
        go_on = "shows the run" if self.tuitune.link.is_training else "starts the run"
        views.border_subtitle = Content(f"{key} {go_on} · {key_name(ACTIONS['next_view'])}: {others}")
        self.query_one("#means").set_class(self.view != "goals", "-brief")

    def _focus_view(self) -> None:
        target = {"goals": "#goals", "fields": "#lora-r Input", "yaml": "#yaml"}[self.view]
        self.call_after_refresh(self.query_one(target).focus)

    def _show_draft(self) -> None:
        """Show the draft in the current view."""
        draft = self.tuitune.link.draft
        if self.view == "goals":
            self._list_goals()
        elif self.view == "fields":
            for line in self.query(FieldLine):
                line.show(draft.get(line.field))
            self._mark_fields()
        else:
            try:
                text = draft.recipe().to_yaml()
            except TuituneError:
                text = yaml.safe_dump(draft.data, sort_keys=False, allow_unicode=True)
            area = self.query_one("#yaml", TextArea)
            with self.prevent(TextArea.Changed):
                area.load_text(safe_text(text))
            self._check_yaml()

    def action_next_view(self) -> None:
        views = list(_VIEWS)
        switcher = self.query_one("#views", ContentSwitcher)
        switcher.current = views[(views.index(self.view) + 1) % len(views)]
        self._title()
        self._show_draft()
        self._focus_view()

    # --- by goal ----------------------------------------------------------------------------------------------

    def _list_goals(self) -> None:
        draft = self.tuitune.link.draft
        matching = next(
            (goal for goal, (_, wanted) in GOALS.items() if all(draft.get(f) == v for f, v in wanted.items())), None
        )
        self._goals = [*([] if matching else [_OWN]), *GOALS]
        goals = self.query_one("#goals", OptionList)
        with self.prevent(OptionList.OptionHighlighted):
            goals.clear_options()
            for goal in self._goals:
                about = GOALS[goal][0] if goal in GOALS else "the settings of the recipe, or as you changed them"
                line = Content.assemble((f"{goal:<12}", "bold"), (about, "$foreground 70%"))
                goals.add_option(Option(line, id=goal))
            goals.highlighted = self._goals.index(matching or _OWN)
        self._own = {field: draft.get(field) for _, wanted in GOALS.values() for field in wanted}

    @on(OptionList.OptionHighlighted, "#goals")
    def _goal_moved(self, event: OptionList.OptionHighlighted) -> None:
        goal = str(event.option.id)
        wanted = GOALS[goal][1] if goal in GOALS else self._own
        for field, value in wanted.items():
            self.tuitune.link.draft.set(field, value)
        self._changed()

    # --- field by field, and as YAML ---------------------------------------------------------------------------

    @on(FieldLine.Changed)
    def _field_changed(self, message: FieldLine.Changed) -> None:
        self.tuitune.link.draft.set(message.line.field, message.value)
        self._mark_fields()
        self._changed()

    def _mark_fields(self) -> None:
        errors = self.tuitune.link.draft.errors()
        for line in self.query(FieldLine):
            line.mark(_of(errors, line.field))
        self.show_problem(next(iter(errors.values()), None))

    @on(DescendantFocus)
    def _explain_field(self, event: DescendantFocus) -> None:
        line = next((each for each in event.widget.ancestors if isinstance(each, FieldLine)), None)
        if line is None:
            return
        usual = f" Usual: {USUAL[line.field]}." if line.field in USUAL else ""
        self.query_one("#meaning", Static).update(Content(f"{line.info.description or ''}{usual}"))

    @on(TextArea.Changed, "#yaml")
    def _yaml_changed(self) -> None:
        recipe = self._check_yaml()
        if recipe is not None:
            self.tuitune.link.draft.data = recipe.model_dump(mode="json")
            self._changed()

    def _check_yaml(self) -> Recipe | None:
        """The recipe as it is written; None, and the wrong lines marked, where it cannot be used."""
        area = self.query_one("#yaml", YamlArea)
        found, problems = read_recipe(area.text)
        area.mark(line for line, _ in problems)
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        self.show_problem(f"Line {problems[0][0] + 1}: {problems[0][1]}{more}" if problems else None)
        return found

    # --- what it means -----------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Ask again what the settings mean, once they have not changed for a moment."""
        if self._settling is not None:
            self._settling.stop()
        self._settling = self.set_timer(_SETTLE_SECONDS, self._look_ahead)

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def _look_ahead(self) -> None:
        shown = self.query_one("#consequences", Static)
        try:
            recipe = self.tuitune.link.draft.recipe()
        except TuituneError as error:
            self.show_problem(next(iter(self.tuitune.link.draft.errors().values()), str(error)))
            return
        shown.update(consequences(recipe, None))
        try:
            found = await self.tuitune.link.call("estimate", recipe=recipe.model_dump(mode="json"))
        except TuituneError as error:
            shown.update(consequences(recipe, None, counting=False))
            self.show_problem(error)
            return
        device = found["device"].removeprefix("the ")
        speed = await to_thread(
            measured_speed, self.tuitune.link.runs_folder, recipe.model.name, device, found["backend"]
        )
        shown.update(consequences(recipe, found, speed))

    # --- on -----------------------------------------------------------------------------------------------------

    async def action_go_on(self) -> None:
        if not self.tuitune.link.is_training:
            try:
                await self.tuitune.start_run()
            except TuituneError as error:
                self.show_problem(error)
                return
        await self.tuitune.show_step("train")


def _of(errors: dict[str, str], field: str) -> str | None:
    """The error of a field or of something inside it."""
    return next((text for name, text in errors.items() if name == field or name.startswith(f"{field}.")), None)
