"""What a run costs and what follows its end: the dialog that asks for it, and the last seconds before a command."""

import math
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from screens.run_link import RunLink
from screens.widgets.fit import cut
from tuitune.endings.command import words_of
from tuitune.endings.notify import ntfy_address, require_webhook
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.machine.hardware import chosen_gpu
from tuitune.machine.prices import suggested_price
from tuitune.runs.cost import Price
from tuitune.session.run_requests import EndingStatus
from tuitune.settings import Settings
from tuitune.text import one_line, safe_text

_FIELDS = {
    "price": (
        N_("Price of an hour"),
        N_("What this machine costs an hour, in the currency that you name. Empty: no costs."),
    ),
    "then": (
        N_("Command at the end"),
        N_("Run without a shell when this run, or else the next one, is done or has failed; not kept for later ones."),
    ),
    "webhook": (
        N_("Webhook"),
        N_("An address that is sent a run's end as JSON; Slack, Mattermost and Discord read it too."),
    ),
    "webhook_token": (
        N_("Webhook's token"),
        N_("Sent to the webhook as `Authorization: Bearer`, where it asks for one."),
    ),
    "ntfy": (N_("ntfy topic"), N_("A topic of ntfy.sh, or https://SERVER/TOPIC, that is sent a run's end.")),
    "ntfy_token": (N_("ntfy's token"), N_("Sent to ntfy as `Authorization: Bearer`, where the topic asks for one.")),
}
_EXAMPLES = {
    "price": N_("as in 2.50, 2 EUR or 3 credits"),
    "then": N_("as in sudo poweroff"),
    "webhook": "https://…",
    "ntfy": N_("topic, or https://SERVER/TOPIC"),
}
_NAME_CELLS = 28
"""Of a run's name in a dialog's title."""
_SECRETS = ("webhook", "webhook_token", "ntfy", "ntfy_token")


class EndingsScreen(ModalScreen[None]):
    """Asks for what this machine costs, who is told of a run's end, and which command follows it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", N_("Close")),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]
    DEFAULT_CSS = """
    EndingsScreen { align: center middle; }
    EndingsScreen > Vertical {
        width: 76; max-width: 96%; height: auto; padding: 1 2; background: $surface; border: round $primary;
    }
    EndingsScreen Horizontal { height: 1; }
    EndingsScreen .label { width: 20; color: $foreground 70%; }
    EndingsScreen Horizontal:focus-within .label { color: $text; text-style: bold; }
    EndingsScreen Input { width: 1fr; }
    EndingsScreen #suggestion { color: $foreground 60%; display: none; }
    EndingsScreen #meaning { height: 2; margin-top: 1; color: $foreground 70%; }
    EndingsScreen #wrong { color: $text-error; display: none; }
    """

    def __init__(self, link: RunLink, settings: Settings) -> None:
        super().__init__()
        self._link = link
        self._settings = settings
        self._then = link.then

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            panel.border_title = _("Costs and endings")
            panel.border_subtitle = _("Enter keeps them · Esc leaves")
            known = {**vars(self._settings), "then": self._then}
            from_environment = self._settings.with_environment()
            for name, (label, about) in _FIELDS.items():
                with Horizontal():
                    yield Static(Content(_(label)), classes="label")
                    entry = Input(
                        known[name], _(_EXAMPLES.get(name, "")), password=name in _SECRETS, compact=True, id=name
                    )
                    entry.tooltip = _(about)
                    if name in _SECRETS and not known[name] and getattr(from_environment, name):
                        entry.placeholder = _("set by {variable}", variable=f"TUITUNE_{name.upper()}")
                    yield entry
                if name == "price":
                    yield Static(id="suggestion")
            yield Static(id="meaning")
            yield Static(id="wrong")

    def on_mount(self) -> None:
        self._suggest()
        self._ask_for_command()

    @work(thread=True, exit_on_error=False)
    def _suggest(self) -> None:
        card = chosen_gpu()
        suggestion = suggested_price(card.name) if card else None
        if suggestion is not None:
            self.app.call_from_thread(self._show_suggestion, str(suggestion))

    def _show_suggestion(self, text: str) -> None:
        shown = self.query_one("#suggestion", Static)
        shown.update(Content(one_line(text, max_length=200)))
        shown.display = True

    @work(exit_on_error=False)
    async def _ask_for_command(self) -> None:
        """Show the command of a run that is going, which another client may have named."""
        if not self._link.is_training:
            return
        try:
            self._then = await self._link.command_at_end()
        except TuituneError as error:
            self._show_wrong(error)
            return
        entry = self.query_one("#then", Input)
        if not entry.value:
            entry.value = self._then

    @on(Input.Changed)
    def _forget_wrong(self) -> None:
        self.query_one("#wrong").display = False

    def on_descendant_focus(self) -> None:
        if isinstance(self.focused, Input):
            self.query_one("#meaning", Static).update(Content(_(_FIELDS[str(self.focused.id)][1])))

    @on(Input.Submitted)
    @work(exclusive=True, group="keep", exit_on_error=False)
    async def _keep(self) -> None:
        """Check every field, and take none over unless all can be used."""
        value = {name: self.query_one(f"#{name}", Input).value.strip() for name in _FIELDS}
        try:
            price, words = Price.parse(value["price"]), words_of(value["then"])
            if value["webhook"]:
                require_webhook(value["webhook"])
            if value["ntfy"]:
                ntfy_address(value["ntfy"])
            await self._link.set_ending(
                value["price"] if price else "",
                value["then"],
                words if value["then"] != self._then else None,
            )
        except TuituneError as error:
            self._show_wrong(error)
            return
        for name in _FIELDS:
            if name != "then":
                setattr(self._settings, name, value[name])
        self._settings.save()
        self.dismiss()

    def _show_wrong(self, error: TuituneError) -> None:
        wrong = self.query_one("#wrong", Static)
        wrong.update(Content(safe_text(explain(error), max_length=300)))
        wrong.display = True


class CountdownScreen(ModalScreen[None]):
    """Shows the command that is about to be run, over whatever is on show; Esc cancels it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,x", "cancel", N_("Do not run it"))]
    DEFAULT_CSS = """
    CountdownScreen { align: center middle; }
    CountdownScreen > Vertical {
        width: 70; max-width: 96%; height: auto; padding: 1 2; background: $surface; border: heavy $warning;
    }
    CountdownScreen #command { text-style: bold; margin: 1 2; max-height: 6; }
    CountdownScreen Horizontal { height: auto; align-horizontal: right; }
    """

    def __init__(self, link: RunLink, ending: EndingStatus) -> None:
        super().__init__()
        self._link = link
        self._ending = ending
        self._over = False

    def compose(self) -> ComposeResult:
        with Vertical() as panel:
            name = cut(one_line(self._ending["run"]), _NAME_CELLS)
            panel.border_title = Content(_("Run {run} has ended and is on disk", run=name))
            yield Static(self._sentence(), id="countdown")
            yield Static(Content(safe_text(self._ending["command"])), id="command")
            with Horizontal():
                yield Button(Content(_("Do not run it (Esc)")), variant="primary")

    def show(self, ending: EndingStatus) -> None:
        """Show how long it still is."""
        self._ending = ending
        if self.is_mounted:
            self.query_one("#countdown", Static).update(self._sentence())

    def close(self) -> None:
        """Go, as soon as nothing lies over this."""
        self._over = True
        if self.is_current:
            self.dismiss()

    def on_screen_resume(self) -> None:
        if self._over:
            self.dismiss()

    def _sentence(self) -> Content:
        seconds = self._ending["seconds"]
        if seconds is None:
            return Content(_("This is run soon:"))
        return Content(_("This is run in {seconds} s:", seconds=math.ceil(seconds)))

    @on(Button.Pressed)
    @work(exclusive=True, group="cancel", exit_on_error=False)
    async def action_cancel(self) -> None:
        try:
            await self._link.cancel_ending(self._ending["run"])
        except TuituneError as error:
            self.app.notify(explain(error), severity="error", markup=False)
        else:
            self.app.notify(_("The command is not run."), markup=False)
