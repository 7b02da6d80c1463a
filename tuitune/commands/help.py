"""What `--help` says of the commands, and how it is laid out, in the reader's language."""

import argparse
import re
from collections.abc import Iterable
from typing import Any

from tuitune.language import ENGLISH, N_, _, language

_PIECES = re.compile(r"[（「]*(?:[!-~]+|.)[、。）：；」・]*\s*", re.DOTALL)
"""Words of Latin letters, and single characters of a language without spaces, each with the
marks that do not begin a line, or end one."""


OVERVIEW = N_("""\
Walks you through one LLM fine-tuning run: model, data, LoRA settings, training, chat, export.

  tuitune [RECIPE]              the app, in this terminal
  tuitune demo                  the app on the demo that comes with tuitune
  tuitune run RECIPE            the same run without the app
  tuitune resume RUN            go on with a run that ended early
  tuitune join HOST:PORT        train along with a run on another host
  tuitune stop RUN              have a live run stop; `checkpoint RUN` has it save
  tuitune pause RUN             give the GPU back for a while; `resume RUN` goes on
  tuitune change RUN --set …    steps, epochs or learning rate of a live run
  tuitune then RUN COMMAND      have a command run when a live run has ended
  tuitune inspect RECIPE        what is in the data and which tokens are trained
  tuitune audit RECIPE          every problem in the data, row by row
  tuitune rewards RECIPE        what rewards say of the model's answers before it is trained
  tuitune estimate RECIPE       what will be trained, steps, memory; several cards and hosts
  tuitune chat RUN              talk to a run's adapter
  tuitune export RUN --to KIND  take the result home
  tuitune runs [WORD …]         every run so far, as a table, JSON or CSV
  tuitune compare RUN RUN …     runs side by side: losses, and where their recipes differ
  tuitune rename RUN NAME       also `note RUN TEXT` and `delete RUN`
  tuitune attach [RUN]          back to a live run
  tuitune doctor                is this machine ready?
  tuitune completion SHELL      completion for bash, zsh or fish

`tuitune COMMAND --help` explains a command. Exit status: 0 done, 1 failed, 2 unusable arguments or recipe,
75 preempted (SIGTERM or SIGUSR1), 130 interrupted.""")

DESCRIPTIONS = {
    "demo": N_("Fine-tune the little model that comes with tuitune: the app in a terminal, else a run and its report."),
    "run": N_(
        "Train a recipe without the app. Ctrl+C stops after the step and saves, twice at once; a third one leaves."
    ),
    "resume": N_(
        "Go on with a run that has ended early, or further with one that is done, from its newest whole checkpoint."
    ),
    "join": N_(
        "Train along with a run on another host, until it is over; model and data must be on this one, with "
        "equal content.\n"
        "\n"
        "The first host has the dashboard and keeps the run. What it says is done here, so join only hosts that "
        "you trust, in\n"
        "a private network: nobody is authenticated."
    ),
    "stop": N_("Have a live run stop after its step, with checkpoint and adapter saved."),
    "pause": N_(
        "Have a live run end for a while after its step, with a checkpoint saved; `tuitune resume RUN` goes on."
    ),
    "change": N_("Change how long or how fast a live run trains, from its next step on."),
    "checkpoint": N_("Have a live run save a checkpoint after its step, and go on."),
    "then": N_("Have a command run when a live run is done or has failed, or cancel the one that was to be."),
    "inspect": N_("Show what is in the data and which tokens are trained; needs no model weights."),
    "audit": N_("Look for problems in every row of the data: duplicates, cut or empty replies, secrets, and more."),
    "rewards": N_(
        "Have the model answer a few prompts as it is, and show what each of the recipe's rewards says of the answers."
    ),
    "estimate": N_("Say what a recipe will train, in how many steps and how much memory; needs no model weights."),
    "chat": N_("Talk to a run's adapter: one reply with --prompt, else a conversation."),
    "export": N_("Write a run's result in one or more forms, each opened again before it is called done."),
    "runs": N_("List every run, the newest first, or those in which all of the words stand."),
    "compare": N_("Show runs side by side: how they ended, and every recipe field in which they differ."),
    "rename": N_("Give a run another name; its folder is renamed."),
    "note": N_("Keep a note with a run, or print the one that is there."),
    "delete": N_(
        "Delete a run: its folder with record, checkpoints, adapter and exports. Asks first; a live run is refused."
    ),
    "attach": N_("Go back to a run: live with its whole history, or the record of one that has ended."),
    "doctor": N_("Check that this machine can train, and say what to do where it cannot."),
    "completion": N_("Print the script with which a shell completes tuitune's commands, options, files and runs."),
}
"""What the `--help` of each command says of it."""


class HelpParser(argparse.ArgumentParser):
    """A parser whose `--help` has its headings in the reader's language."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, add_help=False, **options)
        self._positionals.title = _("positional arguments")
        self._optionals.title = _("options")
        self.add_argument("-h", "--help", action="help", help=_("show this help message and exit"))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, _("usage: ") if prefix is None else prefix)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """The text in lines of so many columns, which Japanese fills with half as many characters, and no spaces."""
        if language() == ENGLISH:
            return super()._split_lines(text, width)
        from rich.cells import cell_len

        lines = [""]
        for piece in _PIECES.findall(" ".join(text.split())):
            if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
        return [line.rstrip() for line in lines]
