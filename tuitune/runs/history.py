"""A run's history: everything a dashboard or report shows, as a pure function of the run's events."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from tuitune.language import N_
from tuitune.runs.events import (
    Checkpoint,
    Completions,
    Evaluation,
    Event,
    Failed,
    Finished,
    Notice,
    Phase,
    Plan,
    Price,
    Reply,
    Sample,
    Started,
    Step,
)
from tuitune.runs.pace import Pace

_SAMPLES_KEPT = 60  # a minute
_SILENT_SECONDS = 15.0
"""A host that has told nothing for so long has left, or is out of reach."""
_STEPS_COMPARED = 30
_FEWEST_COMPARED = 5
_SLOWER = 0.03
"""Cards that are alike differ by less from each other."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the card was at a step, each in percent; `busy` is None where NVML does not tell it."""

    step: int
    memory: float
    busy: float | None


@dataclass
class Attempt:
    """A session's hold on the run: from when, until when it was last heard of, and what an hour of it costs."""

    started_at: float
    last_at: float
    price: Price | None = None
    ended: bool = False
    own_seconds: float | None = None
    """How long it took as it said itself at its end, by a clock that is never set."""

    @property
    def seconds(self) -> float:
        """How long it took, or has taken until it was last heard of."""
        return max(0.0, self.last_at - self.started_at if self.own_seconds is None else self.own_seconds)


@dataclass
class History:
    """The fold of a run's events. `add` each event once, in order; replaying a file gives an equal history."""

    started: Started | None = None
    attempts: list[Attempt] = field(default_factory=list)
    phase: Phase | None = None
    plan: Plan | None = None
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    completions: dict[int, dict[str, Completions]] = field(default_factory=dict)
    """Step to the best and the worst of the answers that it learnt from, by `best` and `worst`."""
    sample: Sample | None = None
    """The newest one of the first host."""
    peak_gpu_bytes: int = 0
    checkpoints: list[Checkpoint] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    ended: Finished | Failed | None = None
    last_at: float = 0.0
    pace: Pace = field(default_factory=Pace)
    samples: dict[tuple[str, int | None], deque[Sample]] = field(default_factory=dict)
    """The latest ones of each card of this attempt, by host and index, for what a single one cannot tell.

    Their host is empty on the first one, their index None where there is no card.
    """
    loads: list[Load] = field(default_factory=list)
    """One of each step during which the card was looked at."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> "History":
        history = cls()
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        self.last_at = max(self.last_at, event.at)
        self.pace.add(event)
        if isinstance(event, Started):
            self.attempts.append(Attempt(event.at, event.at))
        elif self.attempts and not (attempt := self.attempts[-1]).ended:
            attempt.last_at = max(attempt.last_at, event.at)
            attempt.ended = isinstance(event, Finished | Failed)
            attempt.own_seconds = event.seconds if isinstance(event, Finished) else None
        match event:
            case Started():
                self.started, self.ended = event, None
                self.samples.clear()
            case Price():
                if self.attempts:
                    self.attempts[-1].price = event
            case Phase():
                self.phase = event
            case Plan():
                self.plan = event
            case Step():
                # A resumed attempt runs the steps after its checkpoint again: the newer ones stand.
                while self.steps and self.steps[-1].step >= event.step:
                    self.steps.pop()
                while self.loads and self.loads[-1].step >= event.step:
                    self.loads.pop()
                self.steps.append(event)
            case Evaluation():
                while self.evaluations and self.evaluations[-1].step >= event.step:
                    self.evaluations.pop()
                self.evaluations.append(event)
            case Reply():
                self.replies.append(event)
            case Completions():
                while self.completions and next(reversed(self.completions)) > event.step:
                    self.completions.popitem()
                self.completions.setdefault(event.step, {})[event.rank] = event
            case Sample():
                if not event.host:
                    self.sample = event
                self.samples.setdefault((event.host, event.gpu_index), deque(maxlen=_SAMPLES_KEPT)).append(event)
                self.peak_gpu_bytes = max(self.peak_gpu_bytes, event.gpu_process_bytes or 0)
                if self.steps and event.gpu_total_bytes:
                    if self.loads and self.loads[-1].step == self.step:
                        self.loads.pop()
                    self.loads.append(self._load())
            case Checkpoint():
                self.checkpoints.append(event)
            case Notice():
                self.notices.append(event)
            case Failed() | Finished():
                self.ended = event

    @property
    def seconds(self) -> float:
        """How long all attempts took together, until the last event."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def cards(self) -> list[Sample]:
        """The newest sample of each card that trains in this attempt, by host (the first one first) and index."""
        return [sample for sample in self._newest_samples if sample.gpu_total_bytes]

    @property
    def other_hosts(self) -> dict[str, list[Sample]]:
        """The newest samples of each host beside the first one: one a card, or one where it has none."""
        hosts: dict[str, list[Sample]] = {}
        for sample in self._newest_samples:
            if sample.host:
                hosts.setdefault(sample.host, []).append(sample)
        return hosts

    @property
    def _newest_samples(self) -> list[Sample]:
        """In the order of hosts and cards, without those of hosts that have gone silent."""
        newest = [samples[-1] for samples in self.samples.values()]
        since = max((sample.at for sample in newest), default=0.0) - _SILENT_SECONDS
        heard = [sample for sample in newest if not sample.host or sample.at >= since]
        return sorted(heard, key=lambda sample: (sample.host, sample.gpu_index or 0))

    def _load(self) -> Load:
        """Of several cards that with the most memory taken, and that with the least to do."""
        memory = max(100 * (card.gpu_used_bytes or 0) / (card.gpu_total_bytes or 1) for card in self.cards)
        busy = [card.gpu_percent for card in self.cards if card.gpu_percent is not None]
        return Load(self.step, memory, min(busy, default=None))

    @property
    def slowest_card(self) -> tuple[str, int, float] | None:
        """Host and index of the card that the others waited for, and by what share it took longer than they did.

        The host is empty where it is the first one. Over the latest steps; None where they are alike, or there is one.
        """
        timed = [step.card_seconds for step in self.steps[-_STEPS_COMPARED:] if len(step.card_seconds) > 1]
        if len(timed) < _FEWEST_COMPARED or len({len(seconds) for seconds in timed}) > 1 or self.plan is None:
            return None
        seconds = [median(of_card) for of_card in zip(*timed, strict=True)]
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        others = median(seconds[:slowest] + seconds[slowest + 1 :])
        if not others or seconds[slowest] < (1 + _SLOWER) * others or len(self.plan.cards) != len(seconds):
            return None
        hosts = self.plan.hosts
        host = hosts[slowest] if len(hosts) == len(seconds) and hosts[slowest] != hosts[0] else ""
        return host, self.plan.cards[slowest], seconds[slowest] / others - 1

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.steps[-1].step if self.steps else 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run as it is planned now; 0 until that is known."""
        return self.pace.total_steps

    @property
    def seconds_left(self) -> float | None:
        """Time to the end, as `Pace` measures it; None until two steps of the attempt are done or once ended."""
        return None if self.ended is not None else self.pace.seconds_left

    def loss_before_and_after(self) -> tuple[float, float] | None:
        """Held-out loss before training and of the adapter; without held-out rows, of the first and last steps."""
        if len(self.evaluations) >= 2:
            adapter_step = self.ended.adapter_step if isinstance(self.ended, Finished) else None
            of_adapter = next(
                (evaluation for evaluation in self.evaluations if evaluation.step == adapter_step), self.evaluations[-1]
            )
            return self.evaluations[0].loss, of_adapter.loss
        if len(self.steps) < 2:
            return None
        tenth = max(1, len(self.steps) // 10)
        losses = [step.loss for step in self.steps]
        return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth

    @property
    def learns_from_rewards(self) -> bool:
        """Whether what counts is a reward that rises, and not a loss that falls."""
        from tuitune.method_sections import fields_of  # with pydantic, which not every list of runs needs

        return self.plan is not None and fields_of(self.plan.method).learns_from_rewards

    def result(self) -> tuple[str, float, float] | None:
        """What is measured (`held-out loss`, `training reward` …), at first and in the end; None before two steps."""
        where = "held-out" if len(self.evaluations) >= 2 else "training"
        if self.learns_from_rewards and where == "training":
            rewards = [step.metrics["reward"] for step in self.steps if "reward" in step.metrics]
            tenth = max(1, len(rewards) // 10)
            if len(rewards) < 2:
                return None
            return N_("training reward"), sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
        if (losses := self.loss_before_and_after()) is None:
            return None
        if self.learns_from_rewards:
            return N_("held-out reward"), -losses[0], -losses[1]
        return N_("held-out loss") if where == "held-out" else N_("training loss"), *losses

    def reply_steps(self) -> list[int]:
        """After which steps the sample prompts were answered, 0 left out, or which learnt from answers of their own."""
        return sorted({reply.step for reply in self.replies} - {0} | self.completions.keys())

    def replies_before_and_after(self, step: int | None = None) -> list[tuple[str, str | None, str | None]]:
        """Each sample prompt with the reply before training and the one after `step` steps; None for the latest."""
        before = {reply.prompt: reply.reply for reply in self.replies if reply.step == 0}
        after = {reply.prompt: reply.reply for reply in self.replies if reply.step > 0 and step in (None, reply.step)}
        return [(prompt, before.get(prompt), after.get(prompt)) for prompt in dict.fromkeys([*before, *after])]
