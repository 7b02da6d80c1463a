"""Replies as sequences in a batch, and the log-probability of each by the model and by its reference."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuitune.backends.loaded import LoadedModel
from tuitune.train.batching import ALIGNED, IGNORED, Padded, PaddingFree, Row, pad_of
from tuitune.train.logprobs import label_logprobs

_OWN = ("label_counts", "reference", "desirable", "kl")
"""What stands in a batch for the loss alone, and no model takes."""


@dataclass(frozen=True)
class CollateReplies:
    """Sequences (each with `input_ids` and `labels`) as one batch, padded or end to end.

    Beside what the model takes it holds `label_counts` (sequences,) int64, how many labels each one has: a label
    without a token before it is none. Raises ValueError for a sequence without any.
    """

    collate: Padded | PaddingFree
    takes_lengths: bool
    """Whether the model takes `packed_seq_lengths`; another one tells rows apart by their positions."""

    @classmethod
    def of(cls, loaded: LoadedModel) -> "CollateReplies":
        """What makes batches of sequences for this model."""
        pad = pad_of(loaded)
        if loaded.padding_free:
            return cls(PaddingFree(pad, loaded.pass_sizes, loaded.trained_head), loaded.backend.name == "unsloth")
        return cls(Padded(pad, ALIGNED if loaded.model.device.type == "cuda" else 1), True)

    def sequences(self, sequences: Sequence[Row]) -> dict[str, Any]:
        """What the model takes, with `labels`; some of the sequences may have none."""
        batch = self.collate(sequences)
        if not self.takes_lengths:
            batch.pop("packed_seq_lengths", None)
        return batch

    def __call__(self, sequences: Sequence[Row]) -> dict[str, Any]:
        batch = self.sequences(sequences)
        counts = [sum(label != IGNORED for label in row["labels"][1:]) for row in sequences]
        if not all(counts):
            raise ValueError("a reply has no token that is counted")
        return {**batch, "label_counts": torch.tensor(counts)}


def reply_logps(loaded: LoadedModel, batch: dict[str, Any]) -> Tensor:
    """Log-probability of each sequence's labels, (sequences,) in fp32, with gradients where they are on."""
    inputs = {name: value for name, value in batch.items() if name not in _OWN}
    logprobs, _ = label_logprobs(loaded, inputs)
    counts = batch["label_counts"].to(logprobs.device)
    sums: Tensor = torch.segment_reduce(logprobs, "sum", lengths=counts, unsafe=True)
    return sums


def base_logps(loaded: LoadedModel, batch: dict[str, Any]) -> Tensor:
    """`reply_logps` of the model without its adapter, without gradients."""
    with torch.no_grad(), loaded.model.disable_adapter():
        return reply_logps(loaded, batch)


def ask_base(loaded: LoadedModel, batches: Sequence[dict[str, Any]]) -> None:
    """Write `reference` into the batches that have none, by the model without its adapter.

    Batches that are laid end to end are asked in one pass: each ends with a filling of its own.
    """
    lacking = [batch for batch in batches if "reference" not in batch]
    if len(lacking) > 1 and all("packed_seq_lengths" in batch for batch in lacking):
        names = ("input_ids", "labels", "position_ids")
        merged = {name: torch.cat([batch[name] for batch in lacking], dim=1) for name in names}
        for name in ("packed_seq_lengths", "label_counts"):
            merged[name] = torch.cat([batch[name] for batch in lacking])
        sizes = [len(batch["label_counts"]) for batch in lacking]
        for batch, logps in zip(lacking, base_logps(loaded, merged).split(sizes), strict=True):
            batch["reference"] = logps
    else:
        for batch in lacking:
            batch["reference"] = base_logps(loaded, batch)


@contextlib.contextmanager
def evaluating(model: Any) -> Any:
    """The model in eval mode; its mode before comes back at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def labels_loss(loaded: LoadedModel, batch: dict[str, Any], trained: int) -> Tensor:
    """The sum of a batch's losses over its labels, divided by `trained`, from the same log-probabilities."""
    logprobs, _ = label_logprobs(loaded, batch)
    return -logprobs.sum() / trained
