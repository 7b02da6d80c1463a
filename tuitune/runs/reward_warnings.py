"""What is wrong with a run that learns from rewards: pure functions of its history."""

from statistics import fmean

from tuitune.language import _
from tuitune.runs.history import History
from tuitune.runs.warning import RunWarning

_STEPS = 8
"""As many steps in a row: a few prompts may happen to teach nothing."""
_NEARLY_ALL = 0.9


def rewards_alike(history: History) -> RunWarning | None:
    """The answers to nearly every prompt have been worth the same for some steps."""
    steps = [step for step in history.steps if "frac_reward_zero_std" in step.metrics][-_STEPS:]
    if len(steps) < _STEPS or fmean(step.metrics["frac_reward_zero_std"] for step in steps) < _NEARLY_ALL:
        return None
    reward = fmean(step.metrics.get("reward", 0.0) for step in steps)
    best = max(step.metrics.get("reward", 0.0) for step in history.steps)
    first = history.steps[0].metrics.get("reward", 0.0)
    if reward >= 0.95 * best > first:
        reason = _("it has learnt what these rewards tell")
        remedy = _("stop, or go on with harder prompts or stricter rewards")
    else:
        reason = _("the prompts are too hard or too easy for it, or the rewards do not tell good answers from bad ones")
        remedy = _("stop, and look at the answers with `tuitune rewards RECIPE`")
    return RunWarning.since(
        steps[0],
        "reward",
        _("rewards do not differ"),
        _(
            "Since step {step} the answers to each prompt are worth the same (mean reward {reward:.3g}): {reason}",
            step=steps[0].step,
            reward=reward,
            reason=reason,
        ),
        remedy,
    )


def answers_cut(history: History) -> RunWarning | None:
    """Nearly all answers reach their longest without an end."""
    steps = [step for step in history.steps if "completions/clipped_ratio" in step.metrics][-_STEPS:]
    if len(steps) < _STEPS or fmean(step.metrics["completions/clipped_ratio"] for step in steps) < _NEARLY_ALL:
        return None
    return RunWarning.since(
        steps[0],
        "length",
        _("answers do not end"),
        _("Since step {step} nearly all answers have been cut at method.max_completion_length", step=steps[0].step),
        _("stop, and raise it, or reward shorter answers with the reward length"),
    )
