"""A warning about a run: what is wrong, why, and what to do."""

from dataclasses import dataclass
from typing import Literal

from tuitune.runs.events import Step

Kind = Literal[
    "disk", "loss", "overfitting", "spike", "gradient", "slowed", "pace", "shared", "held-out rows", "reward", "length"
]


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

    @classmethod
    def since(cls, step: Step, kind: Kind, title: str, text: str, remedy: str) -> "RunWarning":
        """One that began with `step`."""
        return cls(kind, title, text, remedy, step.step, step.at)

    @property
    def is_lasting(self) -> bool:
        """Whether it is known from the beginning, and stays."""
        return self.kind == "held-out rows"
