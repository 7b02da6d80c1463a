"""What the model can do before, while and after it is trained: the held-out loss, and replies to a few prompts."""

import contextlib
import gc
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.chat.reply import reply
from tuitune.chat.sampling import Sampling
from tuitune.data.prepare import Prepared
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.methods import Method, method_of
from tuitune.recipe import Recipe
from tuitune.recipe_sections import TrainSection
from tuitune.runs.events import Evaluation, Notice, Reply
from tuitune.runs.pace import MEASUREMENTS_A_RUN, SHARE_OF_TIME
from tuitune.text import one_line
from tuitune.train.control import Control, Emit, NotFinite, Stopped
from tuitune.train.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

PATIENCE = 3
"""Measurements without gain that end a run by default: one or two may be noise of few held-out rows."""
_MOST_EPOCHS_WITHOUT = 2
"""A run that sees each row so often or less seldom overfits: it is not ended early unless the recipe says so."""


class Evaluator:
    """Measures the model of one run; outlives the trainers that stand in for each other when memory runs out."""

    def __init__(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        prepared: Prepared,
        control: Control,
        emit: Emit,
        attempt: int,
        measured: Sequence[Evaluation] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        """`measured` is what earlier attempts have measured up to the step that this one begins at."""
        self.trainer: Any = None
        self.measured = [evaluation for evaluation in measured if evaluation.step > 0]
        """During training, in the order of their steps."""
        self.stopped_early = False
        self._method = method_of(recipe)
        self._loaded = loaded
        self.recipe = recipe
        """What is trained; it can change while a run goes."""
        self._prompts = prompts_of(recipe, prepared)
        self._rows = len(prepared.eval or ())
        self._control = control
        self._emit = emit
        self._attempt = attempt
        self._ranks = ranks
        self._last_step = 0
        self._all_failed = False
        self._loss_seconds = self._replies_seconds = self._waited_s = 0.0

    def begin(self, step: int) -> None:
        """Training begins, or begins again, after `step` steps: what was measured later is forgotten."""
        self.measured = [evaluation for evaluation in self.measured if evaluation.step <= step]
        self._last_step = max((evaluation.step for evaluation in self.measured), default=step)

    def measure(self, step: int, *, loss: bool = True, replies: bool = True) -> Evaluation | None:
        """Tell the held-out loss and the replies after `step` steps; weights and random state stay as they are.

        None where there are no held-out rows, or a stop left them out. Raises NotFinite, and whatever the model raises;
        `others_wait` tells whether this process may go on then.
        """
        self._all_failed = False
        self._wait_for_queued_work()
        with _random_state_kept(self._loaded):
            began = time.monotonic()
            evaluation = self._held_out_loss(step) if loss else None
            loss_ended = time.monotonic()
            if replies:
                self._reply(step)
                self._replies_seconds = time.monotonic() - loss_ended
            self._loss_seconds = loss_ended - began
        if evaluation is not None and step > 0:
            self.measured.append(evaluation)
        return evaluation

    @property
    def others_wait(self) -> bool:
        """Whether others wait for weights of this process, where a measurement has raised: then it must end.

        Processes that share the weights compute each layer together. What one of them raises there it raises alone.
        """
        return self._loaded.shards is not None and not self._all_failed

    def _wait_for_queued_work(self) -> None:
        """Wait for a queued pass of the next step, so that its time does not count as the measurement's."""
        import torch

        if self._loaded.model.device.type == "cuda":
            began = time.monotonic()
            torch.cuda.synchronize()
            self._waited_s += time.monotonic() - began

    def take_waited_s(self) -> float:
        """Seconds that measuring waited for work of the step that follows, since they were last asked for."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def _held_out_loss(self, step: int) -> Evaluation | None:
        is_shared = self._loaded.shards is not None
        return measure_loss(
            self.trainer, self._method, self._emit, self._attempt, step, self._ranks, is_shared=is_shared
        )

    def _reply(self, step: int) -> None:
        """Have the first process reply to the prompts while the others wait. Where it fails, all of them raise.

        Where they share the weights, one whose memory runs out, or whose weights do not arrive, raises alone.
        """
        import torch

        failure, shards = None, self._loaded.shards
        with shards.by_first_alone() if shards is not None else contextlib.nullcontext():
            if self._ranks.is_first:
                try:
                    sample_replies(self._loaded, self._prompts, self.recipe, self._emit, self._control, step)
                except Exception as error:
                    if shards is not None and (shards.has_broken_off or isinstance(error, torch.OutOfMemoryError)):
                        raise
                    failure = error
        (self._all_failed,) = self._ranks.any(failure is not None)
        if self._all_failed:
            raise failure or TuituneError("The first process could not reply to the prompts.")

    def after_step(self, step: int, total_steps: int, step_seconds: float) -> Evaluation | None:
        """Measure where that is due after `step` of `total_steps` steps of `step_seconds` each."""
        every = self.recipe.train.eval_steps
        replies = bool(self._prompts)
        if every == "auto":
            costs = (self._loss_seconds if self._rows else 0.0, self._replies_seconds if replies else 0.0)
            every = steps_between(total_steps, step_seconds, sum(costs))
            if self._rows and every > (rarely := steps_between(total_steps, step_seconds, costs[0])):
                every, replies = rarely, False  # the loss alone, more often
        is_due = bool(every) and step < total_steps and step - self._last_step >= every and (self._rows > 0 or replies)
        is_due, replies = self._ranks.first_says(is_due, replies)  # each process has seconds of its own
        if not is_due:
            return None
        self._last_step = step
        try:
            return self.measure(step, replies=replies)
        except (NotFinite, Stopped):
            raise
        except Exception as error:  # a reply that memory runs out for, say: the training need not end for it
            if self.others_wait:
                raise
            log.error("measuring the model at step %s failed", step, exc_info=error)
            reason = one_line(explain(error), max_length=200)
            self._emit(
                Notice(
                    text=_(
                        "Measuring the model at step {step} failed ({reason}); it is measured at the end.",
                        step=step,
                        reason=reason,
                    )
                )
            )
            self._last_step = total_steps
            return None
        finally:
            self._loaded.backend.for_training(self._loaded)

    @property
    def best(self) -> Evaluation | None:
        """The measurement of the lowest held-out loss during training; the earlier one of equals."""
        return min(self.measured, key=lambda evaluation: evaluation.loss, default=None)

    def is_out_of_patience(self, epochs: float) -> bool:
        """Whether the held-out loss has not fallen for so long that a run of `epochs` epochs ends."""
        train = self.recipe.train
        patience = patience_of(train, self._rows, epochs, by_reward=self.recipe.method.learns_from_rewards)
        return bool(patience) and measurements_without_gain(self.measured, train.early_stopping_threshold) >= patience


def steps_between(total_steps: int, step_seconds: float, measuring_seconds: float) -> int:
    """Steps from one measurement to the next: a tenth of the run, or as many as keep to the share of its time."""
    tenth = math.ceil(total_steps / MEASUREMENTS_A_RUN)
    return max(tenth, math.ceil(measuring_seconds / (SHARE_OF_TIME * max(step_seconds, 1e-6))))


def patience_of(train: TrainSection, eval_rows: int, epochs: float, *, by_reward: bool = False) -> int:
    """After how many measurements without gain the run ends; 0 for never.

    A mean reward, of a few answers drawn at random, stands still by chance: by itself it ends no run.
    """
    if train.early_stopping_patience == "auto":
        return PATIENCE if eval_rows and epochs > _MOST_EPOCHS_WITHOUT and not by_reward else 0
    return train.early_stopping_patience if eval_rows else 0


def measurements_without_gain(measured: Sequence[Evaluation], threshold: float) -> int:
    """How many of the newest measurements are not below the best one before them by more than `threshold`."""
    best, without = math.inf, 0
    for evaluation in measured:
        if evaluation.loss < best - threshold:
            best, without = evaluation.loss, 0
        else:
            without += 1
    return without


def measure_loss(
    trainer: Any,
    method: Method,
    emit: Emit,
    attempt: int,
    step: int,
    ranks: Ranks = ALONE,
    *,
    is_shared: bool = False,
) -> Evaluation | None:
    """Measure the held-out loss, in batches of half the size where memory runs out; a stop leaves it out.

    Raises NotFinite where the loss is NaN or infinite. Where the weights are shared by the `ranks` (`is_shared`), what
    the model raises is raised by this process alone, torch.OutOfMemoryError too.
    """
    import torch

    while trainer.eval_dataset is not None and len(trainer.eval_dataset):
        try:
            logs = trainer.evaluate()
            metrics = method.metrics_of({name.removeprefix("eval_"): value for name, value in logs.items()})
            evaluation = Evaluation(attempt=attempt, step=step, loss=float(logs["eval_loss"]), metrics=metrics)
            emit(evaluation)
            if not math.isfinite(evaluation.loss):
                raise NotFinite(
                    "The held-out loss is {loss} after {step} steps: {causes}",
                    loss=evaluation.loss,
                    step=step,
                    causes=_(_CAUSES),
                )
            return evaluation
        except Stopped:
            return None
        except torch.OutOfMemoryError:
            if is_shared:
                raise
            graphs = getattr(trainer, "graphs", None)
            if any(ranks.any(graphs is not None and graphs.drop())):
                continue
            if trainer.args.per_device_eval_batch_size == 1:
                emit(
                    Notice(
                        text=_(
                            "The held-out loss is left out, because a single row does not fit into the GPU's "
                            "memory: lower data.max_length."
                        )
                    )
                )
                return None
        trainer.args.per_device_eval_batch_size //= 2
        gc.collect()  # after the exception, whose frames hold what the failed batch took
        torch.cuda.empty_cache()
    return None


_CAUSES = N_(
    "lower train.learning_rate, or train in 16-bit (model.load_in_4bit: false); what was saved before is kept."
)


def require_finite(what: str, value: float, step: int) -> None:
    """Refuse to go on with `value`, the loss or the gradient norm of `step`. Raises NotFinite."""
    if not math.isfinite(value):
        raise NotFinite(
            "The {what} is {value} at step {step}: {causes}", what=_(what), value=value, step=step, causes=_(_CAUSES)
        )


@contextlib.contextmanager
def _random_state_kept(loaded: LoadedModel) -> Iterator[None]:
    """Leave every random state as it was, so that a run trains the same whether and when it is measured."""
    import numpy
    import torch

    device = loaded.model.device
    own, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(own)
            numpy.random.set_state(arrays)


def prompts_of(recipe: Recipe, prepared: Prepared) -> list[Any]:
    """The prompts whose replies are shown: the recipe's, else a few of the data's own."""
    if recipe.samples.prompts:
        return [[{"role": "user", "content": prompt}] for prompt in recipe.samples.prompts]
    return list(prepared.prompts(3))


def sample_replies(
    loaded: LoadedModel, prompts: list[Any], recipe: Recipe, emit: Emit, control: Control, step: int
) -> None:
    """Reply to the prompts as a chat would; one that the chat template refuses is told of once, before training."""
    sampling = Sampling(max_new_tokens=recipe.samples.max_new_tokens)
    for messages in prompts:
        if control.is_asked_to_stop():
            return
        try:
            answer = reply(loaded, messages, sampling, cancelled=control.is_asked_to_stop)
        except TuituneError as error:
            if step == 0:
                emit(
                    Notice(
                        text=_(
                            "No reply to {prompt!r}. {reason}",
                            prompt=one_line(messages[-1]["content"], max_length=60),
                            reason=error.sentence,
                        )
                    )
                )
            continue
        emit(Reply(step=step, prompt=messages[-1]["content"], reply=answer.text))
