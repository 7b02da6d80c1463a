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
    model_name, comma, option = text.partition(",")
    if model_name == _WITHOUT and not comma:
        model_name, option = "adapter", _WITHOUT
    if option not in ("", _WITHOUT):
        raise UnusableInput(
            "{text} is no side: give WHO or WHO,{without}.", text=one_line(text, max_length=120), without=_WITHOUT
        )
    documents = option != _WITHOUT
    if model_name in ("adapter", "base"):
        return Side(run, model_name == "adapter", documents=documents)
    if model_name == "gguf" or model_name.startswith("gguf:"):
        return Side(run, documents=documents, engine=model_name)
    if model_name.startswith("checkpoint:"):
        return Side(run, checkpoint=model_name.partition(":")[2], documents=documents)
    try:
        return Side(find_run(model_name, runs_folder).folder, documents=documents)
    except UnusableInput:
        name, colon, checkpoint = model_name.rpartition(":")
        if not colon:
            raise
    run_folder = find_run(name, runs_folder).folder
    return Side(run_folder, checkpoint != "base", None if checkpoint == "base" else checkpoint, documents)
