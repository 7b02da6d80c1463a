"""The commands that look at a recipe before it is trained: its data, problems, rewards, and what it will need."""

import argparse
from itertools import chain

from tuitune.commands.output import print_json, print_table, quiet_stdout
from tuitune.commands.status import DONE
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.text import one_line, safe_text


def inspect(arguments: argparse.Namespace) -> int:
    """Show what is in the data and which tokens are trained; needs no model weights."""
    from tuitune.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.changes)
    with quiet_stdout():
        from tuitune.data.inspect import inspect_rows, summary

    if arguments.rows is None:
        with quiet_stdout():
            figures = summary(recipe)
        print_json(figures) if arguments.json else print_table(figures)
        return DONE
    rows = inspect_rows(recipe, arguments.rows[0] - 1, arguments.rows[1])
    first = next(rows, None)
    if first is None:
        figures = summary(recipe)
        raise UnusableInput(
            "There is no row {row:,} in {file}: it has {rows:,}.",
            row=arguments.rows[0],
            file=one_line(figures["file"]),
            rows=figures["rows"],
        )
    rows = chain([first], rows)
    if arguments.json:
        for row in rows:
            print_json(row)
    else:
        from tuitune.commands.show import print_masks

        print_masks(rows)
    return DONE


def audit(arguments: argparse.Namespace) -> int:
    """Look for problems in every row of the data: duplicates, cut or empty replies, secrets, and more."""
    from tuitune.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.changes)
    with quiet_stdout():
        from tuitune.audit import scan

        findings = scan.audit(recipe)
    print_json(findings.as_dict()) if arguments.json else print(safe_text(findings.as_text()))
    return DONE


def rewards(arguments: argparse.Namespace) -> int:
    """Have the model answer a few prompts as it is, and show what each of the recipe's rewards says of the answers."""
    from tuitune.commands.rewards import preview_rewards
    from tuitune.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.changes)
    return preview_rewards(recipe, arguments.prompts, asks=arguments.confirm, as_json=arguments.json)


def estimate(arguments: argparse.Namespace) -> int:
    """Say what a recipe will train, in how many steps and how much memory; needs no model weights."""
    from tuitune.recipe import Recipe

    recipe = Recipe.load(arguments.recipe, arguments.changes)
    with quiet_stdout():
        from dataclasses import asdict

        from tuitune.export.needs import wanted_exports
        from tuitune.plan import estimate as estimating
        from tuitune.runs.folder import default_runs_folder

        plan = estimating.estimate(recipe, gpus=arguments.gpus, hosts=arguments.hosts)
        exports = wanted_exports(recipe, default_runs_folder())
    if arguments.json:
        print_json({**plan.as_dict(), "exports": [asdict(readiness) for readiness in exports]})
    else:
        lines = [plan.as_text(), *(f"{_('Export:  ')}{readiness.in_words()}" for readiness in exports)]
        print(safe_text("\n".join(lines)))
    return DONE
