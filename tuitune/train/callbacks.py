"""What happens beside the trainer: events out, stop and save in, checkpoints made whole.

Importing this module imports transformers.
"""

import math
import time
from typing import Any

from transformers import TrainerCallback

from tuitune.errors import TuituneError
from tuitune.runs.events import Checkpoint, Step
from tuitune.runs.folder import Run
from tuitune.train import checkpoints
from tuitune.train.control import Control, Emit, Stopped


class RunCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Ties a trainer to its run; one outlives the trainers that stand in for each other when memory runs out."""

    def __init__(self, run: Run, control: Control, emit: Emit, attempt: int, steps_done: int = 0) -> None:
        self.steps_done = steps_done
        self._run = run
        self._control = control
        self._emit = emit
        self._attempt = attempt
        self._began = time.monotonic()
        self._step_began = 0.0
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tokens = int(state.num_input_tokens_seen)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave_if_asked()
        self._step_began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave_if_asked()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._control.stop.is_set():  # an evaluation can be left without losing what was trained
            raise Stopped

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._control.stop.is_set():
            control.should_save = control.should_training_stop = True
        if self._control.save.is_set():
            self._control.save.clear()
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._step(state, logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = checkpoints.keep_checkpoint(self._run, state.global_step)
        path = str(checkpoint.relative_to(self._run.folder))
        self._emit(Checkpoint(attempt=self._attempt, step=state.global_step, path=path))

    def _leave_if_asked(self) -> None:
        if self._control.now.is_set():
            raise Stopped

    def _step(self, state: Any, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TuituneError(
                f"The loss is {loss} at step {state.global_step}: lower train.learning_rate, or train in 16-bit; "
                "earlier checkpoints are kept."
            )
        self.steps_done = state.global_step
        seconds = max(1e-9, time.monotonic() - self._step_began)
        seen = int(state.num_input_tokens_seen)
        tokens, self._tokens = seen - self._tokens, seen
        self._emit(
            Step(
                attempt=self._attempt,
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=loss,
                grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
                learning_rate=float(logs["learning_rate"]) if "learning_rate" in logs else None,
                tokens=tokens,
                tokens_per_second=tokens / seconds,
                elapsed_s=time.monotonic() - self._began,
            )
        )
