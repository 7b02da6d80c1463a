"""What a run's own history says is wrong with it: warnings with their reason and remedy, as pure functions.

None of them stops a run. Each needs more than one odd reading, since a healthy run that is warned of teaches its user
to read no warning.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median, pstdev, pvariance
from typing import Literal

from tuitune.errors import TuituneError
from tuitune.runs.events import Sample, Step
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.units import size

Kind = Literal["disk", "loss", "overfitting", "spike", "gradient", "slowed", "pace", "shared", "held-out rows"]


@dataclass(frozen=True, slots=True)
class RunWarning:
    """`title` in a word or two, `text` what is wrong and why, `remedy` what to do; each sentence without its point.

    It began after `step` optimizer steps, at `at` in epoch seconds, as far as the history can tell.
    """

    kind: Kind
    title: str
    text: str
    remedy: str
    step: int
    at: float

    @property
    def is_lasting(self) -> bool:
        """Whether it is known from the beginning, and stays."""
        return self.kind == "held-out rows"


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a run is not in its history: steps between checkpoints, and the bytes of its newest one."""

    save_steps: int | None = None
    checkpoint_bytes: int | None = None

    @classmethod
    def of(cls, run: Run) -> "Facts":
        """Read them from the run's folder; what cannot be read is left out."""
        try:
            save_steps = run.resolved().train.save_steps
        except TuituneError:
            save_steps = None
        return cls(save_steps, _newest_checkpoint_bytes(run))


class Monitor:
    """The warnings of a run whose history grows; looks into its folder again with each checkpoint."""

    def __init__(self) -> None:
        self._looked_at: tuple[Run | None, int] = (None, 0)
        self._facts = Facts()

    def warnings(self, run: Run | None, history: History) -> list[RunWarning]:
        """What is wrong with the run now, the most serious first."""
        state = run, len(history.checkpoints)
        if run is not None and state != self._looked_at:
            self._looked_at, self._facts = state, Facts.of(run)
        return warnings_of(history, self._facts)


def warnings_of(history: History, facts: Facts = Facts()) -> list[RunWarning]:
    """What is wrong with the run as its history stands, the most serious first.

    Once the run has ended, only what is to be known of its result.
    """
    if not history.steps:
        return [warning for warning in (few_held_out_rows(history),) if warning]
    loss = rising_loss(history) or loss_not_falling(history)
    checks: list[RunWarning | None] = [loss, overfitting(history), few_held_out_rows(history)]
    if history.ended is None:
        checks = [
            disk_too_small(history, facts),
            *checks[:2],
            spike(history),
            odd_gradient(history),
            slowed_card(history),
            shared_card(history),
            slower_steps(history),
            *checks[2:],
        ]
    return [warning for warning in checks if warning]


# --- the loss -------------------------------------------------------------------------------------------------------

_LEARNT_LOSS = 0.05
"""Nats a token: there is nothing to gain below."""
_SMALL_RATE = 1e-5
"""A tenth of the lowest learning rate that is usual for LoRA."""
_FEWEST_STEPS_OF_LOSS = 40
"""A learning rate that warms up over 5 to 10 steps moves the loss by then, if it ever does."""
_MOST_STEPS_OF_MEAN = 100
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
    width = min(_MOST_STEPS_OF_MEAN, len(steps) // 4)
    early, late = [step.loss for step in steps[:width]], [step.loss for step in steps[-width:]]
    first, last = fmean(early), fmean(late)
    error = math.sqrt((pvariance(early) + pvariance(late)) / width)
    if first <= _LEARNT_LOSS or first - last > max(_MOVED * first, 2 * error):
        return None
    measured = [evaluation.loss for evaluation in history.evaluations if math.isfinite(evaluation.loss)]
    if len(measured) >= 2:
        if min(measured[1:]) <= measured[0] * (1 - _HELD_OUT_MOVED):
            return None
    elif 2 * error > _MOST_NOISE * first:
        return None
    rate = _highest_rate([*steps[:width], *steps[-width:]])
    if rate < _SMALL_RATE:
        why, remedy = f"a learning rate of {rate:.1e} is too low to learn from", "raise train.learning_rate"
    else:
        why = "too few tokens are trained, the rows teach nothing new, or the learning rate does not fit"
        remedy = "look at the trained tokens in the data step, then change train.learning_rate"
    return _warning(
        "loss",
        "the loss does not fall",
        f"The training loss is where it began ({first:.3f}, now {last:.3f}): {why}",
        f"stop, and {remedy} (2e-4 is usual for LoRA)",
        steps[0],
    )


_RISEN = 0.25
_RISEN_NATS = 0.3
_CERTAIN = 5.0
"""Standard errors: the lowest of many means lies low by chance."""
_STEPS_OF_NOISE = 20
_MEANS = 200


def rising_loss(history: History) -> RunWarning | None:
    """The training loss is far above where it has been: the mean of the latest steps against the lowest such mean."""
    losses = [step.loss for step in history.steps]
    width = max(5, min(50, history.total_steps // 20))
    if len(losses) < max(_STEPS_OF_NOISE, 2 * width):
        return None
    apart = max(1, width // 4, history.total_steps // _MEANS)
    now = fmean(losses[-width:])
    error = pstdev(losses[-max(width, _STEPS_OF_NOISE) :]) * math.sqrt(2 / width)
    lowest, begin = min((fmean(losses[begin : begin + width]), begin) for begin in range(0, len(losses) - width, apart))
    if now - lowest <= max(_RISEN * lowest, _RISEN_NATS, _CERTAIN * error):
        return None
    step, rate = history.steps[begin + width - 1], _highest_rate(history.steps[-width:])
    return _warning(
        "loss",
        "the loss rises",
        f"The training loss has risen from {lowest:.3f} about step {step.step} to {now:.3f}: "
        f"the learning rate ({rate:.1e}) is too high for this model and data",
        "stop, and train with a lower train.learning_rate",
        step,
    )


def _highest_rate(steps: Sequence[Step]) -> float:
    return max((step.learning_rate or 0.0 for step in steps), default=0.0)


_RISES_IN_A_ROW = 2
"""One measurement that is higher may be chance."""
_HELD_OUT_RISEN = 0.02
_TRAINING_FELL = 0.01


def overfitting(history: History) -> RunWarning | None:
    """The held-out loss has risen over two measurements since its best, while the training loss has fallen."""
    measured = [evaluation for evaluation in history.evaluations if math.isfinite(evaluation.loss)]
    best = min(measured, key=lambda evaluation: evaluation.loss, default=None)
    if best is None:
        return None
    later = [evaluation for evaluation in measured if evaluation.step > best.step]
    if len(later) < _RISES_IN_A_ROW or later[-1].loss < best.loss * (1 + _HELD_OUT_RISEN):
        return None
    if any(evaluation.loss <= best.loss * (1 + _HELD_OUT_RISEN / 2) for evaluation in later[-_RISES_IN_A_ROW:]):
        return None
    before = bisect_right(history.steps, best.step, key=lambda step: step.step)
    width = min(_MOST_STEPS_OF_MEAN, before or len(history.steps), len(history.steps) - before)
    if width == 0:
        return None
    then = fmean(step.loss for step in (history.steps[before - width : before] or history.steps[:width]))
    now = fmean(step.loss for step in history.steps[-width:])
    if now > then * (1 - _TRAINING_FELL):
        return None
    return RunWarning(
        "overfitting",
        f"overfitting since step {best.step}",
        f"The held-out loss has risen from {best.loss:.3f} at step {best.step} to {later[-1].loss:.3f}, while the "
        f"training loss fell from {then:.3f} to {now:.3f}: the rows are learnt by heart",
        f"stop, and take the checkpoint of step {best.step}; train fewer steps, at a lower rate, or on more rows",
        best.step,
        best.at,
    )


_FEWEST_BEFORE = 20
_STEPS_BEFORE = 50
_RECENT_STEPS = 20
_SPIKE_DEVIATIONS = 6.0
"""Of the logarithm of the loss, since losses of batches are spread like lognormal numbers: one in 10**9."""
_LEAST_DEVIATION = 0.05
_SPIKE_NATS = 0.5
"""A loss near 0 doubles for one odd row."""


def spike(history: History) -> RunWarning | None:
    """One of the latest steps has a loss far above those before."""
    width = max(_RECENT_STEPS, history.total_steps // 500)
    before, recent = _before_and_recent(history.steps, width, _STEPS_BEFORE)
    usual = _Range.of((step.loss for step in before), _LEAST_DEVIATION)
    if len(before) < _FEWEST_BEFORE or usual is None:
        return None
    limit = max(usual.above(_SPIKE_DEVIATIONS), usual.middle + _SPIKE_NATS)
    highest = max(recent, key=lambda step: step.loss)
    if highest.loss <= limit:
        return None
    has_come_back = recent[-1].loss <= limit and recent[-1].step > highest.step
    return _warning(
        "spike",
        f"the loss jumped at step {highest.step}",
        f"The loss was {highest.loss:.2f} at step {highest.step}, where {usual.middle:.2f} is usual"
        + (", and has come back: odd rows, mostly" if has_come_back else ", and has not come back"),
        "`tuitune audit` finds odd rows"
        if has_come_back
        else "if it stays, stop, and train with a lower train.learning_rate from the last checkpoint before",
        highest,
    )


_STEPS_BEFORE_GRADIENT = 100
_FEWEST_BEFORE_GRADIENT = 30
"""Gradient norms of the first steps, while the learning rate warms up, tell little of later ones."""
_RECENT_GRADIENTS = 10
_ODD_GRADIENTS = 2
"""A single long gradient is clipped (train.max_grad_norm) and does no harm."""
_GRADIENT_DEVIATIONS = 6.0
_LEAST_GRADIENT_DEVIATION = 0.15
_GRADIENT_TIMES = 5.0
_NO_GRADIENTS = 5


def odd_gradient(history: History) -> RunWarning | None:
    """The gradient norm is 0, or several of the latest ones are far above the run's own range."""
    steps = [
        step for step in history.steps[-_STEPS_BEFORE_GRADIENT - _RECENT_GRADIENTS :] if step.grad_norm is not None
    ]
    latest = steps[-_NO_GRADIENTS:]
    if len(latest) == _NO_GRADIENTS and not any(step.grad_norm for step in latest):
        return _warning(
            "gradient",
            "no gradient",
            f"The gradient norm has been 0 since step {latest[0].step}: nothing is learnt",
            "stop, and look at the trained tokens in the data step; train in 16-bit if there are any",
            latest[0],
        )
    before, recent = _before_and_recent(steps, _RECENT_GRADIENTS, _STEPS_BEFORE_GRADIENT)
    usual = _Range.of((step.grad_norm or 0.0 for step in before), _LEAST_GRADIENT_DEVIATION)
    if len(before) < _FEWEST_BEFORE_GRADIENT or usual is None:
        return None
    limit = max(usual.above(_GRADIENT_DEVIATIONS), _GRADIENT_TIMES * usual.middle)
    odd = [step for step in recent if (step.grad_norm or 0.0) > limit]
    if len(odd) < _ODD_GRADIENTS:
        return None
    highest = max(step.grad_norm or 0.0 for step in odd)
    return _warning(
        "gradient",
        "gradients out of range",
        f"The gradient norm is up to {highest:.3g} since step {odd[0].step}, where {usual.middle:.3g} is usual: "
        "training may become unstable",
        "if the loss rises too, stop, and train with a lower train.learning_rate or train.max_grad_norm",
        odd[0],
    )


_FEWEST_ROWS = 16
"""Of fewer, one row is over 6% of the mean, which is as much as most changes of the loss that matter."""


def few_held_out_rows(history: History) -> RunWarning | None:
    """So few rows are held out that their loss means little."""
    plan = history.plan
    if plan is None or not 0 < plan.eval_rows < _FEWEST_ROWS:
        return None
    rows = "1 row is" if plan.eval_rows == 1 else f"{plan.eval_rows} rows are"
    return RunWarning(
        "held-out rows",
        "few held-out rows",
        f"Only {rows} held out: a change of their loss may be chance",
        f"raise data.eval_share, or give data.eval_path, to hold out {_FEWEST_ROWS} or more",
        0,
        plan.at,
    )


# --- the machine ----------------------------------------------------------------------------------------------------

_FIRST_STEPS = 3
"""They load and tune kernels."""
_WINDOW_S = 30.0
"""What slows steps for less is over before anyone could look."""
_FEWEST_TIMED = 10
_MOST_TIMED = 500
_LENGTHS = 4
_SLOWER = 1.5


def slower_steps(history: History) -> RunWarning | None:
    """The latest half minute of steps takes longer than this attempt's first one did, for rows as long."""
    attempt = history.steps[-1].attempt
    first = bisect_left(history.steps, attempt, key=lambda step: step.attempt) + _FIRST_STEPS
    early = _timed(history.steps[first : first + _MOST_TIMED])
    late = _timed(history.steps[max(first, len(history.steps) - _MOST_TIMED) :][::-1])
    if not early or not late or early[-1].step >= late[-1].step:
        return None
    seconds_as_long = _seconds_by_length(early)
    ratios = [_own_seconds(step) / usual for step in late if (usual := seconds_as_long(step.tokens or 0))]
    if len(ratios) < _FEWEST_TIMED or (slower := median(ratios)) < _SLOWER:
        return None
    now, then = (median(step.tokens_per_second or 0.0 for step in steps) for steps in (late, early))
    return _warning(
        "pace",
        "slower than at first",
        f"A step takes {slower:.1f} times as long as at first ({now:,.0f} tokens/s, {then:,.0f} then)",
        "look for other programs with `top`"
        + (" and `nvidia-smi`" if history.sample and history.sample.gpu_total_bytes else ""),
        late[-1],
    )


def _timed(steps: Sequence[Step]) -> list[Step]:
    """The first of these steps whose own times are known and fill the window; empty where they do not."""
    timed: list[Step] = []
    seconds = 0.0
    for step in steps:
        if step.tokens and step.tokens_per_second:
            timed.append(step)
            seconds += _own_seconds(step)
        if seconds >= _WINDOW_S and len(timed) >= _FEWEST_TIMED:
            return timed
    return []


def _own_seconds(step: Step) -> float:
    return (step.tokens or 0) / (step.tokens_per_second or math.inf)


def _seconds_by_length(steps: Sequence[Step]) -> Callable[[int], float | None]:
    """The median seconds of steps of about so many tokens; None for more or fewer tokens than any of them has."""
    by_length = sorted(steps, key=lambda step: step.tokens or 0)
    groups = [
        by_length[len(steps) * part // _LENGTHS : len(steps) * (part + 1) // _LENGTHS] for part in range(_LENGTHS)
    ]
    longest = [group[-1].tokens or 0 for group in groups]
    seconds = [median(_own_seconds(step) for step in group) for group in groups]

    def seconds_of(tokens: int) -> float | None:
        if not (by_length[0].tokens or 0) <= tokens <= longest[-1]:
            return None
        return seconds[bisect_left(longest, tokens)]

    return seconds_of


_FEWEST_SAMPLES = 20
_MOST_OF_SAMPLES = 0.8
_LOW_CLOCK = 0.6
"""A card at work reaches its power limit and lowers its clock by up to a third: that is how cards are made."""
_SLOWED_REMEDIES = {
    "heat": "give the machine air, or lower the card's power limit; the run itself is right",
    "power brake": "look at the machine's power supply; the run itself is right",
    "power limit": "plug a laptop in, or raise the limit with `nvidia-smi -pl`; the run itself is right",
}


def slowed_card(history: History) -> RunWarning | None:
    """Heat, a power brake or an unusually low power limit has held the card's clock down for most of a minute."""
    for cause, remedy in _SLOWED_REMEDIES.items():
        slowed = _most_samples(history, partial(_is_slowed, cause))
        if not slowed:
            continue
        shares = [sample.gpu_clock_share for sample in slowed if sample.gpu_clock_share is not None]
        share = median(shares) if shares else None
        if cause == "power limit" and (share is None or share > _LOW_CLOCK):
            continue
        clock = f"to {share:.0%} of its highest clock " if share is not None else ""
        degrees = history.sample.gpu_celsius if history.sample and cause == "heat" else None
        because = f"heat ({degrees:.0f} °C)" if degrees is not None else f"its {cause}" if cause != "heat" else cause
        text = f"The GPU is held down {clock}by {because}"
        return RunWarning("slowed", f"GPU slowed by {cause}", text, remedy, history.step, slowed[0].at)
    return None


def _is_slowed(cause: str, sample: Sample) -> bool:
    return cause in sample.gpu_slowed_by


_SHARED_BYTES = 2**30
_SHARED = 0.05
"""What a desktop and its windows take is less than both."""


def shared_card(history: History) -> RunWarning | None:
    """Other processes hold much of the card's memory."""
    shared = _most_samples(
        history,
        lambda sample: (sample.gpu_others_bytes or 0) > max(_SHARED_BYTES, _SHARED * (sample.gpu_total_bytes or 0)),
    )
    if not shared:
        return None
    held, total = shared[-1].gpu_others_bytes or 0, shared[-1].gpu_total_bytes or 0
    return RunWarning(
        "shared",
        "GPU shared",
        f"Other processes hold {size(held)} of the GPU's {size(total)}: steps take longer, and memory may run out",
        "`nvidia-smi` lists them: end them, or choose another card with --gpu",
        history.step,
        shared[0].at,
    )


_BYTES_A_PARAMETER = 12
"""A trained parameter in fp32 and the two moments that Adam keeps of it: what a checkpoint holds, nearly."""
_CHECKPOINTS_AT_ONCE = 4
"""The two newest, the best, and one that is being written."""


def disk_too_small(history: History, facts: Facts) -> RunWarning | None:
    """What is still to be saved, older checkpoints being removed, is more than the disk has room for."""
    plan, sample = history.plan, history.sample
    if plan is None or sample is None or sample.disk_free_bytes is None:
        return None
    checkpoint_bytes = facts.checkpoint_bytes or plan.trainable_parameters * _BYTES_A_PARAMETER
    on_disk = min(len({checkpoint.step for checkpoint in history.checkpoints}), _CHECKPOINTS_AT_ONCE - 1)
    to_come = -(-history.total_steps // facts.save_steps) - history.step // facts.save_steps if facts.save_steps else 1
    more = max(0, min(to_come, _CHECKPOINTS_AT_ONCE - on_disk))
    needed_bytes = more * checkpoint_bytes + plan.trainable_parameters * 4  # and the adapter, in fp32
    if sample.disk_free_bytes >= needed_bytes:
        return None
    return RunWarning(
        "disk",
        "the disk fills",
        f"{size(sample.disk_free_bytes)} are free where the run is saved, and it needs {size(needed_bytes)}: "
        f"checkpoints of {size(checkpoint_bytes)}, {to_come} to come, and the adapter",
        "make room before then; a full disk ends the run",
        history.step,
        sample.at,
    )


def _newest_checkpoint_bytes(run: Run) -> int | None:
    try:
        folders = sorted(run.checkpoints.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)
        files = [file for file in folders[-1].rglob("*") if file.is_file()] if folders else []
        return sum(file.stat().st_size for file in files) or None
    except OSError:  # rotated away meanwhile
        return None


# --- what they share ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Range:
    """Where positive numbers lie: their median, and the spread of their logarithms (1.4826 × MAD, as of a normal)."""

    middle: float
    deviation: float

    @classmethod
    def of(cls, numbers: Iterable[float], least_deviation: float) -> "_Range | None":
        """None where a number is not positive, or there is none."""
        values = list(numbers)
        if not values or min(values) <= 0:
            return None
        logarithms = [math.log(value) for value in values]
        middle = median(logarithms)
        deviation = 1.4826 * median(abs(logarithm - middle) for logarithm in logarithms)
        return cls(math.exp(middle), max(least_deviation, deviation))

    def above(self, deviations: float) -> float:
        """The number so many deviations above the middle; infinite where that is beyond any."""
        exponent = math.log(self.middle) + deviations * self.deviation
        return math.exp(exponent) if exponent < 700 else math.inf


def _before_and_recent(steps: Sequence[Step], recent: int, before: int) -> tuple[Sequence[Step], Sequence[Step]]:
    """The latest `recent` steps, after the `before` steps before them."""
    return steps[-recent - before : -recent], steps[-recent:]


def _most_samples(history: History, is_odd: Callable[[Sample], bool]) -> list[Sample]:
    """The latest samples that are odd, if most of them are."""
    odd = [sample for sample in history.samples if is_odd(sample)]
    few = len(history.samples) < _FEWEST_SAMPLES
    return [] if few or len(odd) < _MOST_OF_SAMPLES * len(history.samples) else odd


def _warning(kind: Kind, title: str, text: str, remedy: str, step: Step) -> RunWarning:
    return RunWarning(kind, title, text, remedy, step.step, step.at)
