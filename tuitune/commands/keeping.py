"""The commands on the runs that are kept: list, compare, rename, note and delete them."""

import argparse

from tuitune.commands.arguments import chosen_runs_folder


def runs(arguments: argparse.Namespace) -> int:
    """List every run, the newest first, or those in which all of the words stand."""
    from tuitune.commands.runs import print_runs
    from tuitune.runs.summary import summaries

    folder = chosen_runs_folder(arguments)
    return print_runs(summaries(folder), folder, arguments.words, as_json=arguments.json, as_csv=arguments.csv)


def compare(arguments: argparse.Namespace) -> int:
    """Show runs side by side: how they ended, and every recipe field in which they differ."""
    from tuitune.commands.runs import compare_runs
    from tuitune.runs.folder import find_run

    runs = [find_run(name, chosen_runs_folder(arguments)) for name in arguments.names]
    return compare_runs(runs, as_json=arguments.json)


def rename(arguments: argparse.Namespace) -> int:
    """Give a run another name; its folder is renamed."""
    from tuitune.commands.runs import rename_run
    from tuitune.runs.manage import find_own_run

    return rename_run(find_own_run(arguments.run, chosen_runs_folder(arguments)), arguments.name)


def note(arguments: argparse.Namespace) -> int:
    """Keep a note with a run, or print the one that is there."""
    from tuitune.commands.runs import note_run
    from tuitune.runs.folder import find_run

    return note_run(find_run(arguments.run, chosen_runs_folder(arguments)), arguments.text)


def delete(arguments: argparse.Namespace) -> int:
    """Delete a run: its folder with record, checkpoints, adapter and exports. Asks first; a live run is refused."""
    from tuitune.commands.runs import delete_run
    from tuitune.runs.manage import find_own_run

    return delete_run(find_own_run(arguments.run, chosen_runs_folder(arguments)), yes=arguments.yes)
