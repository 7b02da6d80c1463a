"""What each command is given: its arguments and options, one function a command."""

import argparse
from pathlib import Path

from tuitune.language import _, languages
from tuitune.paths import expanded
from tuitune.text import one_line
from tuitune.units import bytes_of


def runs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help=_("where runs are kept ($TUITUNE_RUNS, ~/tuitune-runs)")
    )


def language_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lang",
        choices=languages(),
        help=_("the language (default: the one chosen in the app, or that of $LC_ALL, $LC_MESSAGES or $LANG)"),
    )


def gpu_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu", type=int, metavar="N", help=_("the GPU to use (default: the one with most free memory)")
    )


def gpus_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", metavar="WHICH", dest="cards", help=_("the GPUs that train together: all, or numbers such as 0,2")
    )


def hosts_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nnodes",
        type=_count,
        default=1,
        metavar="N",
        help=_("hosts that train together, this one the first; see join"),
    )
    parser.add_argument(
        "--rdzv",
        default="",
        metavar="HOST:PORT",
        help=_("this host's address in a private network (nobody is authenticated), where the others join"),
    )


APP_OPTIONS = ("--runs", "--gpu", "--lang", "--ascii", "--reduced-motion")


def app_options(parser: argparse.ArgumentParser) -> None:
    runs_option(parser)
    gpu_option(parser)
    parser.add_argument("--ascii", action="store_true", help=_("draw the app with ASCII characters only"))
    parser.add_argument("--reduced-motion", action="store_true", help=_("animate nothing in the app"))


def demos() -> dict[str, Path]:
    """The recipe of each method's demo."""
    import sample_data

    folder = Path(sample_data.__file__).parent
    named = {file.stem.removeprefix("demo_"): file for file in sorted(folder.glob("demo_*.yaml"))}
    return {"sft": folder / "demo.yaml", **named}


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    app_options(parser)
    parser.add_argument(
        "--method",
        choices=demos(),
        default="sft",
        help=_("what is learned from: replies to imitate (sft), rewards (grpo) …"),
    )


def json_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help=_("write only JSON on stdout"))


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help=_("a recipe (YAML)"))
    changes_option(parser)
    json_option(parser)


def rewards_arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--prompts", type=_count, default=4, metavar="N", help=_("how many prompts from all over the data (4)")
    )
    parser.add_argument(
        "--confirm", action="store_true", help=_("show a rewards' file of your own, and ask whether it may run")
    )


def estimate_arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--gpus", type=_count, default=1, metavar="N", help=_("how fast N cards of a host would be over one")
    )
    parser.add_argument("--hosts", type=_count, default=1, metavar="M", help=_("and M hosts with so many cards each"))


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(
            _("{value} is not a whole number from 1 to 1024", value=one_line(text, max_length=40))
        )
    return int(text)


def changes_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        required=required,
        metavar="FIELD=VALUE",
        dest="changes",
        help=_("change a recipe field"),
    )


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help=_("a recipe (YAML)"))
    parser.add_argument("--from", dest="begin", metavar="RUN", help=_("begin with the adapter of this run"))
    checkpoint_option(parser)
    changes_option(parser)
    json_option(parser)
    parser.add_argument("--name", metavar="N", help=_("the run's name (default: the data's name and a number)"))
    detach_option(parser)
    ending_options(parser)
    gpu_option(parser)
    gpus_option(parser)
    hosts_options(parser)
    runs_option(parser)


def join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help=_("what the first host gave as --rdzv"))
    parser.add_argument(
        "--gpus", metavar="WHICH", default="all", help=_("this host's GPUs that train: all (default), or such as 0,2")
    )
    parser.add_argument(
        "--model", metavar="PATH", help=_("the base model's folder on this host, if not where the first one has it")
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        default=[],
        help=_("a data file on this host; once for each of the recipe, in its order, if not where the first has them"),
    )


def detach_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help=_("leave the run to itself as soon as it has begun"))


def ending_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--price", metavar="P", default="", help=_("what an hour of this machine costs, as in 2.50 or 2 EUR")
    )
    parser.add_argument(
        "--then",
        metavar="COMMAND",
        default="",
        help=_("run this, without a shell, when the run is done or has failed; ten seconds to cancel it"),
    )


def then_arguments(parser: argparse.ArgumentParser) -> None:
    live_arguments(parser)
    parser.add_argument(
        "then", nargs="?", default="", metavar="COMMAND", help=_("the command, as one argument in quotes")
    )
    parser.add_argument("--cancel", action="store_true", help=_("run none, also where the ten seconds have begun"))


def live_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    runs_option(parser)


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    live_arguments(parser)
    parser.add_argument("--now", action="store_true", help=_("give up the step under way; no adapter is saved"))


def change_arguments(parser: argparse.ArgumentParser) -> None:
    live_arguments(parser)
    changes_option(parser, required=True)


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    live_arguments(parser)
    changes_option(parser)
    detach_option(parser)
    ending_options(parser)
    gpu_option(parser)
    gpus_option(parser)
    hosts_options(parser)
    json_option(parser)


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--rows",
        metavar="A:B",
        type=_row_range,
        help=_("show the masks of rows A to B, both included; the first row is 1"),
    )


def _row_range(text: str) -> tuple[int, int]:
    """The first and the last row that are meant, from 1: `A:B`, `A` alone, or `A:` for ten rows."""
    start, colon, stop = text.partition(":")
    try:
        first = int(start or 1)
        last = int(stop) if stop else first + (9 if colon else 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            _("{value} is not A:B, as in 1:3", value=one_line(text, max_length=40))
        ) from None
    if first < 1 or last < first:
        raise argparse.ArgumentTypeError(
            _("{value} is not A:B with 1 <= A <= B: the first row is row 1", value=one_line(text, max_length=40))
        )
    return first, last


def checkpoint_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help=_("the adapter of this checkpoint: best, last or a step (default: the run's)"),
    )


def chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    parser.add_argument("--prompt", metavar="TEXT", help=_("ask this and print one reply"))
    parser.add_argument("--base", action="store_true", help=_("let the base model answer, without the adapter"))
    checkpoint_option(parser)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="WHO",
        help=_(
            "compare with: base, checkpoint:WHICH, gguf:TYPE, another RUN or RUN:WHICH; ,no-docs behind it: "
            "without the documents; repeatable"
        ),
    )
    parser.add_argument(
        "--docs",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help=_("look things up in a file or folder (text, Markdown, HTML, PDF, source); repeatable"),
    )
    parser.add_argument(
        "--engine",
        default="",
        metavar="ENGINE",
        help=_("gguf or gguf:TYPE: the run's exported GGUF answers in llama.cpp"),
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help=_("what the model is told before the conversation")
    )
    parser.add_argument("--preset", metavar="NAME", help=_("how tokens are chosen: {presets}", presets=_preset_names()))
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes", help=_("one field of the sampling")
    )
    json_option(parser)
    gpu_option(parser)
    runs_option(parser)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    parser.add_argument("--to", action="append", metavar="KIND", dest="kinds", help=_kinds_help(), default=[])
    parser.add_argument(
        "--check", action="store_true", help=_("only say what can be made, and what time, disk and memory it takes")
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=_("where to (default: the run's exports folder)"))
    parser.add_argument("--yes", action="store_true", help=_("allow a needed download without asking"))
    parser.add_argument("--hub-repo", metavar="NAME", help=_("repository for hub kinds: NAME or OWNER/NAME"))
    parser.add_argument("--hub-public", action="store_true", help=_("make a new repository public (default: private)"))
    parser.add_argument(
        "--imatrix", action="store_true", help=_("round small GGUFs by what the weights see in training rows")
    )
    parser.add_argument(
        "--tar", action="store_true", help=_("put each folder into one uncompressed .tar beside it, too")
    )
    parser.add_argument(
        "--split",
        type=_bytes,
        default=0,
        metavar="SIZE",
        help=_("for slow links: each file, or tar of a folder, also in parts of SIZE (500M, 2G)"),
    )
    checkpoint_option(parser)
    json_option(parser)
    runs_option(parser)


def _bytes(text: str) -> int:
    try:
        count = bytes_of(text)
    except ValueError:
        count = 0
    if count < 2**20:
        shown = one_line(text, max_length=40)
        raise argparse.ArgumentTypeError(_("{text} is no size from 1M on, such as 500M or 2G", text=shown))
    return count


def _preset_names() -> list[str]:
    from tuitune.chat.sampling import PRESETS

    return list(PRESETS)


def _kinds_help() -> str:
    from tuitune.export.kinds import KINDS

    kinds = [kind.name for kind in KINDS]
    return _("repeatable (default: what the recipe's export names): {kinds}", kinds=kinds)


def runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help=_("only runs in which all of these words stand"))
    form = parser.add_mutually_exclusive_group()
    json_option(form)
    form.add_argument("--csv", action="store_true", help=_("write CSV for a spreadsheet on stdout"))
    runs_option(parser)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="RUN", help=_("runs' names or folders, two or more"))
    json_option(parser)
    runs_option(parser)


def rename_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    parser.add_argument("name", metavar="NAME", help=_("its new name"))
    runs_option(parser)


def note_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help=_("what to keep with it; '' removes it; none prints it")
    )
    runs_option(parser)


def delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_("a run's name or folder"))
    parser.add_argument("--yes", action="store_true", help=_("delete without asking"))
    runs_option(parser)


def attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help=_("a run's name or folder (default: the one that is live, else the newest)"),
    )
    app_options(parser)


def completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help=_("the shell to complete in"))


def chosen_runs_folder(arguments: argparse.Namespace) -> Path:
    """The folder of runs that --runs names, or the usual one."""
    from tuitune.runs.folder import default_runs_folder

    return expanded(arguments.runs or default_runs_folder()).resolve()
