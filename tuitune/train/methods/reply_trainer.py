"""The trainer of methods that weigh whole replies: one loss a step, whatever passes the step is divided into.

Importing this module imports transformers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tuitune.backends.loaded import LoadedModel
from tuitune.train.methods.replies import evaluating

_PASSES_AHEAD = 4


@dataclass
class Totals:
    """What a step's losses are divided by, and what holds for all of its passes."""

    rows: int
    tokens: int
    """Of the replies that are imitated."""
    kl: Tensor | None = None
    """How far the model has drifted from its reference, where the method asks."""


@dataclass
class Outcome:
    """The result of a pass: its part of the step's loss, with gradients, and sums of figures with their counts."""

    loss: Tensor
    sums: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    """Name of a figure to the sum of its values, without gradients, and how many those are."""


class PassLoss(Protocol):
    """What a method's learner computes for the trainer."""

    def totals(self, loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> Totals:
        """What holds for all the passes of a step, or of an evaluation."""
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
    hidden states alone: no pass holds the logits of every token.
    """

    def __init__(self, loaded: LoadedModel, method: PassLoss, collate: Callable[..., Any], **options: Any) -> None:
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
        self._totals = Totals(1, 1)
        self._figures: dict[str, tuple[Tensor, int]] = {}
        self._ahead: deque[Any] = deque()
        """Batches that the reference was asked of already, in the order of training."""
        self._iterator: Any = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], int | None]:
        """The passes of the next step and its number of rows."""
        if epoch_iterator is not self._iterator:
            self._iterator, self._ahead = epoch_iterator, deque()
        if len(self._ahead) < num_batches:
            self._ahead.extend(self._look_ahead(epoch_iterator, num_batches - len(self._ahead)))
        batches = [self._ahead.popleft() for _ in range(min(num_batches, len(self._ahead)))]
        if batches:
            self._totals = self._method.totals(self._loaded, batches)
        return batches, self._totals.rows if batches else None

    def _look_ahead(self, epoch_iterator: Iterator[Any], least: int) -> list[Any]:
        """The next batches, `least` of them, or more where the reference can be asked of several in one pass.

        Small passes take the time of launching them: without gradients, several times the tokens fit where one does.
        """
        batches: list[Any] = []
        while (batch := next(epoch_iterator, None)) is not None:
            batches.append(batch)
            enough = len(batches) >= least
            if enough and ("packed_seq_lengths" not in batch or len(batches) >= _PASSES_AHEAD):
                break
        self._method.ask_reference(self._loaded, batches)
        return batches

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        outcome = self._method.outcome(self._loaded, inputs, self._totals)
        _add(self._figures, outcome.sums)
        return (outcome.loss, {}) if return_outputs else outcome.loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs:
            logs = {**logs, **_means(self._figures)}
            self._figures = {}
        super().log(logs, *arguments, **options)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Loss and figures over all held-out rows, each row counting once."""
        batches = [self._prepare_inputs(batch) for batch in self.get_eval_dataloader()]
        self._method.ask_reference(self._loaded, batches)
        figures: dict[str, tuple[Tensor, int]] = {}
        loss = 0.0
        with evaluating(self.model), torch.no_grad(), self.compute_loss_context_manager():
            totals = self._method.totals(self._loaded, batches)
            for batch in batches:
                outcome = self._method.outcome(self._loaded, batch, totals)
                loss += float(outcome.loss)
                _add(figures, outcome.sums)
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return {"eval_loss": loss, **{f"eval_{name}": value for name, value in _means(figures).items()}}


def _add(figures: dict[str, tuple[Tensor, int]], sums: dict[str, tuple[Tensor, int]]) -> None:
    for name, (value, count) in sums.items():
        before = figures.get(name)
        figures[name] = (value, count) if before is None else (before[0] + value, before[1] + count)


def _means(figures: dict[str, tuple[Tensor, int]]) -> dict[str, float]:
    return {name: float(total) / count for name, (total, count) in figures.items() if count}
