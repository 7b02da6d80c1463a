"""Step 3: the adapter and how long it is trained; by goal, field by field, or as YAML."""

from asyncio import to_thread
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal

import yaml
from pydantic.fields import FieldInfo
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.timer import Timer
from textual.widgets import ContentSwitcher, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from screens.actions import ACTIONS, bind, key_name
from screens.confirm import ConfirmScreen
from screens.consequences import consequences
from screens.step_screen import StepScreen
from screens.widgets.fields import FieldLine
from screens.widgets.fit import fit
from screens.widgets.scrolled import Scrolled
from screens.widgets.tick import ChoiceList
from screens.widgets.yaml_area import Problem, YamlArea, read_recipe
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.methods import METHODS
from tuitune.plan.advice import USUAL
from tuitune.recipe import Recipe, section_of
from tuitune.runs.cost import Price
from tuitune.runs.speed import measured_speed
from tuitune.session.preparing_requests import Estimate, HubAccess
from tuitune.text import one_line, safe_text

_SHORT_RUN = {"train.num_train_epochs": 1.0, "lora.r": 16, "lora.lora_alpha": 16.0}
GOALS: dict[str, tuple[str, dict[str, Any]]] = {
    N_("Quick try"): (N_("60 steps: does it work, and does the loss fall?"), {"train.max_steps": 60, **_SHORT_RUN}),
    N_("Balanced"): (N_("one pass over the data"), {"train.max_steps": -1, **_SHORT_RUN}),
    N_("Thorough"): (
        N_("three passes, with a larger adapter"),
        {"train.max_steps": -1, "train.num_train_epochs": 3.0, "lora.r": 32, "lora.lora_alpha": 32.0},
    ),
}
_HELD_OUT_SHARE = 0.05
_ROWS_ENOUGH = 80
"""Of which that share is four rows, whose loss begins to say something."""
_OWN = N_("As chosen")
_ABOUT_OWN = N_("the settings of the recipe, or as you changed them")
_VIEWS = {"goals": N_("by goal"), "fields": N_("every field"), "yaml": N_("YAML")}
_SETTLE_SECONDS = 0.4


class LoraScreen(StepScreen):
    """Three views of the same recipe, and what it would mean here."""

    STEP = "lora"
    CSS_PATH = "lora.tcss"
    BINDINGS = bind("next_view")

    def __init__(self) -> None:
        super().__init__()
        self._settling: Timer | None = None
        self._yaml = ""
        """The YAML as it was shown, before the user edited it."""
        self._yaml_of: dict[str, Any] = {}
        """The draft that the YAML was written from, or last taken over to."""
        self._goals: list[str] = []
        self._ask_again = False
        """Whether the Hub is asked once more about a repository that it refused."""
        self._lines_of = ""
        """The method whose fields have a line."""

    def body(self) -> ComposeResult:
        with ContentSwitcher(id="views", initial="goals"):
            goals = ChoiceList(id="goals", markup=False)
            goals.tooltip = _("What you want from this run; Enter starts it.")
            yield goals
            with Vertical(id="fields"):
                with VerticalScroll(id="lines", can_focus=False):
                    yield from self._field_lines()
                yield Static(id="meaning")
            text = YamlArea("", id="yaml")
            text.tooltip = _("The whole recipe; what you write is taken over as soon as it is valid.")
            yield text
        with Scrolled(id="means") as means:
            means.border_title = _("What that means")
            yield Static(id="consequences")

    def _field_lines(self) -> ComposeResult:
        for section in Recipe.model_fields:
            yield Static(Content(section.capitalize()), classes="heading")
            if section == "method":
                self._lines_of = self.tuitune.link.draft.get("method.name")
                yield Vertical(*self._method_lines(), id="method-lines")
                continue
            for name, info in section_of(section).model_fields.items():
                yield FieldLine(f"{section}.{name}", info, self.tuitune.link.draft.get(f"{section}.{name}"))

    def _method_lines(self) -> Iterator[FieldLine]:
        """The method itself, and the fields of the one that is chosen."""
        draft = self.tuitune.link.draft
        annotation: Any = Literal[*METHODS]
        names = FieldInfo(annotation=annotation, description=METHODS[draft.get("method.name")].sentence)
        yield FieldLine("method.name", names, draft.get("method.name"))
        for name, info in section_of("method", draft.get("method.name")).model_fields.items():
            if name != "name":
                yield FieldLine(f"method.{name}", info, draft.get(f"method.{name}"))

    async def _show_method_lines(self) -> None:
        """Another method was chosen: the lines of its own fields take the place of the other's."""
        name = self.tuitune.link.draft.get("method.name")
        if name == self._lines_of or name not in METHODS:
            return
        self._lines_of = name
        lines = self.query_one("#method-lines")
        had_focus = self.focused is not None and lines in self.focused.ancestors
        await lines.remove_children()
        await lines.mount_all(self._method_lines())
        if had_focus:
            self.query_one("#method-name Select").focus()

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        draft = self.tuitune.link.draft
        if not draft.data.get("train") and not draft.data.get("lora"):  # nobody has chosen anything yet
            self._apply(self._fields_of("Quick try"))
        self._title()
        self._show_draft()
        self._focus_view()
        self._ask_again = True
        if not (self.view == "yaml" and self.query_one("#yaml", YamlArea).wrong):
            self._look_ahead()

    @property
    def view(self) -> str:
        return self.query_one("#views", ContentSwitcher).current or "goals"

    def _title(self) -> None:
        views = self.query_one("#views")
        views.border_title = Content(_("Settings: {view}", view=_(_VIEWS[self.view])))
        first, second = (_(title) for name, title in _VIEWS.items() if name != self.view)
        others = _("{first}, then {second}", first=first, second=second)
        key = key_name(ACTIONS["go_on"], last=self.view == "yaml")  # where Enter breaks the line
        go_on = (
            _("{key} shows the run", key=key) if self.tuitune.link.is_training else _("{key} starts the run", key=key)
        )
        views.border_subtitle = Content(
            f"{go_on} · {_('{key}: {others}', key=key_name(ACTIONS['next_view']), others=others)}"
        )
        self.query_one("#means").set_class(self.view != "goals", "-brief")

    def _focus_view(self) -> None:
        target = {"goals": "#goals", "fields": "#lora-r Input", "yaml": "#yaml"}[self.view]
        self.call_after_refresh(self.query_one(target).focus)

    def _show_draft(self) -> None:
        """Show the draft in the current view."""
        if self.view == "goals":
            self._list_goals()
        elif self.view == "fields":
            self._fill_lines()
        else:
            self._show_yaml()

    def action_next_view(self) -> None:
        if not self._take_view():
            return
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
            (goal for goal in GOALS if all(draft.get(f) == value for f, value in self._fields_of(goal).items())), None
        )
        self._goals = [*([] if matching else [_OWN]), *GOALS]
        goals = self.query_one("#goals", OptionList)
        with self.prevent(OptionList.OptionHighlighted):
            goals.clear_options()
            for goal in self._goals:
                about = GOALS[goal][0] if goal in GOALS else _ABOUT_OWN
                line = Content.assemble((fit(_(goal), 12), "bold"), (_(about), "$foreground 70%"))
                goals.add_option(Option(line, id=goal))
            goals.highlighted = self._goals.index(matching or _OWN)
        self._own = {field: draft.get(field) for goal in GOALS for field in self._fields_of(goal)}

    @on(OptionList.OptionHighlighted, "#goals")
    def _goal_moved(self, event: OptionList.OptionHighlighted) -> None:
        goal = str(event.option.id)
        self._apply(self._fields_of(goal) if goal in GOALS else self._own)
        self._changed()

    def _fields_of(self, goal: str) -> dict[str, Any]:
        """The fields that make a goal, with some rows held out where there are enough and none are given."""
        draft = self.tuitune.link.draft
        fields = dict(GOALS[goal][1])
        if draft.rows is not None and not draft.get("data.eval_path") and not draft.get("data.eval_split"):
            fields["data.eval_share"] = _HELD_OUT_SHARE if draft.rows >= _ROWS_ENOUGH else 0.0
        return fields

    def _apply(self, fields: dict[str, Any]) -> None:
        for field, value in fields.items():
            self.tuitune.link.draft.set(field, value)

    # --- field by field, and as YAML ---------------------------------------------------------------------------

    @on(FieldLine.Changed)
    def _field_changed(self, message: FieldLine.Changed) -> None:
        self.tuitune.link.draft.set(message.line.field, message.value)
        if message.line.field == "method.name":
            self._fill_lines()
        else:
            self._mark_fields()
        self._changed()

    def _lines(self) -> list[FieldLine]:
        """The lines of fields that the draft has; lines of the method before may not be removed yet."""
        held = section_of("method", self._lines_of).model_fields
        named = section_of("method", self.tuitune.link.draft.get("method.name")).model_fields
        stale = {f"method.{name}" for name in held if name not in named}
        return [line for line in self.query(FieldLine) if line.field not in stale]

    @work(exclusive=True, group="lines", exit_on_error=False)
    async def _fill_lines(self) -> None:
        await self._show_method_lines()
        for line in self._lines():
            line.show(self.tuitune.link.draft.get(line.field))
        self._mark_fields()

    def _mark_fields(self) -> None:
        errors = self.tuitune.link.draft.errors()
        for line in self._lines():
            line.mark(_of(errors, line.field))
        self.show_problem(next(iter(errors.values()), None))

    @on(DescendantFocus)
    def _explain_field(self, event: DescendantFocus) -> None:
        line = next((widget for widget in event.widget.ancestors if isinstance(widget, FieldLine)), None)
        if line is not None:
            self.query_one("#meaning", Static).update(meaning_of(line))

    def _show_yaml(self) -> None:
        """Show the draft as YAML; an edit that cannot be used stays, unless the draft has changed since."""
        draft, area = self.tuitune.link.draft, self.query_one("#yaml", YamlArea)
        pending = area.wrong and area.text != self._yaml
        if pending and draft.data == self._yaml_of:
            self._take_yaml()
            return
        try:
            text = draft.recipe().to_yaml()
        except TuituneError:
            text = yaml.safe_dump(draft.data, sort_keys=False, allow_unicode=True)
        with self.prevent(TextArea.Changed):
            if pending:
                area.replace(safe_text(text), (0, 0), area.document.end)
                self.notify(_("The recipe was changed on another screen; ^z brings back what stood here."))
            else:
                area.load_text(safe_text(text))
        self._yaml, self._yaml_of = area.text, deepcopy(draft.data)
        self._check_yaml()

    @on(TextArea.Changed, "#yaml")
    def _take_yaml(self) -> bool:
        """Take the YAML over as the draft; False, and the wrong lines marked, where it cannot be used."""
        was_wrong = self.query_one("#yaml", YamlArea).wrong
        recipe = self._check_yaml()
        if recipe is None:
            self._forget_meaning()
            return False
        draft, data = self.tuitune.link.draft, recipe.model_dump(mode="json")
        try:
            same = draft.as_data() == data
        except TuituneError:
            same = False
        if not same:
            draft.data, self._yaml_of = data, deepcopy(data)
        if not same or was_wrong:
            self._changed()
        return True

    def _check_yaml(self) -> Recipe | None:
        """The recipe as it is written; None, and the wrong lines marked, where it cannot be used."""
        area = self.query_one("#yaml", YamlArea)
        recipe, problems = read_recipe(area.text)
        area.mark(line for line, _problem in problems)
        self.show_problem(_told(problems))
        return recipe

    def _take_view(self) -> bool:
        """Put what this view says into the draft, also the last typed letters; False where that is not possible."""
        if self.view == "yaml":
            return self.query_one("#yaml", TextArea).text == self._yaml or self._take_yaml()
        if self.view == "fields":
            for line in self._lines():
                if line.value != self.tuitune.link.draft.get(line.field):
                    self.tuitune.link.draft.set(line.field, line.value)
        return True

    # --- what it means -----------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Clear the consequences of the settings before, and ask for the new ones once nothing changed for a moment."""
        self._forget_meaning()
        self._show_settings()
        self._settling = self.set_timer(_SETTLE_SECONDS, self._look_ahead)

    def _forget_meaning(self) -> None:
        self.workers.cancel_group(self, "estimate")
        if self._settling is not None:
            self._settling.stop()
        self.query_one("#consequences", Static).update("")

    def _show_settings(self) -> Recipe | None:
        """Show what is known of the settings at once, and nothing of wrong ones; gives the recipe that they make."""
        draft = self.tuitune.link.draft
        try:
            recipe = draft.recipe()
        except TuituneError as error:
            self.query_one("#consequences", Static).update("")
            self.show_problem(next(iter(draft.errors().values()), explain(error)))
            return None
        self.show_problem(None)
        self.query_one("#consequences", Static).update(consequences(recipe, None))
        return recipe

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def _look_ahead(self) -> None:
        shown, recipe = self.query_one("#consequences", Static), self._show_settings()
        if recipe is None:
            return
        try:
            runs = str(self.tuitune.link.runs_folder.absolute())
            estimate = await self.tuitune.link.call(Estimate(recipe.model_dump(mode="json"), runs))
        except TuituneError as error:
            shown.update(consequences(recipe, None, counting=False))
            self.show_problem(error)
            return
        device = estimate["device"].removeprefix("the ")
        speed = await to_thread(
            measured_speed, self.tuitune.link.runs_folder, recipe.model.name, device, estimate["backend"]
        )
        shown.update(consequences(recipe, estimate, speed, price=self._price()))
        if any(kind["kind"].startswith("hub:") for kind in estimate["exports"]):
            wanted = recipe.export
            try:
                access = await self.tuitune.link.call(
                    HubAccess(wanted.hub_repo, public=wanted.hub_public, again=self._ask_again)
                )
            except TuituneError as error:
                self.show_problem(error)
                return
            self._ask_again = False
            shown.update(consequences(recipe, estimate, speed, price=self._price(), access=access))

    def _price(self) -> Price | None:
        """What the user says an hour costs; None where that cannot be read."""
        try:
            return Price.parse(self.tuitune.settings.price)
        except TuituneError:
            return None

    # --- on -----------------------------------------------------------------------------------------------------

    async def action_go_on(self) -> None:
        if self.tuitune.link.is_training:
            await super().action_go_on()
        elif self._take_view():
            self._train_draft()

    @work(exclusive=True, group="start", exit_on_error=False)
    async def _train_draft(self) -> None:
        """Train the draft; one that the run on show has trained already only when that is wanted."""
        try:
            if run := self.tuitune.link.finished_with_draft():
                question = _(
                    "{run} has finished with these settings. Train them once more, as a new run?",
                    run=one_line(run.name),
                )
                if not await self.app.push_screen_wait(ConfirmScreen(question, N_("Train again"), N_("Not now"))):
                    return
            await self.tuitune.start_run()
        except TuituneError as error:
            self.show_problem(error)
            return
        await self.tuitune.show_step("train")


def meaning_of(line: FieldLine) -> Content:
    """What a field means, and its usual values."""
    usual = _("Usual: {values}.", values=_(USUAL[line.field])) if line.field in USUAL else ""
    return Content(f"{_(line.info.description or '')} {usual}".rstrip())


def _told(problems: list[Problem]) -> str | None:
    """The first thing wrong with the YAML, and how many more there are; None where nothing is."""
    if not problems:
        return None
    line, problem = problems[0]
    if len(problems) == 1:
        return _("Line {line}: {problem}", line=line + 1, problem=problem)
    return _("Line {line}: {problem} ({count} more)", line=line + 1, problem=problem, count=len(problems) - 1)


def _of(errors: dict[str, str], field: str) -> str | None:
    """The error of a field or of something inside it."""
    return next((text for name, text in errors.items() if name == field or name.startswith(f"{field}.")), None)
