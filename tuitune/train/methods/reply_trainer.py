"""The trainer of methods that weigh whole replies: one loss a step, whatever passes the step is divided into.

Importing this module imports transformers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tuitune.backends.loaded import LoadedModel
from tuitune.train.graphs import Figures
from tuitune.train.methods.replies import evaluating
from tuitune.train.ranks import Ranks

_PASSES_AHEAD = 4
Result = TypeVar("Result")


@dataclass
class Totals:
    """What a step's losses are divided by, and what holds for all of its passes."""

    rows: int | Tensor
    tokens: int | Tensor
    """Of the replies that are imitated."""
    drift: Tensor | float = 0.0
    """By how much the model has drifted from its reference, a sum over the rows, where the method asks."""

    @property
    def kl(self) -> Tensor:
        """The drift of a row on average (), never below 0."""
        return (torch.as_tensor(self.drift) / self.rows).clamp(min=0)

    def over(self, ranks: Ranks) -> "Totals":
        """Those of the passes of all processes."""
        if ranks.world == 1:
            return self
        rows, tokens, drift = ranks.totals(float(self.rows), float(self.tokens), float(self.drift))
        return Totals(int(rows), int(tokens), drift)


@dataclass
class Outcome:
    """The result of a pass: its part of the step's loss, with gradients, and sums of figures with their counts."""

    loss: Tensor
    sums: Figures = field(default_factory=dict)
    """Name of a figure to the sum of its values, without gradients, and how many those are."""


class PassLoss(Protocol):
    """What a method's learner computes for the trainer."""

    def totals(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> Totals:
        """What holds for all these passes of a step, or of an evaluation."""
        ...

    def ask_reference(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> None:
        """Write into each batch what the reference says of its replies, where the method has one."""
        ...

    def outcome(self, loaded: LoadedModel, batch: dict[str, Any], totals: Totals) -> Outcome:
        """Part of the loss that this pass brings, and its figures."""
        ...


class ReplyTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """transformers' Trainer with the loss of a `PassLoss`.

    A step's loss is a mean over its rows, so passes of any size train the same. The model's own forward is asked for
    hidden states alone: no pass holds the logits of every token. Of several `ranks` each has its passes of a step, of
    which some may be without rows (`Learner.nothing`); the mean is over the rows of all.
    """

    def __init__(
        self, loaded: LoadedModel, method: PassLoss, collate: Callable[..., Any], ranks: Ranks, **options: Any
    ) -> None:
        arguments = options.pop("arguments")
        super().__init__(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            data_collator=collate,
            args=TrainingArguments(
                **{
                    **arguments,
                    "gradient_checkpointing": False,  # the backend has set it on the model itself
                    "train_sampling_strategy": "random",
                    "remove_unused_columns": False,
                    "label_names": [],
                }
            ),
            **options,
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the step's rows here, not by its passes
        self._loaded = loaded
        self._method = method
        self._ranks = ranks
        self.totals = Totals(1, 1)
        """Those of the newest step whose batches were made."""
        self.asks_ahead = True
        """Whether the reference is asked as batches are made, not in their passes."""
        self._figures: Figures = {}
        self._ahead: deque[Any] = deque()
        """Batches that the reference was asked of already, in the order of training."""
        self._iterator: Any = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], int | None]:
        """The passes of the next step and their number of rows."""
        if epoch_iterator is not self._iterator:
            self._iterator, self._ahead = epoch_iterator, deque()
        if len(self._ahead) < num_batches:
            self._ahead.extend(self._look_ahead(epoch_iterator, num_batches - len(self._ahead)))
        batches = [self._ahead.popleft() for _ in range(min(num_batches, len(self._ahead)))]
        if not batches:
            return batches, None
        own = self._method.totals(self._loaded, _with_rows(batches))
        self.totals = own.over(self._ranks)
        return batches, int(own.rows)

    def _look_ahead(self, epoch_iterator: Iterator[Any], least: int) -> list[Any]:
        """The next batches, `least` of them, or more where the reference can be asked of several in one pass.

        Small passes take the time of launching them: without gradients, several times the tokens fit where one does.
        """
        batches: list[Any] = []
        while (batch := next(epoch_iterator, None)) is not None:
            batches.append(batch)
            enough = len(batches) >= least
            one_by_one = not self.asks_ahead or "packed_seq_lengths" not in batch
            if enough and (one_by_one or len(batches) >= _PASSES_AHEAD):
                break
        if self.asks_ahead:
            self._method.ask_reference(self._loaded, _with_rows(batches))
        return batches

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        if not _with_rows([inputs]):
            loss = next(parameter for parameter in model.parameters() if parameter.requires_grad).sum() * 0
            return (loss, {}) if return_outputs else loss
        outcome = self._method.outcome(self._loaded, inputs, self.totals)
        self.add_figures(outcome.sums)
        return (outcome.loss, {}) if return_outputs else outcome.loss

    def add_figures(self, figures: Figures) -> None:
        """Count the figures of a pass into those that are logged next."""
        _add(self._figures, figures)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs:
            logs = {**logs, **self._means(self._figures)}
            self._figures = {}
        super().log(logs, *arguments, **options)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Loss and figures over all held-out rows, each row counting once."""
        ranks, batches, passes = self._ranks, [], 0
        for number, batch in enumerate(self.get_eval_dataloader()):
            if number % ranks.world == ranks.rank:
                batches.append(self._prepare_inputs(batch))
            passes = number // ranks.world + 1
        figures: Figures = {}
        loss = 0.0
        self._all_or_none(lambda: self._method.ask_reference(self._loaded, batches))
        with evaluating(self.model), torch.no_grad(), self.compute_loss_context_manager():
            totals = self._all_or_none(lambda: self._method.totals(self._loaded, batches)).over(ranks)
            for place in range(passes):  # as many for all, as all must agree to go on
                own = batches[place : place + 1]
                for outcome in self._all_or_none(partial(self._outcomes, own, totals)):
                    loss += float(outcome.loss)
                    _add(figures, outcome.sums)
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        (loss,) = ranks.totals(loss)
        return {"eval_loss": loss, **{f"eval_{name}": value for name, value in self._means(figures).items()}}

    def _outcomes(self, batches: Sequence[dict[str, Any]], totals: Totals) -> list[Outcome]:
        return [self._method.outcome(self._loaded, batch, totals) for batch in batches]

    def _all_or_none(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. Raises torch.OutOfMemoryError on all processes where memory runs out on one."""
        out_of_memory = None
        try:
            result = work()
        except torch.OutOfMemoryError as error:
            out_of_memory = error.with_traceback(None)  # whose frames hold what the pass took
        if any(self._ranks.any(out_of_memory is not None)):
            raise out_of_memory or torch.OutOfMemoryError("on another card")
        return result

    def _means(self, figures: Figures) -> dict[str, float]:
        """The mean of each figure over all processes; the first one, which never lacks rows, knows their names."""
        sums = self._ranks.totals_by_name({name: float(value) for name, (value, _count) in figures.items()})
        counts = self._ranks.totals_by_name({name: float(count) for name, (_value, count) in figures.items()})
        return {name: value / counts[name] for name, value in sums.items() if counts[name]}


def _with_rows(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the passes in which this process has no rows."""
    return [batch for batch in batches if len(batch["label_counts"])]


def _add(figures: Figures, sums: Figures) -> None:
    for name, (value, count) in sums.items():
        before = figures.get(name)
        figures[name] = (value, count) if before is None else (before[0] + value, before[1] + count)
