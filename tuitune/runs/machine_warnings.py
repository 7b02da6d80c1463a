"""What the pace of a run and the samples of its machine say is wrong around it: pure functions of its history."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from tuitune.language import N_, _
from tuitune.runs.events import Sample, Step
from tuitune.runs.history import History
from tuitune.runs.warning import RunWarning
from tuitune.text import one_line
from tuitune.units import size

_FIRST_STEPS = 3
"""They load and tune kernels."""
_WINDOW_S = 30.0
"""What slows steps for less is over before anyone could look."""
_FEWEST_TIMED = 10
_FEWEST_ALIKE = 5
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
    if len(ratios) < _FEWEST_ALIKE or (slower := median(ratios)) < _SLOWER:
        return None
    late_speed, early_speed = (median(step.tokens_per_second or 0.0 for step in steps) for steps in (late, early))
    return RunWarning.since(
        late[-1],
        "pace",
        _("slower than at first"),
        _(
            "A step takes {times:.1f} times as long as at first ({late:,.0f} tokens/s, {early:,.0f} then)",
            times=slower,
            late=late_speed,
            early=early_speed,
        ),
        _("look for other programs with `top` and `nvidia-smi`")
        if history.sample and history.sample.gpu_total_bytes
        else _("look for other programs with `top`"),
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
    "heat": N_("give the machine air, or lower the card's power limit; the run itself is right"),
    "power brake": N_("look at the machine's power supply; the run itself is right"),
    "power limit": N_("plug a laptop in, or raise the limit with `nvidia-smi -pl`; the run itself is right"),
}

_SLOWED_BY = {"heat": N_("heat"), "power brake": N_("its power brake"), "power limit": N_("its power limit")}


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
        degrees = slowed[-1].gpu_celsius if cause == "heat" else None
        reason = _("heat ({degrees:.0f} °C)", degrees=degrees) if degrees is not None else _(_SLOWED_BY[cause])
        name = _name(history, slowed[-1])
        text = (
            _("The {name} is held down by {reason}", name=name, reason=reason)
            if share is None
            else _(
                "The {name} is held down to {share:.0%} of its highest clock by {reason}",
                name=name,
                share=share,
                reason=reason,
            )
        )
        title = _("{name} slowed by {cause}", name=name, cause=_(cause))
        return RunWarning("slowed", title, text, _(remedy), history.step, slowed[0].at)
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
    held_bytes, total_bytes = shared[-1].gpu_others_bytes or 0, shared[-1].gpu_total_bytes or 0
    name = _name(history, shared[-1])
    return RunWarning(
        "shared",
        _("{name} shared", name=name),
        _(
            "Other processes hold {held} of the {name}'s {total}: steps take longer, and memory may run out",
            held=size(held_bytes),
            name=name,
            total=size(total_bytes),
        ),
        _("`nvidia-smi` lists them: end them, or choose another card with --gpu"),
        history.step,
        shared[0].at,
    )


CHECKPOINT_BYTES_A_PARAMETER = 12
"""A trained parameter in fp32 and the two moments that Adam keeps of it: what a checkpoint holds, nearly."""
CHECKPOINTS_AT_ONCE = 4
"""The two newest, the best, and one that is being written."""


def disk_too_small(history: History, save_steps: int | None, checkpoint_bytes: int | None) -> RunWarning | None:
    """What is still to be saved, older checkpoints being removed, is more than the disk has room for."""
    plan, sample = history.plan, history.sample
    if plan is None or sample is None or sample.disk_free_bytes is None:
        return None
    checkpoint_bytes = checkpoint_bytes or plan.trainable_parameters * CHECKPOINT_BYTES_A_PARAMETER
    on_disk = min(len({checkpoint.step for checkpoint in history.checkpoints}), CHECKPOINTS_AT_ONCE - 1)
    to_come = -(-history.total_steps // save_steps) - history.step // save_steps if save_steps else 1
    checkpoints_to_come = max(0, min(to_come, CHECKPOINTS_AT_ONCE - on_disk))
    needed_bytes = checkpoints_to_come * checkpoint_bytes + plan.trainable_parameters * 4  # and the adapter, in fp32
    if sample.disk_free_bytes >= needed_bytes:
        return None
    return RunWarning(
        "disk",
        _("the disk fills"),
        _(
            "{free} are free where the run is saved, and it needs {needed}: checkpoints of {size}, {to_come} to "
            "come, and the adapter",
            free=size(sample.disk_free_bytes),
            needed=size(needed_bytes),
            size=size(checkpoint_bytes),
            to_come=to_come,
        ),
        _("make room before then; on a full disk the run stands still"),
        history.step,
        sample.at,
    )


def _most_samples(history: History, is_odd: Callable[[Sample], bool]) -> list[Sample]:
    """The latest samples of a card that are odd, if most of them are; of several such cards those of the first one."""
    for samples in history.samples.values():
        odd_samples = [sample for sample in samples if is_odd(sample)]
        if len(samples) >= _FEWEST_SAMPLES and len(odd_samples) >= _MOST_OF_SAMPLES * len(samples):
            return odd_samples
    return []


def _name(history: History, sample: Sample) -> str:
    """The card of a sample, in words."""
    if sample.host:
        return _("GPU {card} of {host}", card=sample.gpu_index, host=one_line(sample.host, max_length=60))
    return f"GPU {sample.gpu_index}" if len(history.cards) > 1 else "GPU"
