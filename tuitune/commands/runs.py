"""The runs so far: listed, exported, compared, renamed, noted, deleted."""

import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from tuitune.commands.status import DONE
from tuitune.errors import UnusableInput
from tuitune.language import N_, _
from tuitune.runs.folder import Run
from tuitune.runs.summary import (
    Summary,
    cost_text,
    data_names,
    duration_text,
    held_out_text,
    model_name,
    steps_text,
    summarize,
)
from tuitune.text import one_line, safe_text

_GAP = "  "
_READABLE, _NARROWEST = 14, 8
"""Characters of a column that is cut: before others are left out for it, and at least."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%")
"""What a cell of a spreadsheet begins with that is then computed, or run."""


def print_runs(runs: Sequence[Summary], folder: Path, words: Sequence[str], *, as_json: bool, as_csv: bool) -> int:
    """The runs in which all of the words stand: as a table, as JSON with a line a run, or as CSV."""
    shown = [run for run in runs if run.matches(words)]
    if as_json:
        for run in shown:
            print(json.dumps(run.as_dict()))
    elif as_csv:
        _print_csv(shown)
    elif shown:
        _print_table(shown)
    elif runs:
        print(
            _(
                "None of the {runs:,} runs in {folder} has {words}.",
                runs=len(runs),
                folder=safe_text(folder),
                words=one_line(" ".join(words), max_length=80),
            )
        )
    else:
        print(
            _(
                "There is no run in {folder} yet: start one with `tuitune` or `tuitune run RECIPE`.",
                folder=safe_text(folder),
            )
        )
    return DONE


def _print_csv(runs: Sequence[Summary]) -> None:
    fields = Summary(folder=Path(), status="").as_dict()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(fields)
    for run in runs:
        values = run.as_dict()
        values["data"] = " ".join(values["data"])
        writer.writerow("" if value is None else harmless_cell(value) for value in values.values())


def harmless_cell(value: Any) -> Any:
    """A value as a spreadsheet shows and never computes it: text that could be a formula gets a `'` before it."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _print_table(runs: Sequence[Summary]) -> None:
    head = (
        N_("run"),
        N_("state"),
        N_("model"),
        N_("data"),
        N_("method"),
        N_("steps"),
        N_("held-out loss"),
        N_("duration"),
        N_("cost"),
        N_("changed"),
        N_("note"),
    )
    rows = [
        (
            one_line(run.name, max_length=80),
            _(one_line(run.status, max_length=12)),
            run.problem or model_name(run),
            data_names(run),
            one_line(run.method, max_length=12),
            steps_text(run),
            held_out_text(run),
            duration_text(run),
            cost_text(run),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed_at)) if run.changed_at else "",
            one_line(run.note, max_length=80),
        )
        for run in runs
    ]
    width = os.get_terminal_size().columns if sys.stdout.isatty() else None
    _print_columns(head, rows, shrinkable=(0, 2, 3), optional=("note", "changed", "method", "data"), width=width)


def _print_columns(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    shrinkable: Sequence[int] = (),
    optional: Sequence[str] = (),
    width: int | None,
) -> None:
    """A table without empty columns, and in `width` characters without optional ones and with others cut as needed."""
    titles = [_(title) for title in head]
    widths = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
    columns = [n for n in range(len(head)) if any(row[n] for row in rows)]

    def excess(at_most: int | None = None) -> int:
        """Characters too many, with what can be cut cut to `at_most`."""
        cut = {n: min(widths[n], at_most) for n in shrinkable} if at_most else {}
        return 0 if width is None else sum(cut.get(n, widths[n]) + len(_GAP) for n in columns) - len(_GAP) - width

    for name in optional:
        if excess(_READABLE) > 0 and (place := head.index(name)) in columns:
            columns.remove(place)
    while excess() > 0 and widths[widest := max(set(shrinkable) & set(columns), key=widths.__getitem__)] > _NARROWEST:
        widths[widest] -= 1
    for row in (titles, *rows):
        print(_GAP.join(_cell(row[n], widths[n]) for n in columns).rstrip())


def _cell(text: str, width: int) -> str:
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def compare_runs(runs: Sequence[Run], *, as_json: bool) -> int:
    """How the runs ended, side by side, and every recipe field in which they differ. Raises UnusableInput."""
    from tuitune.runs.compare import differences, why_not_comparable

    if len({run.folder for run in runs}) < 2:
        raise UnusableInput("Comparing takes two runs or more: `tuitune compare RUN RUN`.")
    changed_fields = differences(runs)
    shown = [summarize(run) for run in runs]
    why_not = why_not_comparable(changed_fields)
    if as_json:
        fields = {difference.field: list(difference.values) for difference in changed_fields}
        print(json.dumps({"runs": [run.as_dict() for run in shown], "differences": fields, "not_comparable": why_not}))
        return DONE
    rows = [
        (_("state"), *(_(one_line(run.status, max_length=12)) for run in shown)),
        (_("steps"), *map(steps_text, shown)),
        (_("held-out loss"), *map(held_out_text, shown)),
        (_("training loss"), *(f"{run.losses[0]:.3f} → {run.losses[-1]:.3f}" if run.losses else "" for run in shown)),
        (_("duration"), *map(duration_text, shown)),
        (_("cost"), *map(cost_text, shown)),
        *(
            (difference.field, *(one_line(value, max_length=120) for value in difference.values))
            for difference in changed_fields
        ),
    ]
    head = ("", *(one_line(run.name, max_length=80) for run in shown))
    width = os.get_terminal_size().columns if sys.stdout.isatty() else None
    _print_columns(head, rows, shrinkable=range(1, len(head)), width=width)
    if why_not or not changed_fields:
        print(f"\n{why_not or _('Their recipes are the same.')}")
    return DONE


def rename_run(run: Run, name: str) -> int:
    """Give a run another name."""
    from tuitune.runs.manage import rename

    renamed = rename(run, name)
    print(_("Run {run} is now {renamed}.", run=one_line(run.name), renamed=one_line(renamed.name)))
    return DONE


def note_run(run: Run, text: str | None) -> int:
    """Keep a note with a run; without a text, print the one that is there."""
    from tuitune.runs.manage import write_note
    from tuitune.runs.summary import note_of

    if text is None:
        print(safe_text(note_of(run)) or _("Nothing is noted about run {run}.", run=one_line(run.name)))
    else:
        write_note(run, text)
        print(_("Noted about run {run}.", run=one_line(run.name)) if text.strip() else _("The note is removed."))
    return DONE


def delete_run(run: Run, *, yes: bool) -> int:
    """Delete a run's folder once the user has said so. Raises UnusableInput, TuituneError."""
    from tuitune.runs.manage import delete, deletion_question

    if not yes:
        if not sys.stdin.isatty():
            raise UnusableInput("Deleting asks first, and there is no terminal to ask at: add --yes to delete at once.")
        if input(f"{deletion_question(run)} [y/N] ").strip().lower() not in ("y", "yes"):
            print(_("Nothing is deleted."))
            return DONE
    delete(run)
    print(_("Run {run} is deleted.", run=one_line(run.name)))
    return DONE
