"""What the losses and gradients of a run say is wrong with its training: pure functions of its history."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev

from tuitune.language import _, plural
from tuitune.runs.events import Step
from tuitune.runs.history import History
from tuitune.runs.warning import RunWarning

_LEARNT_LOSS = 0.2
"""Nats a token: there is little to gain below."""
_SMALL_RATE = 1e-5
"""A tenth of the lowest learning rate that is usual for LoRA."""
_FEWEST_STEPS_OF_LOSS = 40
"""A learning rate that warms up over 5 to 10 steps moves the loss by then, if it ever does."""
_FIRST_LOSSES = 10
"""Most of what a fine-tune gains may come in its first tens of steps."""
_LAST_LOSSES = 100
_MOVED = 0.02
"""A fine-tune gains tens of percent where the data is new, and less than this where it learns nothing."""
_HELD_OUT_MOVED = 0.01
"""The held-out rows are the same each time, so their loss is less noisy than that of steps."""
_MOST_NOISE = 0.05
"""Rows that differ more hide a loss that falls: without held-out rows nothing is said of them."""


def loss_not_falling(history: History) -> RunWarning | None:
    """The training loss stays where it began, over at least 40 steps and a fifth of the run."""
    steps = history.steps
    if len(steps) < max(_FEWEST_STEPS_OF_LOSS, history.total_steps // 5):
        return None
    width = min(_LAST_LOSSES, len(steps) // 4)
    late = [step.loss for step in steps[-width:]]
    first, last = fmean(step.loss for step in steps[:_FIRST_LOSSES]), fmean(late)
    error = pstdev(late) * math.sqrt(1 / _FIRST_LOSSES + 1 / width)
    if first <= _LEARNT_LOSS or first - last > max(_MOVED * first, 2 * error):
        return None
    losses = [evaluation.loss for evaluation in history.evaluations if math.isfinite(evaluation.loss)]
    if len(losses) >= 2:
        if min(losses[1:]) <= losses[0] * (1 - _HELD_OUT_MOVED):
            return None
    elif abs(first - last) > _MOVED * first or 2 * error > _MOST_NOISE * first:
        return None
    rate = _highest_rate([*steps[:width], *steps[-width:]])
    if rate < _SMALL_RATE:
        reason = _("a learning rate of {rate:.1e} is too low to learn from", rate=rate)
        remedy = _("stop, and raise train.learning_rate (2e-4 is usual for LoRA)")
    else:
        reason = _("too few tokens are trained, the rows teach nothing new, or the learning rate does not fit")
        remedy = _(
            "stop, and look at the trained tokens in the data step, then change train.learning_rate (2e-4 is usual "
            "for LoRA)"
        )
    return RunWarning.since(
        steps[0],
        "loss",
        _("the loss does not fall"),
        _(
            "The training loss is where it began ({first:.3f}, now {last:.3f}): {reason}",
            first=first,
            last=last,
            reason=reason,
        ),
        remedy,
    )


_RISEN = 0.25
_RISEN_NATS = 0.3
_CERTAIN = 5.0
"""Standard errors: the lowest of many means lies low by chance."""
_STEPS_OF_NOISE = 20
_MEANS = 200


def rising_loss(history: History) -> RunWarning | None:
    """The training loss is far above where it has been: the mean of the latest steps against the lowest such mean."""
    steps = history.steps
    width = max(5, min(50, history.total_steps // 20))
    if len(steps) < max(_STEPS_OF_NOISE, 2 * width):
        return None
    latest = [step.loss for step in steps[-max(width, _STEPS_OF_NOISE) :]]
    mean_now, error = fmean(latest[-width:]), pstdev(latest) * math.sqrt(2 / width)
    stride = max(1, width // 4, history.total_steps // _MEANS)
    begins = range(0, len(steps) - width, stride)
    lowest, begin = min((sum(step.loss for step in steps[begin : begin + width]) / width, begin) for begin in begins)
    if mean_now - lowest <= max(_RISEN * lowest, _RISEN_NATS, _CERTAIN * error):
        return None
    step, rate = steps[begin + width - 1], _highest_rate(steps[-width:])
    return RunWarning.since(
        step,
        "loss",
        _("the loss rises"),
        _(
            "The training loss has risen from {lowest:.3f} about step {step} to {now:.3f}: the learning rate "
            "({rate:.1e}) is too high for this model and data",
            lowest=lowest,
            step=step.step,
            now=mean_now,
            rate=rate,
        ),
        _("stop, and train with a lower train.learning_rate"),
    )


def _highest_rate(steps: Sequence[Step]) -> float:
    return max((step.learning_rate or 0.0 for step in steps), default=0.0)


_RISES_IN_A_ROW = 2
"""One measurement that is higher may be chance."""
_HELD_OUT_RISEN = 0.02
_TRAINING_FELL = 0.01
_STEPS_OF_MEAN = 50


def overfitting(history: History) -> RunWarning | None:
    """The held-out loss has risen over two measurements since its best, while the training loss has fallen."""
    evaluations = [evaluation for evaluation in history.evaluations if math.isfinite(evaluation.loss)]
    best = min(evaluations, key=lambda evaluation: evaluation.loss, default=None)
    if best is None:
        return None
    later = [evaluation for evaluation in evaluations if evaluation.step > best.step]
    if len(later) < _RISES_IN_A_ROW or later[-1].loss < best.loss * (1 + _HELD_OUT_RISEN):
        return None
    if any(evaluation.loss <= best.loss * (1 + _HELD_OUT_RISEN / 2) for evaluation in later[-_RISES_IN_A_ROW:]):
        return None
    before = bisect_right(history.steps, best.step, key=lambda step: step.step)
    steps_between = later[0].step - best.step
    width = min(_STEPS_OF_MEAN, steps_between, before or len(history.steps) // 2, len(history.steps) - before)
    if width < 1:
        return None
    mean_before = fmean(step.loss for step in (history.steps[before - width : before] or history.steps[:width]))
    mean_now = fmean(step.loss for step in history.steps[-width:])
    if mean_now > mean_before * (1 - _TRAINING_FELL):
        return None
    return RunWarning(
        "overfitting",
        _("overfitting since step {step}", step=best.step),
        _(
            "The held-out loss has risen from {best:.3f} at step {step} to {last:.3f}, while the training loss fell "
            "from {before:.3f} to {now:.3f}: the rows are learnt by heart",
            best=best.loss,
            step=best.step,
            last=later[-1].loss,
            before=mean_before,
            now=mean_now,
        ),
        _(
            "stop, and take the checkpoint of step {step}; train fewer steps, at a lower rate, or on more rows",
            step=best.step,
        )
        if best.step
        else _("stop: the model was better before; train fewer steps, at a lower rate, or on more rows"),
        best.step,
        best.at,
    )


_FEWEST_BEFORE = 30
_STEPS_BEFORE = 50
_RECENT_STEPS = 20
_DEVIATIONS = 8.0
"""Of the logarithm, since losses and gradient norms of batches are spread like lognormal numbers; four would be rare
enough, if the deviation of 30 to 50 steps were not off by up to a half."""
_LEAST_DEVIATION = 0.05
_SPIKE_NATS = 0.5
"""A loss near 0 doubles for one odd row."""
_HIGHEST_TIMES = 1.5
"""Data that has an odd row now and then is what it is."""


def spike(history: History) -> RunWarning | None:
    """One of the latest steps has a loss far above those before."""
    width = max(_RECENT_STEPS, history.total_steps // 500)
    before, recent = _before_and_recent(history.steps, width, _STEPS_BEFORE)
    usual = _Range.of((step.loss for step in before), _LEAST_DEVIATION)
    if len(before) < _FEWEST_BEFORE or usual is None:
        return None
    limit = max(
        usual.above(_DEVIATIONS),
        usual.middle + _SPIKE_NATS,
        _HIGHEST_TIMES * max(step.loss for step in before[len(before) // 2 :]),
    )
    highest = max(recent, key=lambda step: step.loss)
    if highest.loss <= limit:
        return None
    has_come_back = recent[-1].loss <= limit and recent[-1].step > highest.step
    return RunWarning.since(
        highest,
        "spike",
        _("the loss jumped at step {step}", step=highest.step),
        _(
            "The loss was {loss:.2f} at step {step}, where {usual:.2f} is usual, and has come back: odd rows, mostly",
            loss=highest.loss,
            step=highest.step,
            usual=usual.middle,
        )
        if has_come_back
        else _(
            "The loss was {loss:.2f} at step {step}, where {usual:.2f} is usual, and has not come back",
            loss=highest.loss,
            step=highest.step,
            usual=usual.middle,
        ),
        _("`tuitune audit` finds odd rows")
        if has_come_back
        else _("if it stays, stop, and train with a lower train.learning_rate from the last checkpoint before"),
    )


_RECENT_GRADIENTS = 10
_ODD_GRADIENTS = 2
"""A single long gradient is clipped (train.max_grad_norm) and does no harm."""
_LEAST_GRADIENT_DEVIATION = 0.15
_GRADIENT_TIMES = 5.0
_NO_GRADIENTS = 5


def odd_gradient(history: History) -> RunWarning | None:
    """The gradient norm is 0, or several of the latest ones are far above the run's own range."""
    steps = [step for step in history.steps[-_STEPS_BEFORE - _RECENT_GRADIENTS :] if step.grad_norm is not None]
    latest = steps[-_NO_GRADIENTS:]
    if len(latest) == _NO_GRADIENTS and not any(step.grad_norm for step in latest):
        return RunWarning.since(
            latest[0],
            "gradient",
            _("no gradient"),
            _("The gradient norm has been 0 since step {step}: nothing is learnt", step=latest[0].step),
            _("stop, and look at the trained tokens in the data step; train in 16-bit if there are any"),
        )
    before, recent = _before_and_recent(steps, _RECENT_GRADIENTS, _STEPS_BEFORE)
    usual = _Range.of((step.grad_norm or 0.0 for step in before), _LEAST_GRADIENT_DEVIATION)
    if len(before) < _FEWEST_BEFORE or usual is None:
        return None
    limit = max(usual.above(_DEVIATIONS), _GRADIENT_TIMES * usual.middle)
    odd_steps = [step for step in recent if (step.grad_norm or 0.0) > limit]
    if len(odd_steps) < _ODD_GRADIENTS:
        return None
    highest = max(step.grad_norm or 0.0 for step in odd_steps)
    return RunWarning.since(
        odd_steps[0],
        "gradient",
        _("gradients out of range"),
        _(
            "The gradient norm is up to {highest:.3g} since step {step}, where {usual:.3g} is usual: training may "
            "become unstable",
            highest=highest,
            step=odd_steps[0].step,
            usual=usual.middle,
        ),
        _("if the loss rises too, stop, and train with a lower train.learning_rate or train.max_grad_norm"),
    )


_FEWEST_ROWS = 16
"""Of fewer, one row is over 6% of the mean, which is as much as most changes of the loss that matter."""


def few_held_out_rows(history: History) -> RunWarning | None:
    """So few rows are held out that their loss means little."""
    plan = history.plan
    if plan is None or not 0 < plan.eval_rows < _FEWEST_ROWS:
        return None
    return RunWarning(
        "held-out rows",
        _("few held-out rows"),
        plural(
            "Only {count} row is held out: a change of their loss may be chance",
            "Only {count} rows are held out: a change of their loss may be chance",
            plan.eval_rows,
        ),
        _("raise data.eval_share, or give data.eval_path, to hold out {rows} or more", rows=_FEWEST_ROWS),
        0,
        plan.at,
    )


@dataclass(frozen=True, slots=True)
class _Range:
    """Where positive numbers lie that fall or rise on the whole: the median of the later half, and the deviation.

    The latter is of the logarithms, and from the differences of neighbours (1.4826 × MAD / √2, as of a normal).
    """

    middle: float
    deviation: float

    @classmethod
    def of(cls, numbers: Iterable[float], least_deviation: float) -> "_Range | None":
        """None where a number is not positive, or there is none."""
        values = list(numbers)
        if not values or min(values) <= 0:
            return None
        logarithms = [math.log(value) for value in values]
        differences = [later - earlier for earlier, later in pairwise(logarithms)] or [0.0]
        centre = median(differences)
        spread = 1.4826 * median(abs(difference - centre) for difference in differences) / math.sqrt(2)
        return cls(median(values[len(values) // 2 :]), max(least_deviation, spread))

    def above(self, deviations: float) -> float:
        """The number so many deviations above the middle; infinite where that is beyond any."""
        exponent = math.log(self.middle) + deviations * self.deviation
        return math.exp(exponent) if exponent < 700 else math.inf


def _before_and_recent(steps: Sequence[Step], recent: int, before: int) -> tuple[Sequence[Step], Sequence[Step]]:
    """The `before` steps that precede the latest `recent` steps, and these."""
    return steps[-recent - before : -recent], steps[-recent:]
