"""The command line: each command is a few lines over a module of the engine."""

import argparse
import os
import sys
from collections.abc import Callable, Container
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from tuitune import __version__
from tuitune.commands import keeping, preparing
from tuitune.commands.arguments import (
    APP_OPTIONS,
    app_options,
    attach_arguments,
    change_arguments,
    chat_arguments,
    chosen_runs_folder,
    compare_arguments,
    completion_arguments,
    delete_arguments,
    demo_arguments,
    demos,
    estimate_arguments,
    export_arguments,
    inspect_arguments,
    join_arguments,
    json_option,
    language_option,
    live_arguments,
    note_arguments,
    recipe_arguments,
    rename_arguments,
    resume_arguments,
    rewards_arguments,
    run_arguments,
    runs_arguments,
    stop_arguments,
    then_arguments,
)
from tuitune.commands.examples import epilog
from tuitune.commands.help import DESCRIPTIONS, OVERVIEW, HelpParser
from tuitune.commands.output import complain, print_json, quiet_stdout
from tuitune.commands.status import DONE, FAILED, INTERRUPTED
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import ENGLISH, _, ascii_only, from_environment, use, use_ascii
from tuitune.paths import expanded, require_home
from tuitune.streams import OutputLost, takes_all_letters
from tuitune.text import one_line


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit status; every failure is one sentence on stderr."""
    try:
        if arguments != ["--version"]:  # the same in every language
            _choose_language(arguments)
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except OutputLost as error:
        if isinstance(error.reason, BrokenPipeError):
            return DONE  # as of `head`, which has seen enough
        return _fail(str(error), FAILED)
    except TuituneError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(_("interrupted."), INTERRUPTED)
    except Exception as error:
        if os.environ.get("TUITUNE_DEBUG"):
            raise
        problem = one_line(explain(error), max_length=300)
        return _fail(_("{problem} (this is a bug; TUITUNE_DEBUG=1 shows where).", problem=problem), FAILED)


def _fail(message: str, status: int) -> int:
    with suppress(OSError, OutputLost):  # nobody to tell it to
        sys.stdout.flush()
        complain(message)
    return status


def _choose_language(arguments: list[str]) -> None:
    """As the command line says, else as was chosen in the app, else as the environment asks for.

    Before the command line is read, whose help and errors are in that language, too. JSON is English, and so is what
    is told in ASCII alone, or to an output that takes no other letters.
    """
    from tuitune.settings import Settings, settings_file  # with them dataclasses: a fifth of what `--version` takes

    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    named = [option.partition("=")[2] for option in options if option.startswith("--lang=")]
    named += [value for option, value in pairwise(options) if option == "--lang"]
    settings = Settings.load(settings_file())
    use_ascii("--ascii" in options or settings.ascii or not takes_all_letters(sys.stdout))
    if "--json" in options or ascii_only():
        use(ENGLISH)
    else:
        use(next(iter(named), "") or settings.language or from_environment())


class _Parser(HelpParser):
    def error(self, message: str) -> NoReturn:
        raise UnusableInput(
            "{problem}: `{command} --help` shows the usage.",
            problem=one_line(message, max_length=300),
            command=self.prog,
        )


class _Commands(dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]]):
    """What each command is given, and what does it."""

    def parser(self, name: str) -> argparse.ArgumentParser:
        add_arguments, _work = self[name]
        parser = _Parser(
            prog=f"tuitune {name}",
            description=_(DESCRIPTIONS[name]),
            epilog=epilog(name),
        )
        add_arguments(parser)
        language_option(parser)
        return parser


def _commands() -> _Commands:
    return _Commands(
        {
            "demo": (demo_arguments, _demo),
            "run": (run_arguments, _run),
            "resume": (resume_arguments, _resume),
            "join": (join_arguments, _join),
            "stop": (stop_arguments, _stop),
            "pause": (live_arguments, _pause),
            "change": (change_arguments, _change),
            "checkpoint": (live_arguments, _checkpoint),
            "then": (then_arguments, _then),
            "inspect": (inspect_arguments, preparing.inspect),
            "audit": (recipe_arguments, preparing.audit),
            "rewards": (rewards_arguments, preparing.rewards),
            "estimate": (estimate_arguments, preparing.estimate),
            "chat": (chat_arguments, _chat),
            "export": (export_arguments, _export),
            "runs": (runs_arguments, keeping.runs),
            "compare": (compare_arguments, keeping.compare),
            "rename": (rename_arguments, keeping.rename),
            "note": (note_arguments, keeping.note),
            "delete": (delete_arguments, keeping.delete),
            "attach": (attach_arguments, _attach),
            "doctor": (json_option, _doctor),
            "completion": (completion_arguments, _completion),
        }
    )


def _dispatch(arguments: list[str]) -> int:
    commands = _commands()
    arguments = _command_first(arguments, commands)
    if arguments and arguments[0] in commands:
        return _do(commands[arguments[0]][1], commands.parser(arguments[0]).parse_args(arguments[1:]))
    parser = _Parser(prog="tuitune", description=_(OVERVIEW))
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help=_("a recipe to start from (YAML)"))
    app_options(parser)
    language_option(parser)
    parser.add_argument(
        "--version",
        action="version",
        version=f"tuitune {__version__}",
        help=_("show program's version number and exit"),
    )
    return _do(_app, parser.parse_args(arguments))


def _command_first(arguments: list[str], commands: Container[str]) -> list[str]:
    """The arguments with the command before the options that stand in front of it: `--runs DIR runs` is meant, too."""
    place = 0
    while place < len(arguments) and arguments[place].partition("=")[0] in APP_OPTIONS:
        place += 2 if arguments[place] in ("--runs", "--gpu", "--lang") else 1
    if place < len(arguments) and arguments[place] in commands:
        return [arguments[place], *arguments[:place], *arguments[place + 1 :]]
    return arguments


def _do(work: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Do `work`, on the cards that were asked for. One of them is chosen here, several are a field of the recipe."""
    require_home()
    card, cards = getattr(arguments, "gpu", None), getattr(arguments, "cards", None)
    if card is not None and cards is not None:
        raise UnusableInput("--gpu names one card and --gpus several: give one of the two.")
    if cards is not None:
        card = int(cards) if cards.isdecimal() else None
        arguments.changes.append(f"train.gpus={'auto' if card is not None else cards}")
    if card is not None:
        from tuitune.machine.hardware import choose_gpu

        choose_gpu(card)
    return work(arguments)


# --- commands ----------------------------------------------------------------------------------------------------


def _app(arguments: argparse.Namespace) -> int:
    recipe = None
    if arguments.recipe:
        from tuitune.recipe import Recipe  # pydantic: a third of the app's start, and not needed without a recipe

        recipe = Recipe.load(arguments.recipe)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UnusableInput("The app needs a terminal: use `tuitune run RECIPE` without one.")
    from screens.app import run_app

    return run_app(
        recipe=recipe,
        runs_folder=chosen_runs_folder(arguments),
        attach=None,
        ascii_only=arguments.ascii,
        reduced_motion=arguments.reduced_motion,
    )


def _demo(arguments: argparse.Namespace) -> int:
    """Fine-tune the little model that comes with tuitune: the app in a terminal, else a run and its report."""
    arguments.recipe = demos()[arguments.method]
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _app(arguments)
    arguments.changes, arguments.name, arguments.json, arguments.detach = [], None, False, False
    arguments.begin = arguments.checkpoint = None
    arguments.price = arguments.then = arguments.rdzv = ""
    arguments.nnodes = 1
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Train a recipe without the app. Ctrl+C stops after the step and saves, twice at once; a third one leaves."""
    from tuitune.commands.run import recipe_beginning_with, train
    from tuitune.recipe import Recipe
    from tuitune.runs.folder import find_run
    from tuitune.session.run_requests import Train

    fields, runs_folder = _fields_of_attempt(arguments), chosen_runs_folder(arguments)
    if arguments.begin is not None:
        run = find_run(arguments.begin, runs_folder)
        recipe = recipe_beginning_with(run, arguments.checkpoint, arguments.recipe, arguments.changes)
    elif arguments.recipe is None:
        raise UnusableInput("Give the path of a recipe, or a run to begin with: --from RUN.")
    elif arguments.checkpoint is not None:
        raise UnusableInput("--checkpoint says which adapter of a run to begin with: give the run with --from RUN.")
    else:
        recipe = Recipe.load(arguments.recipe, arguments.changes)
    request = Train(recipe.model_dump(mode="json"), str(runs_folder), arguments.name, **fields)
    return train(request, as_json=arguments.json, detach=arguments.detach)


def _resume(arguments: argparse.Namespace) -> int:
    """Go on with a run that has ended early, or further with one that is done, from its newest whole checkpoint."""
    from tuitune.commands.run import train
    from tuitune.runs.folder import find_run
    from tuitune.session.run_requests import Resume

    fields = _fields_of_attempt(arguments)
    run = find_run(arguments.run, chosen_runs_folder(arguments))
    started = run.history().started
    request = Resume(str(run.folder), tuple(arguments.changes), **fields)
    last_attempt = started.attempt if started else 0
    return train(request, as_json=arguments.json, detach=arguments.detach, last_attempt=last_attempt)


def _fields_of_attempt(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `Train` and `Resume` are both told. Raises UnusableInput before anything is started."""
    from tuitune.endings.command import words_of
    from tuitune.runs.cost import Price

    if (arguments.nnodes > 1) != bool(arguments.rdzv):
        raise UnusableInput("Several hosts take both: --nnodes N and --rdzv HOST:PORT, this host's own address.")
    Price.parse(arguments.price)
    return {
        "price": arguments.price,
        "then": words_of(arguments.then),
        "hosts": arguments.nnodes,
        "rendezvous": arguments.rdzv,
    }


def _join(arguments: argparse.Namespace) -> int:
    """Train along with a run on another host, until it is over; model and data must be on this one, with equal content.

    The first host has the dashboard and keeps the run. What it says is done here, so join only hosts that you trust, in
    a private network: nobody is authenticated.
    """
    from tuitune.commands.join import join

    model = expanded(arguments.model).absolute() if arguments.model else None
    return join(arguments.address, arguments.gpus, model, [expanded(path).absolute() for path in arguments.data])


def _stop(arguments: argparse.Namespace) -> int:
    """Have a live run stop after its step, with checkpoint and adapter saved."""
    from tuitune.commands.run import stop_run
    from tuitune.runs.folder import find_run

    return stop_run(find_run(arguments.run, chosen_runs_folder(arguments)), now=arguments.now)


def _pause(arguments: argparse.Namespace) -> int:
    """Have a live run end for a while after its step, with a checkpoint saved; `tuitune resume RUN` goes on."""
    from tuitune.commands.run import pause_run
    from tuitune.runs.folder import find_run

    return pause_run(find_run(arguments.run, chosen_runs_folder(arguments)))


def _change(arguments: argparse.Namespace) -> int:
    """Change how long or how fast a live run trains, from its next step on."""
    from tuitune.commands.run import change_run
    from tuitune.runs.folder import find_run

    return change_run(find_run(arguments.run, chosen_runs_folder(arguments)), arguments.changes)


def _checkpoint(arguments: argparse.Namespace) -> int:
    """Have a live run save a checkpoint after its step, and go on."""
    from tuitune.commands.run import save_checkpoint
    from tuitune.runs.folder import find_run

    return save_checkpoint(find_run(arguments.run, chosen_runs_folder(arguments)))


def _then(arguments: argparse.Namespace) -> int:
    """Have a command run when a live run is done or has failed, or cancel the one that was to be."""
    from tuitune.commands.run import set_then
    from tuitune.endings.command import words_of
    from tuitune.runs.folder import find_run

    words = words_of(arguments.then)
    if bool(words) == arguments.cancel:
        raise UnusableInput("Give a command, as in `tuitune then RUN 'sudo poweroff'`, or --cancel.")
    return set_then(find_run(arguments.run, chosen_runs_folder(arguments)), words)


def _chat(arguments: argparse.Namespace) -> int:
    """Talk to a run's adapter: one reply with --prompt, else a conversation."""
    from tuitune.chat.conversation import Side
    from tuitune.chat.sampling import preset, with_fields
    from tuitune.chat.sides import side_of
    from tuitune.commands.chat import chat
    from tuitune.runs.folder import find_run

    runs_folder = chosen_runs_folder(arguments)
    run = find_run(arguments.run, runs_folder)
    engine = arguments.engine
    if engine not in ("", "transformers") and engine.partition(":")[0] != "gguf":
        raise UnusableInput(
            "There is no engine {engine}: give gguf or gguf:TYPE.", engine=one_line(engine, max_length=40)
        )
    if engine and arguments.base:
        raise UnusableInput("A GGUF has the adapter merged in: --base cannot be had with --engine.")
    first = Side(run.folder, not arguments.base, arguments.checkpoint, engine=engine.replace("transformers", ""))
    others = [side_of(who, run.folder, runs_folder) for who in arguments.against]
    return chat(
        run,
        list(dict.fromkeys([first, *others])),
        prompt=arguments.prompt,
        system=arguments.system,
        sampling=with_fields(preset(arguments.preset) if arguments.preset else {}, arguments.changes),
        docs=[expanded(path).absolute() for path in arguments.docs],
        runs_folder=runs_folder,
        as_json=arguments.json,
    )


def _export(arguments: argparse.Namespace) -> int:
    """Write a run's result in one or more forms, each opened again before it is called done."""
    from tuitune.commands.export import check_exports, export_run
    from tuitune.runs.folder import find_run

    run = find_run(arguments.run, chosen_runs_folder(arguments))
    out = expanded(arguments.out).resolve() if arguments.out else None
    wanted = run.recipe().export
    kinds, hub_repo = arguments.kinds or wanted.to, arguments.hub_repo or wanted.hub_repo
    if arguments.check:
        return check_exports(
            run, kinds, out, checkpoint=arguments.checkpoint, hub_repo=hub_repo, as_json=arguments.json
        )
    return export_run(
        run,
        kinds,
        out,
        checkpoint=arguments.checkpoint,
        allow_download=arguments.yes,
        hub_repo=hub_repo,
        hub_public=arguments.hub_public or wanted.hub_public,
        tar=arguments.tar,
        split_bytes=arguments.split,
        imatrix=arguments.imatrix or wanted.imatrix,
        as_json=arguments.json,
    )


def _attach(arguments: argparse.Namespace) -> int:
    """Go back to a run: live with its whole history, or the record of one that has ended."""
    from tuitune.commands.run import follow_run
    from tuitune.runs.folder import all_runs, find_run

    folder = chosen_runs_folder(arguments)
    if arguments.run:
        run = find_run(arguments.run, folder)
    else:
        runs = all_runs(folder)
        if not runs:
            raise UnusableInput(
                "There is no run in {folder}: start one with `tuitune` or `tuitune run RECIPE`.", folder=folder
            )
        live = [run for run in runs if run.is_live()]
        if len(live) > 1:
            raise UnusableInput(
                "{live} runs are live in {folder}: say which, as in `tuitune attach RUN` ({names}).",
                live=len(live),
                folder=folder,
                names=[one_line(run.name, max_length=40) for run in live[:5]],
            )
        run = live[0] if live else runs[0]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return follow_run(run)
    from screens.app import run_app

    return run_app(
        recipe=None,
        runs_folder=folder,
        attach=run,
        ascii_only=arguments.ascii,
        reduced_motion=arguments.reduced_motion,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    """Check that this machine can train, and say what to do where it cannot."""
    from tuitune.commands.show import print_findings
    from tuitune.machine.doctor import examine

    with quiet_stdout():
        findings = examine()
    if arguments.json:
        print_json({"findings": [finding.as_dict() for finding in findings]})
    else:
        print_findings(findings)
    return FAILED if any(finding.status == "fail" for finding in findings) else DONE


def _completion(arguments: argparse.Namespace) -> int:
    """Print the script with which a shell completes tuitune's commands, options, files and runs."""
    from tuitune.commands.completion import script

    commands = _commands()
    print(script(arguments.shell, app_options, [(name, commands.parser(name)) for name in commands]))
    return DONE
