"""What a run's own history says is wrong with it: warnings with their reason and remedy, as pure functions.

None of them stops a run. Each needs more than one odd reading, since a healthy run that is warned of teaches its user
to read no warning.
"""

from dataclasses import dataclass

from tuitune.errors import TuituneError
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.runs.machine_warnings import disk_too_small, shared_card, slowed_card, slower_steps
from tuitune.runs.reward_warnings import answers_cut, rewards_alike
from tuitune.runs.training_warnings import (
    few_held_out_rows,
    loss_not_falling,
    odd_gradient,
    overfitting,
    rising_loss,
    spike,
)
from tuitune.runs.warning import RunWarning


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
        return cls(save_steps, newest_checkpoint_bytes(run))


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
        early = None if history.learns_from_rewards else few_held_out_rows(history)
        return [early] if early else []
    if history.learns_from_rewards:  # its loss and gradient say nothing of progress
        checks: list[RunWarning | None] = [rewards_alike(history), answers_cut(history)]
        in_training: list[RunWarning | None] = []
    else:
        loss = rising_loss(history) or loss_not_falling(history)
        checks = [loss, overfitting(history), few_held_out_rows(history)]
        in_training = [spike(history), odd_gradient(history)]
    if history.ended is None:
        checks = [
            disk_too_small(history, facts.save_steps, facts.checkpoint_bytes),
            *checks[:2],
            *in_training,
            slowed_card(history),
            shared_card(history),
            None if history.learns_from_rewards else slower_steps(history),  # answers become shorter or longer
            *checks[2:],
        ]
    return [warning for warning in checks if warning]


def newest_checkpoint_bytes(run: Run) -> int | None:
    """What the checkpoint that was saved last takes; None where there is none."""
    try:
        folders = sorted(run.checkpoints.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)
        files = [file for file in folders[-1].rglob("*") if file.is_file()] if folders else []
        return sum(file.stat().st_size for file in files) or None
    except OSError:  # rotated away meanwhile
        return None
