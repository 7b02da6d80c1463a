"""What there is to read: masks and findings."""

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from tuitune.commands.viewer import plain_console
from tuitune.text import safe_text


def print_masks(rows: Iterable[dict[str, Any]]) -> None:
    """Rows with their trained tokens underlined and between ⟦ ⟧, so that no colour is needed to tell them."""
    console = plain_console()
    for row in rows:
        if "error" in row:
            console.print(Text(f"row {row['row']}: {safe_text(row['error'])}\n{safe_text(row['raw'])}\n"))
            continue
        console.print(Text(f"row {row['row']}: {row['trained_tokens']} of {row['total_tokens']} tokens trained"))
        for part in row["parts"]:
            if part["title"]:
                console.print(Text(f"{part['title']}:", style="bold"))
            text, trained = Text(), False
            for token in [*part["tokens"], {"text": "", "trained": False}]:
                if token["trained"] != trained:
                    text.append("⟦" if token["trained"] else "⟧", style="bold green")
                    trained = token["trained"]
                text.append(safe_text(token["text"]), style="underline green" if trained else "dim")
            console.print(text)
        console.print()


def print_findings(findings: Iterable[Any]) -> None:
    """What `doctor` found, with the remedy where there is one."""
    for finding in findings:
        print(f"{finding.status:<5} {safe_text(finding.name)}: {safe_text(finding.text)}")
        if finding.remedy:
            print(f"      → {safe_text(finding.remedy)}")
