"""Finds a dataset of the Hugging Face Hub: words, then one of what was found, then its configuration and split."""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher, Input, OptionList, Static
from textual.widgets.option_list import Option

from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.recipe_sections import HUB
from tuitune.session.preparing_requests import DatasetSplits, SearchDatasets
from tuitune.session.request import ReplyT, Request
from tuitune.text import one_line, safe_text

if TYPE_CHECKING:
    from screens.app import TuituneApp


class HubDatasets(ModalScreen[dict[str, Any] | None]):
    """Gives the `data` fields path, config, split and revision of what was chosen; None where the user gives up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", N_("Back"))]
    DEFAULT_CSS = """
    HubDatasets { align: center middle; }
    HubDatasets > Vertical {
        width: 76; max-width: 98%; height: 90%; padding: 0 1; background: $surface; border: round $primary;
    }
    HubDatasets ContentSwitcher { height: 1fr; }
    HubDatasets ContentSwitcher > Vertical { height: 1fr; }
    HubDatasets Input { border: round $primary-muted; border-title-color: $foreground 80%; }
    HubDatasets Input:focus { border: round $primary; }
    HubDatasets Input:focus:nocolor { border: heavy $primary; }
    HubDatasets OptionList { height: 1fr; border: round $foreground 20%; background: transparent; }
    HubDatasets OptionList:focus { border: round $primary; }
    HubDatasets OptionList:focus:nocolor { border: heavy $primary; }
    HubDatasets #said { height: auto; max-height: 4; padding: 0 1; }
    """

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self._name = ""
        self._parts: list[tuple[str, str]] = []

    def compose(self) -> ComposeResult:
        words = Input(one_line(self._words), placeholder=_("a few words, or owner/name"), id="words")
        words.border_title = _("Search the Hub's datasets for")
        revision = Input(placeholder=_("main, or a branch, tag or commit"), id="revision")
        revision.border_title = _("Revision")
        with Vertical() as panel:
            panel.border_title = _("A dataset of the Hugging Face Hub")
            panel.border_subtitle = _("Enter asks and takes · Tab moves · Esc goes back")
            with ContentSwitcher(initial="search"):
                with Vertical(id="search"):
                    yield words
                    yield OptionList(id="found", markup=False)
                with Vertical(id="choose"):
                    yield revision
                    yield OptionList(id="splits", markup=False)
            yield Static(id="said")

    def on_mount(self) -> None:
        self.query_one("#words").focus()
        if self._words:
            self._search(self._words)

    def _say(self, text: str) -> None:
        self.query_one("#said", Static).update(Content(safe_text(text, max_length=400)))

    def action_back(self) -> None:
        self.workers.cancel_group(self, "hub")
        pages = self.query_one(ContentSwitcher)
        if pages.current == "search":
            self.dismiss(None)
            return
        pages.current = "search"
        self._say("")
        listed = self.query_one("#found", OptionList)
        (listed if listed.option_count else self.query_one("#words")).focus()

    async def _ask(self, request: Request[ReplyT]) -> ReplyT | None:
        """The session's answer; None where there is none, and why is said."""
        link = cast("TuituneApp", self.app).link
        self._say(
            _("Asking the Hugging Face Hub…")
            if link.state == "ready"
            else _("Asking the Hugging Face Hub as soon as the libraries are loaded…")
        )
        try:
            answer = await link.call(request)
        except TuituneError as error:
            self._say(explain(error))
            return None
        self._say("")
        return answer

    # --- words ------------------------------------------------------------------------------------------------

    @on(Input.Changed, "#words")
    def _words_changed(self, event: Input.Changed) -> None:
        """Clear the list once the words change; the field also reports the words it starts with."""
        if event.value.strip().removeprefix(HUB) == self._words:
            return
        self.workers.cancel_group(self, "hub")
        self.query_one("#found", OptionList).clear_options()
        self._say("")

    @on(Input.Submitted, "#words")
    def _submitted(self, event: Input.Submitted) -> None:
        if words := event.value.strip().removeprefix(HUB):
            self._words = words
            self._search(words)
        else:
            self._say(_("Search for what? Type a few words first."))

    @work(exclusive=True, group="hub", exit_on_error=False)
    async def _search(self, words: str) -> None:
        listed = self.query_one("#found", OptionList)
        listed.clear_options()
        answer = await self._ask(SearchDatasets(words))
        if answer is None:
            return
        names = [str(dataset["name"]) for dataset in answer["datasets"]]
        for dataset in answer["datasets"]:
            note = (
                _("{count:,} downloads · gated", count=dataset["downloads"])
                if dataset["gated"]
                else _("{count:,} downloads", count=dataset["downloads"])
            )
            listed.add_option(Option(Content.assemble(one_line(dataset["name"]), (f"  {note}", "$foreground 60%"))))
        if "/" in words and words not in names:
            names.insert(0, words)
            note = _("not listed: look at it by its id")
            options = [Option(Content.assemble(one_line(words), (f"  {note}", "$foreground 60%"))), *listed.options]
            listed.set_options(options)
        self._names = names
        if names:
            listed.highlighted = 0
            listed.focus()
        else:
            self._say(
                _(
                    "The Hub found no dataset for {words}: try fewer or other words.",
                    words=one_line(words, max_length=80),
                )
            )

    @on(OptionList.OptionSelected, "#found")
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self._name = self._names[event.option_index]
        with self.prevent(Input.Changed):
            self.query_one("#revision", Input).value = ""
        self._look("")

    # --- configuration and split ------------------------------------------------------------------------------

    @on(Input.Changed, "#revision")
    def _revision_changed(self) -> None:
        """Clear the list once the revision changes."""
        self.workers.cancel_group(self, "hub")
        self.query_one("#splits", OptionList).clear_options()
        self._say("")

    @on(Input.Submitted, "#revision")
    def _revised(self, event: Input.Submitted) -> None:
        self._look(event.value.strip())

    @work(exclusive=True, group="hub", exit_on_error=False)
    async def _look(self, revision: str) -> None:
        listed = self.query_one("#splits", OptionList)
        listed.clear_options()
        answer = await self._ask(DatasetSplits(self._name or "", revision))
        if answer is None:
            return
        self._revision = revision
        self._parts = [(config, split) for config, splits in answer["configs"].items() for split in splits]
        for config, split in self._parts:
            line = (one_line(config, max_length=60), " · ", (one_line(split, max_length=60), "bold"))
            listed.add_option(Option(Content.assemble(*line)))
        listed.border_title = Content(
            _("{dataset}: configuration · split", dataset=one_line(self._name, max_length=40))
        )
        self.query_one(ContentSwitcher).current = "choose"
        if self._parts:
            listed.highlighted = 0
            listed.focus()
        else:
            self._say(_("It holds no files that could be rows: choose another one."))

    @on(OptionList.OptionSelected, "#splits")
    def _taken(self, event: OptionList.OptionSelected) -> None:
        config, split = self._parts[event.option_index]
        self.dismiss(
            {"path": f"{HUB}{self._name}", "config": config, "split": split, "revision": self._revision or None}
        )
