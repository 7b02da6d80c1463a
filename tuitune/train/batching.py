"""Rows into batches: side by side with padding, or end to end without any (padding-free)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tuitune.backends.loaded import LoadedModel

Row = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row, as lists or as numpy arrays."""
IGNORED = -100
ALIGNED = 64
_SHARES = 8
"""Of captured passes the trained tokens are filled up to eighths, so that each fits many others."""


@dataclass(frozen=True)
class Padded:
    """Each row on a line of its own, the short ones filled up: what every model and device can do.

    Gives `input_ids`, `attention_mask` and `labels` of shape (rows, longest), `longest` being a whole multiple of
    `multiple`: kernels are made for each length that comes.
    """

    pad_token_id: int
    multiple: int = 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        lengths = np.array([len(row["input_ids"]) for row in rows])
        longest = -(-lengths.max() // self.multiple) * self.multiple
        filled = np.arange(longest) < lengths[:, None]

        def lines(name: str, value: int) -> Any:
            line = np.full(filled.shape, value, dtype=np.int64)
            line[filled] = np.concatenate([row[name] for row in rows])
            return torch.from_numpy(line)

        return {
            "input_ids": lines("input_ids", self.pad_token_id),
            "attention_mask": torch.from_numpy(filled.astype(np.int64)),
            "labels": lines("labels", IGNORED),
        }


@dataclass(frozen=True)
class PaddingFree:
    """All rows on one line, each attending to itself alone: for a variable-length attention kernel.

    Gives `input_ids`, `labels` and `position_ids` (from 0 in each row) of shape (1, tokens), and
    `packed_seq_lengths` of shape (rows + 1,), by which Unsloth keeps the rows apart. The first label of a row is
    ignored: the token before it belongs to another row. Filling up to a multiple of ALIGNED tokens follows as a row
    of its own, since matrix products over an odd number of tokens take a slower kernel, and since Unsloth leaves the
    variable-length kernel for rows that are all of one length.

    With `sizes` (ascending) the filling goes up to the smallest of them that holds the rows, so that only a few sizes
    come. With `trained_places` the batch says in `trained_places` (1, places) which tokens' next tokens have a label.
    """

    pad_token_id: int
    sizes: tuple[int, ...] = ()
    trained_places: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        lengths = [len(row["input_ids"]) for row in rows]
        lengths.append(self._filling(sum(lengths)))
        starts = np.cumsum([0, *lengths[:-1]])
        filling = np.full(lengths[-1], self.pad_token_id)
        labels = np.concatenate([*(row["labels"] for row in rows), np.full(lengths[-1], IGNORED)])
        labels[starts] = IGNORED
        positions = np.arange(sum(lengths)) - np.repeat(starts, lengths)
        ids = np.concatenate([*(row["input_ids"] for row in rows), filling])
        batch = {
            "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
            "labels": torch.from_numpy(labels.astype(np.int64))[None],
            "position_ids": torch.from_numpy(positions)[None],
            "packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32),
        }
        if self.trained_places:
            batch["trained_places"] = torch.from_numpy(find_trained(labels, coarse=bool(self.sizes)))[None]
        return batch

    def _filling(self, tokens: int) -> int:
        """Tokens of the row that follows rows of so many `tokens`: at least one."""
        size = next((size for size in self.sizes if size > tokens), None)
        return size - tokens if size else ALIGNED - tokens % ALIGNED


def find_trained(labels: NDArray[np.int64], *, coarse: bool) -> NDArray[np.int64]:
    """The places in `labels` (tokens,) whose next token has a label, padded with other places to a round number.

    The number is a whole multiple of ALIGNED, or of an eighth of the tokens where it is `coarse`. No place comes
    twice, so that gradients can be written back without being added up.
    """
    predicts = labels[1:] != IGNORED
    places = np.flatnonzero(predicts)
    unit = -(-len(labels) // (_SHARES * ALIGNED)) * ALIGNED if coarse else ALIGNED
    size = min(len(predicts), -(-max(1, len(places)) // unit) * unit)
    return np.concatenate([places, np.flatnonzero(~predicts)[: size - len(places)]])


def pad_of(loaded: "LoadedModel") -> int:
    """The token that fills up rows: the tokenizer's own, or any, as nothing looks at it."""
    return loaded.tokenizer.pad_token_id or 0


def collator(loaded: "LoadedModel") -> Padded | PaddingFree:
    """What makes batches of rows for this model."""
    pad = pad_of(loaded)
    if loaded.padding_free:
        return PaddingFree(pad, loaded.pass_sizes, loaded.trained_head)
    return Padded(pad, ALIGNED if loaded.model.device.type == "cuda" else 1)
