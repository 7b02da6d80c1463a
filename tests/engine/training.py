"""What tests of a whole run share: training in this process, with a hand on its events."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.conftest import DEMO
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


def without_probabilities(folder: Path) -> Path:
    """The demo model with a weight that is NaN, so that it finds no token likelier than another."""
    from safetensors.torch import load_file, save_file

    model = folder / "without_probabilities"
    shutil.copytree(DEMO / "demo_model", model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model
