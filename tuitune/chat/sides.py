"""The sides of a comparison by their names: `base`, `checkpoint:best`, another run; with documents or without."""

from pathlib import Path

from tuitune.chat.conversation import Side
from tuitune.errors import UnusableInput
from tuitune.runs.folder import find_run
from tuitune.text import one_line

_WITHOUT = "no-docs"


def side_of(text: str, run: Path, runs_folder: Path) -> Side:
    """The side that is meant beside the run in the folder `run`. Raises UnusableInput.

    `WHO[,no-docs]`, where WHO is `adapter`, `base`, `checkpoint:WHICH`, `gguf`, `gguf:TYPE`, or a run, as `RUN`,
    `RUN:WHICH` or `RUN:base`.
    """
    who, comma, what = text.partition(",")
    if who == _WITHOUT and not comma:
        who, what = "adapter", _WITHOUT
    if what not in ("", _WITHOUT):
        raise UnusableInput(f"{one_line(text, max_length=120)} is no side: give WHO or WHO,{_WITHOUT}.")
    documents = what != _WITHOUT
    if who in ("adapter", "base"):
        return Side(run, who == "adapter", documents=documents)
    if who == "gguf" or who.startswith("gguf:"):
        return Side(run, documents=documents, engine=who)
    if who.startswith("checkpoint:"):
        return Side(run, checkpoint=who.partition(":")[2], documents=documents)
    try:
        return Side(find_run(who, runs_folder).folder, documents=documents)
    except UnusableInput:
        name, colon, which = who.rpartition(":")
        if not colon:
            raise
    other = find_run(name, runs_folder).folder
    return Side(other, which != "base", None if which == "base" else which, documents)
