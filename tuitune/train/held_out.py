"""The loss over the held-out rows: each trained token counted once, whatever the batches and however many cards."""

from collections.abc import Callable
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.train.batching import IGNORED
from tuitune.train.isolation import loss_of
from tuitune.train.ranks import Ranks


def held_out_loss(
    loaded: LoadedModel,
    rows: Any,
    collate: Callable[[list[Any]], dict[str, Any]],
    batch_rows: int,
    ranks: Ranks,
    before_pass: Callable[[], None],
) -> float:
    """Mean loss over all trained tokens of `rows`, in passes of `batch_rows`, shared by all processes.

    The model is left in eval mode. `before_pass` is called before each pass, and leaves by what it raises. Raises
    torch.OutOfMemoryError on all processes where memory runs out on one; on that one alone where they share the
    model's weights.
    """
    import torch

    by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    passes = [by_length[start : start + batch_rows] for start in range(0, len(by_length), batch_rows)]
    loss_sum = tokens = 0.0
    loaded.model.eval()
    for first in range(0, len(passes), ranks.world):  # as many for all, as all must agree to go on
        before_pass()
        out_of_memory = None
        is_own = first + ranks.rank < len(passes)
        if is_own or loaded.shards is not None:  # the others' passes need what this process holds of the weights
            own_pass = passes[first + ranks.rank] if is_own else passes[-1][-1:]
            batch = collate([rows[row] for row in own_pass])
            trained = int((batch["labels"][..., 1:] != IGNORED).sum()) if is_own else 0
            try:
                with torch.no_grad():
                    loss_sum += float(loss_of(loaded, batch, max(1, trained))) * trained
            except torch.OutOfMemoryError as error:
                if loaded.shards is not None:  # the others wait in this pass, and can agree on nothing
                    raise
                out_of_memory = error.with_traceback(None)  # whose frames hold what the pass took
            tokens += trained
        if any(ranks.any(out_of_memory is not None)):
            raise out_of_memory or torch.OutOfMemoryError("on another card")
    loss_sum, tokens = ranks.totals(loss_sum, tokens)
    return loss_sum / tokens if tokens else 0.0
