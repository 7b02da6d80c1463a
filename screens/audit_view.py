"""The audit of a dataset: the lengths of its rows, and what is wrong with them."""

import re
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from screens.audit_lengths import lengths, longer_lengths
from screens.widgets.scrolled import Scrolled
from tuitune.language import _, plural
from tuitune.text import one_line, safe_text
from tuitune.units import gib

_COLON = re.compile(": |：")
"""Between what was found and what to do."""


class AuditView(Vertical):
    """The lengths as bars, then a list: each finding with its rows, longer values of max_length, notices."""

    class RowChosen(Message):
        """A row with a finding is to be shown."""

        def __init__(self, row: int, source: int) -> None:
            super().__init__()
            self.row = row
            self.source = source

    class LengthChosen(Message):
        """max_length is to be set to this value."""

        def __init__(self, max_length: int) -> None:
            super().__init__()
            self.max_length = max_length

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._examples: dict[str, list[tuple[int, int]]] = {}
        """Of each listed finding: the rows that have it, with their sources."""
        self._repeats: dict[tuple[int, int], str] = {}
        """Of each example of a duplicate: which earlier row it is like."""

    def compose(self) -> ComposeResult:
        with Scrolled():
            yield Static(id="lengths")
        findings = OptionList(id="findings", markup=False)
        findings.tooltip = _(
            "Enter shows a row with this finding, and once more the next one; or takes what is offered."
        )
        yield findings

    def repeated(self, row: int, source: int) -> str:
        """Which earlier row this one is like; nothing where the audit does not say so."""
        return self._repeats.get((row, source), "")

    def forget(self) -> None:
        """Say of no row any more what an audit of other data said."""
        self._examples, self._repeats = {}, {}

    def show(self, audit: dict[str, Any], limit: int) -> None:
        """Show the session's answer to `Audit`; `limit` is the recipe's max_length."""
        self.query_one("#lengths", Static).update(lengths(audit, limit))
        self.forget()
        findings = self._findings(audit)
        options = [*findings, *_longer(audit, limit), *_notices(audit)]
        if not options:
            options = [Option(Content.styled(_("✔ Nothing was found."), "$text-success"), disabled=True)]
        listed = self.query_one("#findings", OptionList)
        listed.clear_options()
        listed.add_options(options)
        listed.border_title = _("Enter shows such a row") if findings else ""
        listed.action_first()
        listed.focus()

    def _findings(self, audit: dict[str, Any]) -> list[Option]:
        """A line for each reason to leave rows out and for each finding; notes the rows that Enter shows."""
        entries = [
            ("left out", _("left out: {reason}", reason=entry["text"]), entry["count"], entry["examples"], [])
            for entry in audit["dropped"].values()
        ] + [
            (finding["name"], finding["text"], finding["count"], finding["examples"], finding["like"])
            for finding in audit["findings"]
        ]
        options = []
        for number, (kind, text, count, examples, like) in enumerate(entries):
            rows = [(row - 1, source) for source, row in examples]
            self._examples[f"finding-{number}"] = rows
            for row, (source, earlier) in zip(rows, like, strict=False):
                name = (
                    _("row {row:,} of {file}", row=earlier, file=one_line(audit["names"][source], max_length=24))
                    if len(audit["names"]) > 1
                    else _("row {row:,}", row=earlier)
                )
                self._repeats[row] = (
                    _("the same as {row}", row=name) if kind == "duplicate" else _("nearly the same as {row}", row=name)
                )
            if count == 1 and like:
                remedy = _COLON.split(text, maxsplit=1)[-1]
                text = _("{finding}: {remedy}", finding=self._repeats[rows[0]], remedy=remedy)  # noqa: PLW2901
            line = Content.assemble(
                ("! ", "$text-warning"),
                (plural("{count} row", "{count:,} rows", count), "bold"),
                f" {one_line(text, max_length=300)}",
            )
            options.append(Option(line, id=f"finding-{number}"))
        return options

    @on(OptionList.OptionSelected, "#findings")
    def _choose(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        chosen = str(event.option.id)
        if chosen.startswith("length-"):
            self.post_message(self.LengthChosen(int(chosen.removeprefix("length-"))))
        elif examples := self._examples[chosen]:
            examples.append(examples.pop(0))  # the next Enter on this finding shows the next row
            self.post_message(self.RowChosen(*examples[-1]))


def _longer(audit: dict[str, Any], limit: int) -> list[Option]:
    options = []
    for length, share, memory in longer_lengths(audit, limit):
        text = (
            _(
                "max_length {length:,} keeps {share:.0%} whole, in about {memory}: Enter sets it",
                length=length,
                share=share,
                memory=gib(memory),
            )
            if memory
            else _("max_length {length:,} keeps {share:.0%} whole: Enter sets it", length=length, share=share)
        )
        options.append(Option(Content.assemble(("✂ ", "$text-warning"), text), id=f"length-{length}"))
    return options


def _notices(audit: dict[str, Any]) -> list[Option]:
    return [
        Option(Content.assemble(("! ", "$text-warning"), safe_text(notice)), disabled=True)
        for notice in audit["notices"]
    ]
