"""Step 1: which model is fine-tuned."""

import psutil
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key, Paste, Resize
from textual.message import Message
from textual.widgets import Checkbox, Input, OptionList, Static
from textual.widgets.option_list import Option

from screens.actions import ACTIONS, bind, key_name
from screens.model_choices import Choice, choices, is_path, kind_of, why_not_folder, why_not_from_hub
from screens.step_screen import StepScreen
from screens.widgets.entry import Entry
from screens.widgets.fit import fit
from screens.widgets.tick import ChoiceList, Tick
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _, plural
from tuitune.machine.hardware import chosen_gpu
from tuitune.model.config import is_folder
from tuitune.plan import catalogue
from tuitune.plan.catalogue import HubModel
from tuitune.plan.memory import Memory, verdict
from tuitune.recipe import Recipe
from tuitune.text import one_line
from tuitune.units import count, gib

_VERDICTS = {
    "fits": (N_("✔ fits"), "$text-success"),
    "tight": (N_("~ tight"), "$text-warning"),
    "does not fit": (N_("✘ no"), "$text-error"),
}
_GAP = " "
_WIDTHS = {"size": 6, "download": 8, "4-bit": 7, "16-bit": 7, "proven": 6}
_WIDE_WIDTHS = {N_("size"): 6, N_("context"): 8, N_("download"): 9, N_("4-bit"): 14, N_("16-bit"): 14, N_("proven"): 6}
_NUMBERS = ("size", "context", "download")
_WIDE = 112
_PARTS = (N_("weights"), N_("adapter"), N_("optimizer"), N_("activations"), N_("logits"), N_("overhead"))


class ModelList(ChoiceList):
    """The list of models: what is typed in it is typed in the filter."""

    def on_key(self, event: Key) -> None:
        character, entry = event.character or "", self.screen.query_one("#name", Input)
        begun = self.screen.focused is entry  # by a letter before this one: they come faster than the focus moves
        if event.is_printable and (begun or character.isalpha() or character in "/.~"):
            event.stop()
            event.prevent_default()
            self._write(character, anew=not begun)
        elif event.key == "up" and not self.highlighted:
            event.stop()
            event.prevent_default()
            self.screen.query_one("#name").focus()

    def on_paste(self, event: Paste) -> None:
        if lines := event.text.strip().splitlines():
            self._write(lines[0], anew=True)

    def _write(self, text: str, *, anew: bool) -> None:
        """Write into the filter, which gets the focus and loses what stood in it where it is written `anew`."""
        entry = self.screen.query_one("#name", Input)
        if anew:
            entry.select_on_focus = False  # or the next letter takes the place of this one
            self.screen.set_focus(entry)
            entry.call_later(setattr, entry, "select_on_focus", True)  # once it has got the focus
            entry.clear()
        entry.insert_text_at_cursor(text)


class ModelScreen(StepScreen):
    """A filter that is also the model's name, and the models that match it."""

    STEP = "model"
    CSS_PATH = "model.tcss"
    BINDINGS = bind("search_hub")

    class Listed(Message):
        """What this machine has and what fits it, found in a thread."""

        def __init__(self, choices: list[Choice], device: str, available_bytes: int) -> None:
            super().__init__()
            self.choices = choices
            self.device = device
            self.available_bytes = available_bytes

    class Searched(Message):
        """What the Hub found, or why it was not asked."""

        def __init__(self, words: str, models: list[HubModel], problem: str | None) -> None:
            super().__init__()
            self.words = words
            self.models = models
            self.problem = problem

    class LookedUp(Message):
        """Whether a model on the Hub can be had; `problem` is None where it can."""

        def __init__(self, name: str, problem: str | None) -> None:
            super().__init__()
            self.name = name
            self.problem = problem

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Choice] = []
        self.available_bytes = 0
        self.device = ""
        self._shown: list[Choice] = []
        self._on_hub: list[Choice] = []
        self._unseen = False
        """Whether a name was typed and not yet described."""

    def body(self) -> ComposeResult:
        draft = self.tuitune.link.draft
        name = Entry(
            one_line(draft.get("model.name") or ""), placeholder=_("Filter, model folder, or Hub id"), id="name"
        )
        name.tooltip = _("Type to filter the list, or give a model folder or a Hub id like owner/name. Enter takes it.")
        name.border_title = _("Model")
        yield name
        with Vertical(id="list") as listed:
            listed.border_title = _("Looking at this machine…")
            yield Static(id="heads")
            models = ModelList(id="models", markup=False)
            models.tooltip = _("The models that match. Enter takes the one under the cursor; letters go to the filter.")
            yield models
        yield Static(id="detail")
        four_bit = Tick(_("Hold the weights in 4-bit (QLoRA)"), bool(draft.get("model.load_in_4bit")), compact=True)
        four_bit.tooltip = _("About a quarter of the memory of 16-bit, at a small cost in accuracy.")
        yield four_bit

    def on_mount(self) -> None:
        self.query_one("#name").focus()
        self._list_models()

    # --- what there is ----------------------------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="list", exit_on_error=False)
    def _list_models(self) -> None:
        card = chosen_gpu()
        available = card.free_bytes if card else psutil.virtual_memory().available
        device = one_line(card.name if card else _("the CPU"), max_length=40)
        data = {
            "path": "-",
            **{name: value for name, value in self.tuitune.link.draft.data.get("data", {}).items() if value},
        }
        try:
            recipe = Recipe.from_data({**self.tuitune.link.draft.data, "model": {"name": "-"}, "data": data})
        except TuituneError:
            recipe = Recipe.from_data({"model": {"name": "-"}, "data": {"path": "-"}})
        self.post_message(self.Listed(list(choices(recipe, card)), device, available))

    @on(Listed)
    def _use_list(self, message: Listed) -> None:
        self.choices, self.device, self.available_bytes = message.choices, message.device, message.available_bytes
        self._show_matching()

    def _show_matching(self) -> None:
        """List what matches the words in the field; all of it while the field holds a whole name."""
        text = self.query_one("#name", Input).value.strip()
        everything = list({choice.name: choice for choice in [*self.choices, *self._on_hub]}.values())
        if is_path(text) and not any(choice.name == text for choice in everything):
            everything.insert(0, Choice(text, _("In the field above"), note=kind_of(text), is_here=True))
        words = [] if any(choice.name == text for choice in everything) else text.lower().split()
        self._shown = [
            choice for choice in everything if all(word in f"{choice.heading} {choice.name}".lower() for word in words)
        ]
        models = self.query_one("#models", OptionList)
        models.clear_options()
        heading = ""
        for choice in self._shown:
            if choice.heading != heading:
                heading = choice.heading
                models.add_option(Option(Content.styled(heading, "bold $text-accent"), disabled=True))
            models.add_option(Option(self._line(choice), id=choice.name))
        heads = self._columns("", {head: _(head) for head in _WIDE_WIDTHS})
        self.query_one("#heads", Static).update(Content(_GAP.join(heads.values())))
        self.query_one("#list").border_title = Content(
            plural(
                "{count} model · {size} free on {device}",
                "{count} models · {size} free on {device}",
                len(self._shown),
                size=gib(self.available_bytes),
                device=self.device,
            )
        )
        selected = next((choice.name for choice in self._shown if choice.name == text), None)
        if selected is not None:
            models.highlighted = models.get_option_index(selected)
        elif self._shown:
            models.highlighted = models.get_option_index(self._shown[0].name)
        self._show_detail()

    @on(Resize)
    def _fit_again(self) -> None:
        if self.choices:
            self.call_after_refresh(self._show_matching)

    @property
    def _is_wide(self) -> bool:
        return self.size.width >= _WIDE

    def _columns(self, name: str, cells: dict[str, str]) -> dict[str, str]:
        """A line of the table in its columns: the name takes what the others leave."""
        widths = _WIDE_WIDTHS if self._is_wide else _WIDTHS
        room = self.query_one("#models").scrollable_content_region.width - 2
        left = max(16, min(72, room - sum(widths.values()) - len(_GAP) * len(widths)))
        fitted = {"name": fit(name, left, keep_end=name[:1] in "/~.")}  # what tells paths apart is at their end
        return fitted | {head: fit(cells[head], width, right=head in _NUMBERS) for head, width in widths.items()}

    def _line(self, choice: Choice) -> Content:
        shown, known = one_line(choice.name, max_length=400), choice.known
        if known is None or choice.memory_4bit is None or choice.memory_16bit is None:
            name = self._columns(shown, dict.fromkeys(_WIDE_WIDTHS, ""))["name"]
            return Content.assemble(name, _GAP, (choice.note, "$foreground 60%"))
        cells = {
            "size": count(known.parameters),
            "context": f"{known.context // 1024}K",
            "download": _("here") if choice.is_here else f"{catalogue.download_bytes(known) / 1e9:.1f} GB",
            "proven": _("yes") if choice.proven else _("no"),
        }
        styles = {"proven": "$text-success" if choice.proven else "$foreground 60%"}
        cells["4-bit"], styles["4-bit"] = self._verdict(choice, choice.memory_4bit, choice.cards_4bit)
        cells["16-bit"], styles["16-bit"] = self._verdict(choice, choice.memory_16bit, choice.cards_16bit)
        fitted = self._columns(shown, cells)
        return Content(_GAP).join(Content.styled(text, styles.get(head, "")) for head, text in fitted.items())

    def _verdict(self, choice: Choice, memory: Memory, cards: int) -> tuple[str, str]:
        """Whether the model fits, with the time where training takes days; and the style of these words."""
        if cards > 1:
            return plural("{count} card", "{count} cards", cards), "$text-warning"
        fit = verdict(memory.total_bytes, self.available_bytes)
        word, style = _VERDICTS[fit]
        word = _(word)
        if choice.days < 1 or fit == "does not fit":
            return word, style
        in_weeks = choice.days >= 7
        if self._is_wide:
            word = _("{verdict}, weeks", verdict=word) if in_weeks else _("{verdict}, days", verdict=word)
        else:
            word = _("~ weeks") if in_weeks else _("~ days")
        return word, "$text-warning"

    def _highlighted(self) -> Choice | None:
        option = self.query_one("#models", OptionList).highlighted_option
        return next((choice for choice in self._shown if option is not None and choice.name == option.id), None)

    def _show_detail(self) -> None:
        choice = self._highlighted()
        detail = self.query_one("#detail", Static)
        if choice is None or choice.known is None or choice.memory_4bit is None or choice.memory_16bit is None:
            detail.update(Content(choice.note if choice else ""))
            return
        about = [
            _("base model (not taught to converse)") if choice.known.base else _("instruct model"),
            _("{licence} licence", licence=choice.known.licence),
        ]
        if choice.known.gated:
            about.append(_("gated: needs an access token"))
        if choice.known.unchecked:
            about.append(_("sizes not checked against a second source"))
        if choice.proven:
            proven = _("proven: {tried}", tried=choice.proven.as_text())
        else:
            proven = _(
                "not proven: nobody has tried {architecture} here from loading to export",
                architecture=choice.known.architecture,
            )
        in_4bit = bool(self.tuitune.link.draft.get("model.load_in_4bit"))
        memory = choice.memory_4bit if in_4bit else choice.memory_16bit
        parts = [f"{_(part)} {getattr(memory, f'{part}_bytes') / 2**30:.1f}" for part in _PARTS]
        peak = gib(memory.total_bytes)
        needs = [
            _("4-bit: about {peak} at the peak ({parts})", peak=peak, parts=parts)
            if in_4bit
            else _("16-bit: about {peak} at the peak ({parts})", peak=peak, parts=parts)
        ]
        cards = choice.cards_4bit if in_4bit else choice.cards_16bit
        if cards > 1:
            needs.append(_("fits into {cards} cards that share its weights (train.gpus: all)", cards=cards))
        if choice.days >= 1:
            needs.append(_("a quick try of 60 steps would take about {days:,.0f} days without a GPU", days=choice.days))
        detail.update(Content("\n".join([" · ".join(about), " · ".join(needs), proven])))

    # --- the Hub ----------------------------------------------------------------------------------------------

    def why_not(self, action: str) -> str | None:
        if action == "search_hub" and catalogue.is_offline_by_choice():
            return _("HF_HUB_OFFLINE is set.")
        return super().why_not(action)

    def action_search_hub(self) -> None:
        words = self.query_one("#name", Input).value.strip()
        if words:
            self.query_one("#models").border_title = _("Asking the Hugging Face Hub…")
            self._search(words)
        else:
            self.show_problem(_("Search for what? Type a few words first."))

    @work(thread=True, exclusive=True, group="hub", exit_on_error=False)
    def _search(self, words: str) -> None:
        try:
            self.post_message(self.Searched(words, catalogue.search_hub(words), None))
        except TuituneError as error:
            self.post_message(self.Searched(words, [], explain(error)))

    @on(Searched)
    def _use_search(self, message: Searched) -> None:
        if message.words != self.query_one("#name", Input).value.strip():
            return  # other words stand there now
        if message.problem or not message.models:
            self.show_problem(message.problem or _("The Hub found no such model."))
        self._on_hub = [
            Choice(
                model.name,
                _("Found on the Hub"),
                note=_("{count:,} downloads · gated", count=model.downloads)
                if model.gated
                else _("{count:,} downloads", count=model.downloads),
            )
            for model in message.models
        ]
        self._show_matching()

    @work(thread=True, exclusive=True, group="hub", exit_on_error=False)
    def _look_up(self, name: str) -> None:
        """Say before anything is loaded whether a Hub model can be had."""
        problem = None if name in catalogue.cached_models() else why_not_from_hub(name)
        self.post_message(self.LookedUp(name, problem))

    @on(LookedUp)
    async def _use_look_up(self, message: LookedUp) -> None:
        if message.name != self.tuitune.link.draft.get("model.name"):
            return
        self.show_problem(message.problem)
        if message.problem is None:
            await self._go_on_with(_("This model is here, or can be downloaded"))

    async def _go_on_with(self, description: str) -> None:
        """Go on from a name that was chosen; describe first one that was typed, and go on at the next Enter."""
        if self._unseen:
            self._unseen = False
            text = _("✔ {description}: {key} goes on.", description=description, key=key_name(ACTIONS["go_on"]))
            self.query_one("#detail", Static).update(Content(text))
        else:
            await super().action_go_on()

    # --- choosing ---------------------------------------------------------------------------------------------

    @on(Input.Changed, "#name")
    def _name_changed(self, event: Input.Changed) -> None:
        if event.value.strip() != one_line(self.tuitune.link.draft.get("model.name") or ""):
            self._put_in_draft(event.value.strip())
            self._unseen = True
        self.show_problem(None)
        if self.choices:
            self._show_matching()

    @on(Checkbox.Changed)
    def _four_bit_changed(self, event: Checkbox.Changed) -> None:
        self.tuitune.link.draft.set("model.load_in_4bit", event.value)
        self._show_detail()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._show_detail()

    @on(OptionList.OptionSelected)
    async def _picked(self, event: OptionList.OptionSelected) -> None:
        self._take(str(event.option.id))
        await self.action_go_on()

    def _take(self, name: str) -> None:
        entry = self.query_one("#name", Input)
        with self.prevent(Input.Changed):
            entry.value = one_line(name)
        entry.cursor_position = len(entry.value)
        self._put_in_draft(name)
        self._unseen = False

    def _put_in_draft(self, name: str) -> None:
        """The model, without the chat template that was chosen for another one."""
        draft = self.tuitune.link.draft
        if name != draft.get("model.name"):
            draft.set("model.chat_template", None)
        draft.set("model.name", name)

    @on(Input.Submitted)
    async def _submitted(self) -> None:
        await self.action_go_on()

    def on_key(self, event: Key) -> None:
        if event.key == "down" and self.query_one("#name").has_focus:
            event.stop()  # or the list takes it too, and goes past the line that is shown
            self.query_one("#models").focus()

    async def action_go_on(self) -> None:
        name = str(self.tuitune.link.draft.get("model.name") or "")
        whole = "/" in name or name.startswith((".", "~")) or any(choice.name == name for choice in self.choices)
        in_list = self.query_one("#models").has_focus
        if (in_list or not whole) and (choice := self._highlighted()):
            self._take(choice.name)
            name = choice.name
        if not name:
            self.show_problem(_("Which model? Choose one from the list, or give a folder or a Hugging Face Hub id."))
            return
        try:
            problem = why_not_folder(name) if is_folder(name) else None
        except OSError as error:  # a name too long for any file system
            self.show_problem(error)
            return
        if problem:
            self.show_problem(problem)
            return
        if is_folder(name):
            await self._go_on_with(_("This folder holds a whole model"))
            return
        self.show_problem(_("Asking whether this model can be had…"))
        self._look_up(name)
