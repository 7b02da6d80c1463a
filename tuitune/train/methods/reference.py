"""What the model said before it was trained, which DPO and KTO hold it to: asked once for each row, and kept."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError
from tuitune.paths import cache_folder, key_of
from tuitune.recipe import Recipe
from tuitune.train.batching import Row
from tuitune.train.methods.replies import CollateReplies, evaluating, reply_logps
from tuitune.train.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

_TIMES_THE_ROWS = 4
KEPT = 12
"""Files in the cache; the least recently used beyond them are deleted."""
Progress = Callable[[int, int], None]


def begins_as_base(recipe: Recipe) -> bool:
    """Whether the model begins as its base is, so that its reference is the model with its adapter switched off."""
    lora = recipe.lora
    return lora.init_adapter is None and lora.init_lora_weights is True and lora.bias == "none"


def reference_logps(
    loaded: LoadedModel,
    recipe: Recipe,
    rows: Sequence[Sequence[Row]],
    model_digest: str,
    progress: Progress,
    cancelled: Callable[[], bool],
    ranks: Ranks = ALONE,
) -> Tensor | None:
    """Log-probability of every sequence of every row by the model as it is, (rows, sequences) in fp32 on the CPU.

    Read from the cache where the same was asked of the same model before; else each of several `ranks` computes its
    share. None where `cancelled`, which all ask at the same time, turned true.
    """
    file = cache_folder("reference") / f"{_key(loaded, recipe, rows, model_digest)}.safetensors"
    known = _kept(file, len(rows))
    if not any(ranks.any(known is None)):
        progress(len(rows), len(rows))
        return known
    # Without gradients several times the rows of a training pass fit.
    collate, batch_rows = CollateReplies.of(loaded), recipe.train.per_device_train_batch_size
    batch_rows *= _TIMES_THE_ROWS if loaded.padding_free else 1
    # Rows of like lengths beside each other need little padding; the longest come first, where memory may run out.
    order = sorted(range(len(rows)), key=lambda place: -sum(len(row["input_ids"]) for row in rows[place]))
    device = loaded.model.device
    reference = torch.zeros((len(rows), len(rows[0]) if rows else 0), dtype=torch.float32, device=device)
    with evaluating(loaded.model), torch.no_grad():
        at = 0
        while at < len(order):
            if cancelled():
                return None
            places = order[at + ranks.rank * batch_rows :][:batch_rows]
            out_of_memory = None
            try:
                if places:
                    batch = collate([sequence for place in places for sequence in rows[place]])
                    reference[places] = reply_logps(loaded, batch).view(len(places), -1).float()
            except torch.OutOfMemoryError as error:
                out_of_memory = error.with_traceback(None)  # whose frames hold what the pass took
            if any(ranks.any(out_of_memory is not None)):
                if batch_rows == 1:
                    raise out_of_memory or torch.OutOfMemoryError("on another card")
                batch_rows //= 2
                torch.cuda.empty_cache()
                continue
            at = min(at + batch_rows * ranks.world, len(order))
            progress(at, len(rows))
    ranks.add_up(reference)
    reference = reference.cpu()
    if not reference.isfinite().all():
        raise TuituneError(
            "The model gives a reply of the data no probability (NaN or infinite) before it is trained: "
            "train in 16-bit (model.load_in_4bit: false), or choose another model."
        )
    if ranks.writes_here:
        _keep(file, reference)
    return reference


def _key(loaded: LoadedModel, recipe: Recipe, rows: Sequence[Sequence[Row]], model_digest: str) -> str:
    import hashlib

    import numpy as np

    digest = hashlib.blake2b(digest_size=16)
    for sequences in rows:
        for sequence in sequences:
            for name in ("input_ids", "labels"):
                digest.update(np.asarray(sequence[name], dtype=np.int32).tobytes())
            digest.update(b"|")
    init_adapter = recipe.lora.init_adapter
    return key_of(
        recipe.model.model_dump(mode="json"),
        model_digest,
        recipe.lora.model_dump(mode="json"),
        *([Path(init_adapter) / "adapter_model.safetensors"] if init_adapter else []),
        recipe.train.seed,
        loaded.backend.name,
        loaded.padding_free,
        str(loaded.model.device),
        torch.cuda.get_device_name() if loaded.model.device.type == "cuda" else "",
        torch.__version__,
        digest.hexdigest(),
    )


def _kept(file: Path, rows: int) -> Tensor | None:
    try:
        reference: Tensor = load_file(file)["logps"]
        if len(reference) == rows:
            file.touch()
            return reference
    except Exception:  # not there, or whatever a damaged file makes safetensors raise
        return None
    return None


def _keep(file: Path, reference: Tensor) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = file.with_suffix(".making")
        save_file({"logps": reference.contiguous()}, staged)
        staged.rename(file)
        files = sorted(file.parent.glob("*.safetensors"), key=lambda file: -file.stat().st_mtime)
        for old in files[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:  # without room it is asked again the next time
        log.warning("the reference's log-probabilities could not be kept: %s", error)
