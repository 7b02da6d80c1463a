"""What tests of a whole run share: training in this process, with a hand on its events."""

import os
from collections.abc import Callable
from pathlib import Path

from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Started
from tuitune.runs.folder import Run, create_run
from tuitune.runs.history import History
from tuitune.train.control import Control
from tuitune.train.run import train


def trained(
    recipe: Recipe, runs: Path, name: str, on_event: Callable[[Event, Control], None] = lambda event, control: None
) -> tuple[Run, History]:
    """Train in this process; `on_event` may ask something of the run at an event."""
    writer, control = create_run(recipe, runs, name), Control()

    def emit(event: Event) -> None:
        writer.append(event)
        on_event(event, control)

    emit(Started(run=name, attempt=1, pid=os.getpid()))
    train(recipe, writer.run, control, emit)
    writer.close()
    return writer.run, writer.run.history()
