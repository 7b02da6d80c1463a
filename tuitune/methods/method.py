"""What a method is to the data, the preview, the audit, the estimate and the dashboard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tuitune.conversation import Sample, UnusableRow
from tuitune.language import N_
from tuitune.masking import IGNORED, Masked, Masker
from tuitune.recipe import Recipe

if TYPE_CHECKING:
    from tuitune.methods.advice import Advice

OverLength = Literal["cut", "drop", "split"]
Masks = Sequence[Masked | UnusableRow]
IDS, TEXT = "ids", "text"
"""What a column of tokenised rows holds: a list of whole numbers, or text."""
INPUTS = ("input_ids", "prompt_ids")
"""How the names of columns end that hold a sequence of tokens to run the model on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as it is kept and trained on."""

    columns: dict[str, list[int] | str]
    """By the method's `columns`."""
    tokens: int
    """Of all its sequences."""
    trained_tokens: int
    truncated: bool = False
    """Whether tokens beyond max_length were cut."""
    ended: bool = True
    """Whether every trained turn's end-of-turn token is trained."""

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, which max_length bounds."""
        return max(len(ids) for name, ids in self.columns.items() if name.endswith(INPUTS))

    def is_trained_beyond(self, length: int) -> bool:
        """Whether a sequence has trained tokens behind its first `length` ones."""
        labels = (values[length:] for name, values in self.columns.items() if name.endswith("labels"))
        return any(label != IGNORED for tail in labels for label in tail)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of tokens that the preview shows under a title of its own; empty where a row has one part only."""

    title: Literal["", "prompt", "chosen", "rejected", "good", "bad"]
    input_ids: list[int]
    labels: list[int]
    """-100 where a token is not counted."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One of a method's own figures of a step, as the trainer logs it, and what it says."""

    name: str
    """As it stands in `Step.metrics`, such as rewards/margins."""
    title: str
    """At most 14 characters, for a column of numbers."""
    meaning: str
    """One sentence for who sees it for the first time."""
    format: str = ".3f"


class Method:
    """What is learned from. One object a method; nothing but these objects knows which method a run has.

    The trainer of a method is its `Learner`, of the same name, in `tuitune.train.methods`.
    """

    name: str
    sentence: str
    """What it learns from and when to choose it, for who chooses."""
    columns: Mapping[str, str]
    """Of tokenised rows: name to `IDS` or `TEXT`."""
    metrics: Sequence[Metric] = ()
    """In the order in which a dashboard shows them; the first is the one that tells most."""
    loss_says: str = N_("The loss falls as the model learns.")
    """What the loss of this method tells, where beginners err."""
    sequences_a_row: int = 1
    """How many sequences of tokens one row brings into a pass."""
    why_not_sharded: str = ""
    """Why cards cannot share the frozen weights while they train by it, as a clause; empty where they can."""

    def train_on(self, recipe: Recipe) -> Literal["assistant", "last", "all"]:
        """What the masker marks as trained."""
        return recipe.data.train_on

    def samples(self, sample: Sample) -> list[Sample]:
        """The conversations or texts of one row that are to be tokenised. Raises UnusableRow."""
        raise NotImplementedError

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        """The rows to train in place of one row of the data; `masks` are those of its `samples`, in their order.

        Raises UnusableRow where there are none.
        """
        raise NotImplementedError

    def parts(self, encoded: Encoded) -> list[Part]:
        """What the preview shows of a row, in order."""
        raise NotImplementedError

    def arranged(self, rows: Any, recipe: Recipe) -> Any:
        """The tokenised rows (datasets.Dataset) as the trainer takes them; with the same columns."""
        return rows

    def sequences(self, row: Mapping[str, Any]) -> list[Sequence[int]]:
        """The input_ids of each sequence in a tokenised row."""
        return [row[name] for name in self.columns if name.endswith(INPUTS)]

    def lengths(self, rows: Any) -> list[int]:
        """Tokens of each tokenised row (datasets.Dataset), all its sequences together."""
        counts = [[len(ids) for ids in rows[name]] for name in self.columns if name.endswith(INPUTS)]
        return [sum(row) for row in zip(*counts, strict=True)]

    def logits_bytes(self, vocabulary: int, batch_tokens: int) -> int | None:
        """What the loss of a pass holds at its peak where this method computes it; None where the model does."""
        return None

    def lengths_of(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokens of each of these tokenised rows, all its sequences together."""
        return [sum(len(ids) for ids in self.sequences(row)) for row in rows]

    def batch_tokens(self, lengths: Sequence[int], *, padding_free: bool) -> int:
        """Tokens of a pass over rows of these lengths, the longest first, with what pads them."""
        return sum(lengths) if padding_free else len(lengths) * lengths[0]

    def steps_an_epoch(self, recipe: Recipe, rows: int) -> int:
        """Optimizer steps over all rows once."""
        train = recipe.train
        passes = math.ceil(rows / train.per_device_train_batch_size)
        return math.ceil(passes / train.gradient_accumulation_steps)

    def steps_of_run(self, recipe: Recipe, rows: int) -> int:
        """Optimizer steps of the whole run over this many rows."""
        train = recipe.train
        if train.max_steps > 0:
            return train.max_steps
        return max(1, math.ceil(train.num_train_epochs * self.steps_an_epoch(recipe, rows)))

    def metrics_of(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """The method's own figures among what a trainer logs of a step, without those that are no finite number."""
        values = {metric.name: logs[metric.name] for metric in self.metrics if metric.name in logs}
        return {name: float(value) for name, value in values.items() if is_finite(value)}

    def advice(self, recipe: Recipe) -> "Advice":
        """What the audit looks at beside what it looks at in every dataset."""
        from tuitune.methods.advice import Advice

        return Advice()


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
