"""What there is to read: runs, masks and findings."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.text import Text

from tuitune.commands.viewer import plain_console
from tuitune.errors import UnusableInput
from tuitune.runs.events import finite
from tuitune.runs.folder import Run
from tuitune.text import one_line, safe_text


def print_runs(runs: Iterable[Run], folder: Path, *, as_json: bool) -> None:
    """Every run with its status, steps and loss; as JSON one line a run."""
    found = False
    for run in runs:
        found = True
        try:
            history = run.history()
        except UnusableInput as error:  # one that cannot be read hides no other
            if as_json:
                print(json.dumps({"run": run.name, "folder": str(run.folder), "status": "unreadable"}))
            else:
                print(f"{one_line(run.name):<32} {'unreadable':<12} {one_line(error)}")
            continue
        status = run.status(history)
        losses = history.loss_before_and_after()
        if as_json:
            loss = {"loss_before": finite(losses[0]), "loss_after": finite(losses[1])} if losses else {}
            steps = {"step": history.step, "total_steps": history.total_steps}
            print(json.dumps({"run": run.name, "folder": str(run.folder), "status": status, **steps, **loss}))
        else:
            loss_text = f"  loss {losses[0]:.3f} → {losses[1]:.3f}" if losses else ""
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(history.last_at)) if history.last_at else ""
            steps_text = f"{history.step}/{history.total_steps} steps"
            print(f"{one_line(run.name):<32} {status:<12} {steps_text:<14} {when}{loss_text}")
    if not found and not as_json:
        print(f"There is no run in {safe_text(folder)} yet: start one with `tuitune` or `tuitune run RECIPE`.")


def print_masks(rows: Iterable[dict[str, Any]]) -> None:
    """Rows with their trained tokens underlined and between ⟦ ⟧, so that no colour is needed to tell them."""
    console = plain_console()
    for row in rows:
        if "error" in row:
            console.print(Text(f"row {row['row']}: {safe_text(row['error'])}\n"))
            continue
        console.print(Text(f"row {row['row']}: {row['trained_tokens']} of {row['total_tokens']} tokens trained"))
        text, trained = Text(), False
        for token in [*row["tokens"], {"text": "", "trained": False}]:
            if token["trained"] != trained:
                text.append("⟦" if token["trained"] else "⟧", style="bold green")
                trained = token["trained"]
            text.append(safe_text(token["text"]), style="underline green" if trained else "dim")
        console.print(text, end="\n\n")


def print_findings(findings: Iterable[Any]) -> None:
    """What `doctor` found, with the remedy where there is one."""
    for each in findings:
        print(f"{each.status:<5} {safe_text(each.name)}: {safe_text(each.text)}")
        if each.remedy:
            print(f"      → {safe_text(each.remedy)}")
