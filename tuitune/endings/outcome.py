"""How a run has ended, as it is told outside."""

from dataclasses import dataclass
from typing import Any

from tuitune.runs.cost import cost, money, seconds_held
from tuitune.runs.events import Failed, finite
from tuitune.runs.folder import Run
from tuitune.runs.history import History
from tuitune.text import one_line
from tuitune.units import duration


@dataclass(frozen=True, slots=True)
class Outcome:
    """`state` is done, stopped, paused or failed; `seconds` are those that sessions held the run.

    The losses are those of the report. Why a run has failed is left out: the sentence may quote data or paths, and goes
    to a server of someone else's.
    """

    run: str
    state: str
    step: int
    total_steps: int
    loss_before: float | None
    loss_after: float | None
    seconds: float
    cost: float | None
    currency: str | None

    @classmethod
    def of(cls, run: Run, history: History) -> "Outcome":
        ended, spent = history.ended, cost(history)
        losses = history.loss_before_and_after() or (None, None)
        return cls(
            run=one_line(run.name, max_length=80),
            state="failed" if isinstance(ended, Failed) or ended is None else ended.status,
            step=history.step,
            total_steps=history.total_steps,
            loss_before=finite(losses[0]),
            loss_after=finite(losses[1]),
            seconds=round(sum(map(seconds_held, history.attempts)), 1),
            cost=round(spent.so_far, 4) if spent else None,
            currency=spent.currency if spent else None,
        )

    def __str__(self) -> str:
        """One sentence: `pirate-1 is done: 60 of 60 steps, loss 3.100 → 0.400, 2 min 21 s, $0.10`."""
        state = {"done": "is done", "stopped": "was stopped", "paused": "is paused", "failed": "has failed"}.get(
            self.state, self.state
        )
        parts = [f"{self.step} of {self.total_steps} steps"] if self.total_steps else []
        if self.loss_before is not None and self.loss_after is not None:
            parts.append(f"loss {self.loss_before:.3f} → {self.loss_after:.3f}")
        parts.append(duration(self.seconds))
        if self.cost is not None:
            parts.append(money(self.cost, self.currency or ""))
        return f"{self.run} {state}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, and the sentence under the names that Slack and Mattermost (`text`) and Discord read."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "text": str(self), "content": str(self)}
