"""The run's figures for TensorBoard, W&B, MLflow and Trackio, through transformers' own callbacks."""

import importlib.util
import logging
import os
from typing import Any

from transformers import TrainerCallback

from tuitune.errors import UnusableInput, explain
from tuitune.language import _
from tuitune.recipe import Recipe
from tuitune.runs.events import Notice
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train.control import Emit

log = logging.getLogger(__name__)

_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""transformers' variable for where TensorBoard's files go."""


def require_reporters(recipe: Recipe) -> None:
    """Refuse a recipe that reports to a library that is not installed. Raises UnusableInput."""
    for name in recipe.train.report_to:
        if importlib.util.find_spec(name) is None:
            raise UnusableInput(
                "train.report_to names {name}, which is not installed: `pip install {name}`, or leave it out.",
                name=name,
            )


def reporters(recipe: Recipe, run: Run, emit: Emit) -> list["Reporter"]:
    """A callback for each library that the recipe reports to."""
    return [Reporter(name, run, emit) for name in recipe.train.report_to]


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Passes a trainer's events on to a reporting library's callback; where that fails the run goes on unreported."""

    def __init__(self, name: str, run: Run, emit: Emit) -> None:
        self._name, self._run, self._emit = name, run, emit
        self._callback: Any = None
        self._failed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._pass_on("on_train_begin", args, state, control, **others)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._pass_on("on_log", args, state, control, **others)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._pass_on("on_train_end", args, state, control, **others)

    def _pass_on(self, event: str, *arguments: Any, **others: Any) -> None:
        if self._failed:
            return
        try:
            if self._callback is None:
                self._callback = self._made()
            getattr(self._callback, event)(*arguments, **others)
        except Exception as error:  # no login, no network, a full disk: whatever it is, the training need not end
            self._failed = True
            log.error("reporting to %s failed", self._name, exc_info=error)
            reason = one_line(explain(error), max_length=200)
            self._emit(
                Notice(
                    text=_(
                        "The run is not reported to {name} any more ({reason}); it goes on.",
                        name=self._name,
                        reason=reason,
                    )
                )
            )

    def _made(self) -> Any:
        from transformers.integrations import get_reporting_integration_callbacks

        (kind,) = get_reporting_integration_callbacks([self._name])
        folder = os.environ.get(_TENSORBOARD_FOLDER)
        os.environ[_TENSORBOARD_FOLDER] = folder or str(self._run.folder / "tensorboard")
        try:
            return kind()
        finally:
            if folder is None:
                del os.environ[_TENSORBOARD_FOLDER]
