"""How fast a run goes, measured as its events come, and how long it still takes with all that stops its steps."""

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from tuitune.runs.events import Checkpoint, Evaluation, Event, Phase, Plan, Reply, Started, Step

Stop = Literal["evaluation", "replies", "checkpoint"]

MEASUREMENTS_A_RUN = 10
SHARE_OF_TIME = 0.05
"""How often, and for how much of its time at most, a run is measured where the recipe leaves that to tuitune."""

_MEASURED: tuple[Stop, ...] = ("evaluation", "replies")
_STEPS_KEPT = 1_000
_FEWEST_STEPS = 20
"""Rows differ in length and a machine in its load: a mean over fewer steps would jump."""
_LONGEST_STEP = 2.0
"""In medians; rows of a step differ in length by less than that."""
_STOPS_KEPT = 6
_LATEST_STOPS = 3
"""So many stops of a kind tell what the next ones take: replies grow longer, a disk becomes busy."""


@dataclass
class Pace:
    """The fold of a run's events into seconds a step and seconds a stop of each kind.

    Between two steps the trainer may measure the held-out loss, reply to the sample prompts and save a checkpoint. The
    time they take together is measured by the clock that is never set (`Step.elapsed_s`), and divided among them as
    their own times tell.
    """

    step: int = 0
    total_steps: int = 0
    step_seconds: list[float] = field(default_factory=list)
    """Seconds of each of this attempt's latest steps but the first, without stops."""
    stops: dict[Stop, list[tuple[int, float]]] = field(default_factory=dict)
    """Of the latest stops of each kind: after how many steps they were, and the seconds they took."""
    _last_step: Step | None = None
    _last_phase: str = ""
    _last_at: float = 0.0
    _pending: list[tuple[Stop, int, float]] = field(default_factory=list)
    """The stops since the last step, with their seconds by their own times."""

    def add(self, event: Event) -> None:
        """Take in the run's next event."""
        match event:
            case Started():
                self._last_step = None
                self.step_seconds.clear()
                self._pending.clear()
            case Plan():
                self.total_steps = event.total_steps
            case Step():
                self._add_step(event)
            case Evaluation():
                self._add_stop("evaluation", event.step, event.at)
            case Reply():
                self._add_stop("replies", event.step, event.at)
            case Checkpoint():
                self._add_stop("checkpoint", event.step, event.at)
            case Phase() if event.name != self._last_phase:
                self._last_phase, self._last_at = event.name, event.at

    def _add_stop(self, kind: Stop, step: int, at: float) -> None:
        self._pending.append((kind, step, max(0.0, at - self._last_at)))
        self._last_at = at

    def _add_step(self, step: Step) -> None:
        earlier = self._last_step
        self.step, self.total_steps = step.step, step.total_steps
        self._last_step, self._last_at = step, step.at
        pending, self._pending = self._pending, []
        if earlier is not None and earlier.attempt != step.attempt:
            earlier = None
            self.step_seconds.clear()
        if earlier is not None and step.step != earlier.step + 1:
            return  # memory ran out, and the trainer went back to a checkpoint: what lies between is no step
        seconds = _seconds_between(earlier, step)
        if seconds is None:
            return
        own_seconds = seconds
        if pending:
            own_seconds = min(seconds, self._own_seconds(step))
            told_s = sum(seconds_taken for _, _, seconds_taken in pending)
            # What comes before an attempt's first step is not only what the events tell of.
            stopped = seconds - own_seconds if earlier is not None else min(told_s, seconds - own_seconds)
            for kind, at_step, seconds_taken in pending:
                self._keep(kind, at_step, stopped * (seconds_taken / told_s if told_s else 1 / len(pending)))
        if earlier is not None:  # an attempt's first step loads and compiles
            self.step_seconds.append(own_seconds)
            del self.step_seconds[:-_STEPS_KEPT]

    def _own_seconds(self, step: Step) -> float:
        """Seconds of a step alone, without the stop before it."""
        if step.tokens and step.tokens_per_second:
            return step.tokens / step.tokens_per_second
        return self.seconds_a_step or 0.0

    def _keep(self, kind: Stop, at_step: int, seconds: float) -> None:
        """Add a stop to those of its kind; all replies after one step are one stop."""
        stops = self.stops.setdefault(kind, [])
        while stops and stops[-1][0] > at_step:  # a resumed attempt does these steps again
            stops.pop()
        if stops and stops[-1][0] == at_step:
            seconds += stops.pop()[1]
        stops.append((at_step, seconds))
        del stops[:-_STOPS_KEPT]

    @property
    def seconds_a_step(self) -> float | None:
        """Mean of the latest half of this attempt's steps, without stops; None until two are done.

        A step counts as two medians at most: the machine was busy with something else, which says nothing of the rest.
        """
        latest = self.step_seconds[-max(_FEWEST_STEPS, len(self.step_seconds) // 2) :]
        if not latest:
            return None
        limit = _LONGEST_STEP * median(latest)
        return fmean(min(seconds, limit) for seconds in latest)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until everything is done: the steps, and evaluations, replies and checkpoints as often as so far.

        After the last step comes one of each more. None until two steps of this attempt are done.
        """
        seconds_a_step = self.seconds_a_step
        if seconds_a_step is None:
            return None
        seconds = seconds_a_step * max(0, self.total_steps - self.step)
        stopped = sum(self._seconds_a_stop(kind) * self._to_come(kind) for kind in self.stops)
        return seconds + stopped + self._not_yet_seen(seconds)

    def _seconds_a_stop(self, kind: Stop) -> float:
        return median(stop_seconds for _, stop_seconds in self.stops[kind][-_LATEST_STOPS:])

    def _not_yet_seen(self, seconds: float) -> float:
        """What measuring takes during `seconds` of steps where it was done only before the first one.

        As `train.eval_steps: auto` has it, which most runs leave as it is.
        """
        kinds = [kind for kind in _MEASURED if kind in self.stops]
        if any(step > 0 for kind in kinds for step, _ in self.stops[kind]):
            return 0.0
        times = MEASUREMENTS_A_RUN * (self.total_steps - self.step) / max(1, self.total_steps)
        return min(SHARE_OF_TIME * seconds, times * sum(self._seconds_a_stop(kind) for kind in kinds))

    def _to_come(self, kind: Stop) -> int:
        """How many stops of a kind that has been are to come: at the same distance, and after the last step."""
        at_steps = [step for step, _ in self.stops[kind]]
        at_steps += [step for pending, step, _ in self._pending if pending == kind and step > at_steps[-1]][:1]
        if at_steps[-1] == 0:
            return 1
        if len(at_steps) == 1:
            at_steps.insert(0, 0)
        # A checkpoint that the user asks for lies between two of the others.
        distance = max(later - earlier for earlier, later in pairwise(at_steps))
        return max(0, -(-(self.total_steps - at_steps[-1]) // distance))


def _seconds_between(earlier: Step | None, later: Step) -> float | None:
    """Seconds from one step's end to the next one's; of an attempt's first step, since the attempt began to train."""
    if earlier is None:
        return later.elapsed_s
    if earlier.elapsed_s is not None and later.elapsed_s is not None:
        return max(0.0, later.elapsed_s - earlier.elapsed_s)
    return max(0.0, later.at - earlier.at)
