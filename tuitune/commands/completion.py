"""Shell completion: a script for bash, zsh or fish, made by shtab from the same parsers that read the command line."""

import argparse
from collections.abc import Callable, Iterable

import shtab

# Names of runs are folders with a recipe in them.
_RUNS = (
    'for f in "${TUITUNE_RUNS:-$HOME/tuitune-runs}"/*/recipe.yaml; do [ -e "$f" ] && basename "${f%/recipe.yaml}"; done'
)
_PREAMBLE = {
    "bash": f'_tuitune_runs() {{ compgen -W "$({_RUNS})" -- "$1"; }}',
    "zsh": f'_tuitune_runs() {{ local -a names; names=("${{(@f)$({_RUNS})}}"); compadd -a names; }}',
    "fish": 'function _tuitune_runs; set -l at $TUITUNE_RUNS; test -n "$at"; or set at ~/tuitune-runs; '
    "for f in $at/*/recipe.yaml; basename (dirname $f); end; end",
}
_RUN_NAMES = {"bash": "_tuitune_runs", "zsh": "_tuitune_runs", "fish": "(_tuitune_runs)"}
_FILES = {"recipe"}
_FOLDERS = {"out", "runs"}
_RUN = {"run", "names", "begin"}


def script(
    shell: str,
    options: Callable[[argparse.ArgumentParser], None],
    commands: Iterable[tuple[str, argparse.ArgumentParser]],
) -> str:
    """The completion script of `shell` for `tuitune` with these `options` and parsers of commands."""
    parser = argparse.ArgumentParser(prog="tuitune")
    options(parser)
    _complete(parser)
    subparsers = parser.add_subparsers()
    for name, command in commands:
        _complete(command)
        subparsers.add_parser(name, help=(command.description or "").splitlines()[0], parents=[command], add_help=False)
    return str(shtab.complete(parser, shell, preamble=_PREAMBLE[shell]))


def _complete(parser: argparse.ArgumentParser) -> None:
    """Say of each argument what it names: a file, a folder or a run."""
    for action in parser._actions:
        complete = (
            shtab.FILE
            if action.dest in _FILES
            else shtab.DIRECTORY
            if action.dest in _FOLDERS
            else _RUN_NAMES
            if action.dest in _RUN
            else None
        )
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]
