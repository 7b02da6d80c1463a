"""Rows into batches: side by side with padding, or end to end without any (padding-free)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, list[int]]
IGNORED = -100
ALIGNED = 64


@dataclass(frozen=True)
class Padded:
    """Each row on a line of its own, the short ones filled up: what every model and device can do.

    Gives `input_ids`, `attention_mask` and `labels` of shape (rows, longest).
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> Any:
            return torch.tensor([list(row[name]) + [value] * (width - len(row[name])) for row in rows])

        return {
            "input_ids": filled("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(
                [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]
            ),
            "labels": filled("labels", IGNORED),
        }


@dataclass(frozen=True)
class PaddingFree:
    """All rows on one line, each attending to itself alone: for a variable-length attention kernel.

    Gives `input_ids`, `labels` and `position_ids` (from 0 in each row) of shape (1, tokens), and
    `packed_seq_lengths` of shape (rows,), by which Unsloth keeps the rows apart. The first label of a row is
    ignored: the token before it belongs to another row. Padding of less than ALIGNED tokens follows as a row of its
    own, since matrix products over an odd number of tokens take a kernel several times slower.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        filling = -sum(len(row["input_ids"]) for row in rows) % ALIGNED
        if filling:
            rows = [*rows, {"input_ids": [self.pad_token_id] * filling, "labels": [IGNORED] * filling}]
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "labels": torch.tensor([[label for row in rows for label in (IGNORED, *row["labels"][1:])]]),
            "position_ids": torch.tensor([[position for length in lengths for position in range(length)]]),
            "packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32),
        }
