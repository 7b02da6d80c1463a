"""What there is to read: masks and findings."""

from collections.abc import Iterable
from typing import Any

from rich.cells import set_cell_size
from rich.text import Text

from tuitune.commands.viewer import plain_console
from tuitune.language import _
from tuitune.machine.doctor import STATUSES, Finding
from tuitune.text import safe_text


def print_masks(rows: Iterable[dict[str, Any]]) -> None:
    """Rows with their trained tokens underlined and between ⟦ ⟧, so that no colour is needed to tell them."""
    console = plain_console()
    for row in rows:
        if "error" in row:
            error = _("row {row}: {error}", row=row["row"], error=safe_text(row["error"]))
            console.print(Text(f"{error}\n{safe_text(row['raw'])}\n"))
            continue
        head = _(
            "row {row}: {trained} of {tokens} tokens trained",
            row=row["row"],
            trained=row["trained_tokens"],
            tokens=row["total_tokens"],
        )
        console.print(Text(head))
        for part in row["parts"]:
            if part["title"]:
                console.print(Text(_("{title}:", title=_(part["title"])), style="bold"))
            text, trained = Text(), False
            for token in [*part["tokens"], {"text": "", "trained": False}]:
                if token["trained"] != trained:
                    text.append("⟦" if token["trained"] else "⟧", style="bold green")
                    trained = token["trained"]
                text.append(safe_text(token["text"]), style="underline green" if trained else "dim")
            console.print(text)
        console.print()


def print_findings(findings: Iterable[Finding]) -> None:
    """What `doctor` found, with the remedy where there is one."""
    for finding in findings:
        status = set_cell_size(_(STATUSES[finding.status]), 5)
        print(f"{status} {safe_text(finding.name)}{_(': ')}{safe_text(finding.text)}")
        if finding.remedy:
            print(f"      → {safe_text(finding.remedy)}")
