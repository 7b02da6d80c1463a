"""What the weights of a model see in its training rows, by which the small types of GGUF are rounded.

For each column of a weight it is the mean square of what is multiplied by it, over the tokens of training rows. That is
what llama.cpp's llama-imatrix collects, and the file is as it writes it; the sums come from transformers, as
xllamacpp has no call for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuitune.errors import TuituneError
from tuitune.export.answers import ROWS, loaded
from tuitune.export.kinds import Cancelled
from tuitune.language import _
from tuitune.runs.folder import Run

TOKENS = 16_384
"""Tokens of training rows that are looked at."""
_LEAST_TOKENS = 512


def write_importance(
    merged: Path,
    run: Run,
    source: Path,
    matrix_file: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> str:
    """Write the importance matrix of the merged model in folder `merged`; returns what it is from, for the user.

    `source` is the model as a 16-bit GGUF, whose names it bears. Raises TuituneError; Cancelled.
    """
    rows = _training_rows(run, cancelled)
    tokens = sum(map(len, rows))
    if tokens < _LEAST_TOKENS:
        raise TuituneError(
            "The training rows have {tokens} tokens, too few for an importance matrix: export without --imatrix.",
            tokens=tokens,
        )
    with loaded(str(merged), None) as model:
        squares, columns = _squares(model, rows, progress, cancelled)
    entries = _named_as(source, squares, columns)
    if not entries:
        raise TuituneError(
            "No weight of this model is known by its name to llama.cpp's importance matrix: export without --imatrix."
        )
    _write(matrix_file, entries, tokens)
    return _(
        "Rounded by an importance matrix of {count} weights, from {tokens:,} tokens of training rows.",
        count=len(entries),
        tokens=tokens,
    )


def _training_rows(run: Run, cancelled: Callable[[], bool]) -> list[list[int]]:
    """Ids of rows that were trained, none of them among those that the proof scores."""
    from transformers import AutoTokenizer

    from tuitune.data.prepare import prepare

    tokenizer = AutoTokenizer.from_pretrained(run.adapter, trust_remote_code=False)
    prepared = prepare(run.resolved(), tokenizer, cancelled=cancelled)
    if "input_ids" not in prepared.train.column_names:
        raise TuituneError("An importance matrix is made of rows with one text each: export without --imatrix.")
    held_out = prepared.eval is not None and len(prepared.eval)
    rows: list[list[int]] = []
    left = TOKENS
    for number, row in enumerate(prepared.train):
        if left <= 0:
            break
        if held_out or number >= ROWS:
            rows.append(list(row["input_ids"])[:left])
            left -= len(rows[-1])
    return rows


def _squares(
    model: Any, rows: list[list[int]], progress: Callable[[int, int], None], cancelled: Callable[[], bool]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """For each linear layer by its name: the sums of its squared inputs over all tokens, and of its squared weights by
    column, both (inputs,)."""
    import torch

    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float().square().sum(0)
            sums[name] = sums[name] + seen if name in sums else seen

        return add

    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        for done, ids in enumerate(rows):
            if cancelled():
                raise Cancelled
            with torch.inference_mode():
                model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
            progress(done + 1, len(rows))
    finally:
        for handle in handles:
            handle.remove()
    with torch.inference_mode():
        columns = {name: layers[name].weight.float().square().sum(0).cpu().numpy() for name in sums}
    return {name: total.cpu().numpy() for name, total in sums.items()}, columns


def _named_as(
    source: Path, squares: dict[str, NDArray[np.float32]], columns: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The sums by the names of the GGUF's tensors; those whose columns llama.cpp's converter put in another order,
    or changed, are left out."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    from tuitune.export.quantise import chunks

    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    known = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(known, int(reader.fields[f"{architecture}.block_count"].contents()))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    entries = {}
    for name, sums in squares.items():
        text_name = name.replace("model.language_model.", "model.")
        stored = names.get_name(f"{text_name}.weight", try_suffixes=(".weight",)) or ""
        tensor = tensors.get(stored)
        if tensor is None or not stored.startswith("blk.") or len(tensor.shape) != 2:
            continue
        if int(tensor.shape[0]) != len(sums):
            continue
        stored_columns = np.sum([np.square(rows).sum(0) for rows in chunks(tensor)], axis=0)
        if np.allclose(stored_columns, columns[name], rtol=0.01):
            entries[stored] = sums
    return entries


def _write(matrix_file: Path, entries: dict[str, NDArray[np.float32]], tokens: int) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(matrix_file, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["training rows"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", tokens)
    for name, sums in sorted(entries.items()):
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
