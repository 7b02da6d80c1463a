"""What happens beside the trainer: events out, stop and save in, checkpoints made whole.

Importing this module imports transformers.
"""

import time
from typing import Any

from transformers import TrainerCallback

from tuitune.language import N_
from tuitune.methods import method_of
from tuitune.runs.events import Checkpoint, Step
from tuitune.runs.folder import Run
from tuitune.train import checkpoints
from tuitune.train.control import Control, Emit, Stopped, WrongStart
from tuitune.train.evaluate import Evaluator, require_finite
from tuitune.train.methods import learner_of
from tuitune.train.methods.pretrain import RATE_SHARE
from tuitune.train.ranks import ALONE, Ranks


class RunCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Ties a trainer to its run; one outlives the trainers that stand in for each other when memory runs out."""

    def __init__(
        self,
        run: Run,
        control: Control,
        emit: Emit,
        evaluator: Evaluator,
        attempt: int,
        steps_done: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self._method, self._learner = method_of(evaluator.recipe), learner_of(evaluator.recipe)
        self.steps_done = steps_done
        self._evaluator = evaluator
        self._run = run
        self._control = control
        self._emit = emit
        self._attempt = attempt
        self._ranks = ranks
        self._began = time.monotonic()
        self._step_began: float | None = None
        """When all that followed the step before was done; None before the first one."""
        self._tokens = 0
        self._steps_seconds: list[float] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        _follow_the_recipe(args, optimizer, lr_scheduler)
        self._tokens = int(state.num_input_tokens_seen)
        self._steps_seconds.clear()
        self._step_began = None
        self._evaluator.begin(int(state.global_step))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave_if_asked()
        self._draw_other_dropout(args.seed, state.global_step)
        if self._step_began is None:
            self._step_began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave_if_asked()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._control.agree()
        if self._control.stop.is_set():  # an evaluation can be left without losing what was trained
            raise Stopped

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._control.agree()
        self._stop_if_asked(control)
        if self._control.save.is_set():
            self._control.save.clear()
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._step(args, state, logs)
            self._measure(state, control)
            self._step_began = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._ranks.is_first and checkpoints.is_staged(
            self._run, state.global_step
        ):  # or left out: the disk is full
            best = self._evaluator.best
            checkpoint = checkpoints.keep_checkpoint(self._run, state.global_step, best=best.step if best else None)
            path = str(checkpoint.relative_to(self._run.folder))
            self._emit(Checkpoint(attempt=self._attempt, step=state.global_step, path=path))
        self._control.saving.clear()
        self._ranks.wait()  # before any of them reads it
        self._step_began = time.monotonic()

    def _draw_other_dropout(self, seed: int, step: int) -> None:
        """Have each of several processes drop other values, by the step: an attempt that goes on drops the same."""
        if self._ranks.world > 1:
            import torch

            torch.manual_seed((seed * 1_000_003 + step * self._ranks.world + self._ranks.rank) % 2**63)

    def _leave_if_asked(self) -> None:
        if self._control.now.is_set():
            raise Stopped

    def _stop_if_asked(self, control: Any) -> None:
        if self._control.stop.is_set() or self._control.recipe is not None:
            control.should_save = control.should_training_stop = True

    def _measure(self, state: Any, control: Any) -> None:
        """Measure where that is due; keep a checkpoint that is the best so far, end a run that only gets worse."""
        later = self._steps_seconds[1:] or self._steps_seconds  # the first step of a process takes the longest
        evaluation = self._evaluator.after_step(state.global_step, state.max_steps, sum(later) / len(later))
        self._leave_if_asked()
        self._stop_if_asked(control)
        if evaluation is None:
            return
        if evaluation == self._evaluator.best:
            control.should_save = True
        elif self._evaluator.is_out_of_patience(state.num_train_epochs):
            self._evaluator.stopped_early = control.should_save = control.should_training_stop = True

    def _over_all_ranks(self, tokens: int) -> tuple[float, ...]:
        """The step's tokens over all processes; where there are several, the seconds that each computed, by rank."""
        ranks = self._ranks
        if ranks.world == 1:
            return (tokens,)
        seconds = self._evaluator.trainer.step_clock.seconds
        return ranks.totals(tokens, *(seconds if rank == ranks.rank else 0.0 for rank in range(ranks.world)))

    def _step(self, args: Any, state: Any, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])
        require_finite(N_("loss"), loss, state.global_step)
        if (
            not args.fp16 and "grad_norm" in logs
        ):  # in fp16 a step whose gradients overflow is left out and tried smaller
            require_finite(N_("gradient norm"), float(logs["grad_norm"]), state.global_step)
        self.steps_done = state.global_step
        began = self._step_began or time.monotonic()
        seconds = max(1e-9, time.monotonic() - began + self._evaluator.take_waited_s())
        self._steps_seconds.append(seconds)
        seen = int(state.num_input_tokens_seen)
        own_tokens, self._tokens = seen - self._tokens, seen
        tokens, *card_seconds = self._over_all_ranks(own_tokens)
        metrics = self._method.metrics_of(logs)
        self._emit(
            Step(
                attempt=self._attempt,
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=loss,
                grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
                learning_rate=float(logs["learning_rate"]) if "learning_rate" in logs else None,
                tokens=int(tokens),
                tokens_per_second=tokens / seconds,
                elapsed_s=time.monotonic() - self._began,
                metrics=metrics,
                card_seconds=tuple(card_seconds),
            )
        )
        recipe = self._evaluator.recipe
        if state.global_step == 1 and (problem := self._learner.problem_of_first_step(recipe, loss, metrics)):
            raise WrongStart(problem)


def _follow_the_recipe(args: Any, optimizer: Any, lr_scheduler: Any) -> None:
    """Set the learning rate to that of the recipe's schedule at this step; a checkpoint brings that of its own recipe.

    They differ where the rate or the number of steps was changed since.
    """
    bases = [args.learning_rate * group.get(RATE_SHARE, 1.0) for group in optimizer.param_groups]
    for group, base in zip(optimizer.param_groups, bases, strict=True):
        group["initial_lr"] = base
    lr_scheduler.base_lrs = bases
    shares = [share(lr_scheduler.last_epoch) for share in lr_scheduler.lr_lambdas]
    rates = [base * share for base, share in zip(bases, shares, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    lr_scheduler._last_lr = rates
