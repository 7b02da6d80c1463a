"""What the recipe's rewards say of answers of the model as it is, and the consent to run a file of the user's own."""

from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.recipe import Recipe
from tuitune.reward_sections import PythonFile
from tuitune.rewards.confirmed import confirm, source_of, unconfirmed
from tuitune.session.preparing_requests import PreviewRewards
from tuitune.text import one_line, safe_text

if TYPE_CHECKING:
    from screens.app import TuituneApp

_MUTED = "$foreground 60%"
_PROMPTS = 4


class RewardsScreen(ModalScreen[None]):
    """Shows first each file of the user's own that was not confirmed as it is, then prompts, answers and values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", N_("Close")),
        Binding("y", "confirm", N_("Run it")),
        Binding("r", "answer", N_("Answer again")),
    ]
    DEFAULT_CSS = """
    RewardsScreen { align: center middle; }
    RewardsScreen VerticalScroll {
        width: 90; max-width: 96%; height: auto; max-height: 90%;
        background: $surface; border: round $primary; padding: 1 2;
    }
    """

    def __init__(self, app: "TuituneApp") -> None:
        super().__init__()
        self._link = app.link
        self._unconfirmed: list[PythonFile] = []

    def compose(self) -> ComposeResult:
        with VerticalScroll() as panel:
            panel.border_title = _("Rewards")
            yield Static(id="rewards")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.action_answer()

    def _show(self, content: Content, keys: str = N_("Esc closes")) -> None:
        self.query_one("#rewards", Static).update(content)
        self.query_one(VerticalScroll).border_subtitle = _(keys)

    @work(exclusive=True, exit_on_error=False)
    async def action_answer(self) -> None:
        """Ask about the first file that is not confirmed; else have the prompts answered."""
        data = self._link.draft.as_data()
        try:
            self._unconfirmed = unconfirmed(Recipe.from_data(data).method.judges())
            if self._unconfirmed:
                self._show(code_of(self._unconfirmed[0]), N_("y: run this code · Esc closes"))
                return
            self._show(Content(_("Starting…")))
            preview = await self._link.call(
                PreviewRewards(data, _PROMPTS),
                lambda part: self._show(Content(f"{one_line(part.get('loading', ''))}…")),
            )
        except TuituneError as error:
            self._show(Content.styled(f"✘ {explain(error)}", "$text-error"))
            return
        self._show(judged(preview), N_("r: answer again · Esc closes"))

    def action_confirm(self) -> None:
        if not self._unconfirmed:
            return
        try:
            confirm(self._unconfirmed[0])
        except (TuituneError, OSError) as error:
            self._show(Content.styled(f"✘ {one_line(error)}", "$text-error"))
            return
        self.action_answer()


def code_of(reward: PythonFile) -> Content:
    """The file, to be read before it is run. Raises UnusableInput."""
    head = _("{file} will run on this machine, with all that you may do:", file=one_line(reward.path, max_length=200))
    return Content("\n\n").join([Content.styled(head, "$text-warning"), Content(safe_text(source_of(reward)))])


def judged(preview: dict[str, Any]) -> Content:
    """The verdict, then each prompt with its answers, the best first; `preview` is the session's answer."""
    mean = _("Mean reward {reward:.3g}. {verdict}", reward=preview["mean_reward"], verdict=preview["verdict"])
    lines = [Content.styled(mean, "bold")]
    lines += [Content.styled(f"! {one_line(notice, max_length=300)}", "$text-warning") for notice in preview["notices"]]
    for prompt in preview["prompts"]:
        alike = "" if prompt["differs"] else f"  {_('all worth the same')}"
        lines += [
            Content(""),
            Content.assemble((one_line(prompt["prompt"], max_length=300), "bold"), (alike, "$text-warning")),
        ]
        for answer in sorted(prompt["answers"], key=lambda answer: -answer["reward"]):
            values = ", ".join(f"{one_line(name, max_length=30)} {value:g}" for name, value in answer["values"].items())
            about = (
                _("{values}; {tokens} tokens", values=values, tokens=answer["tokens"])
                if answer["ended"]
                else _("{values}; {tokens} tokens, cut off", values=values, tokens=answer["tokens"])
            )
            lines.append(Content.assemble((f"{answer['reward']:>7g}", "$text-success"), (f"  {about}", _MUTED)))
            lines.append(Content(f"        {one_line(answer['text'], max_length=400)}"))
    return Content("\n").join(lines)
