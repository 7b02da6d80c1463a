"""Merge an adapter shard by shard: the base's weights pass through memory one after another.

Only for plain LoRA, with rows of new tokens or without, on weights that lie in the base's files under their modules'
own names; `plan` says whether.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError
from tuitune.export.kinds import Cancelled
from tuitune.language import _
from tuitune.model.config import auto_class
from tuitune.text import one_line

_SHARD_BYTES = 1_000_000_000
_ROWS = ".token_adapter.trainable_tokens_delta"
"""What peft's key of a layer's trained rows ends with."""
MEMORY_BYTES = 4 * _SHARD_BYTES + 2_500_000_000
"""What a merge takes at most beside the libraries: shards being made and written, and the largest weight in float32."""


@dataclass(frozen=True)
class Plan:
    """A base and an adapter that can be merged shard by shard.

    `sources` is the file of each weight, `targets` the adapter's module of each weight that it changes; `unread` names
    weights that transformers does not load, which are left out. `rows` has, of each weight with new rows, the adapter's
    key of these and which they are; such a weight has `vocabulary` rows then. `model` is the model without its weights.
    """

    sources: dict[str, Path]
    targets: dict[str, str]
    scaling: float
    unread: frozenset[str]
    rows: dict[str, tuple[str, list[int]]]
    vocabulary: int
    model: Any
    dtype: Any


def plan(config: Any, base: Path, adapter: Path | None) -> Plan | None:
    """How to merge the adapter in a folder into the base in another; None where it takes the whole model in memory.

    Without an adapter yet, whether one could be. `config` is the base's, as it is trained.
    """
    import re

    import torch
    from accelerate import init_empty_weights
    from safetensors import SafetensorError

    if getattr(config, "quantization_config", None) is not None:
        return None
    try:
        sources = _sources(base)
    except SafetensorError:  # loading the model says which file it is, and what to do
        return None
    dtype = torch.float16 if config.dtype == torch.float16 else torch.bfloat16
    with init_empty_weights():
        model = auto_class(config).from_config(config, trust_remote_code=False)
    if any(getattr(module, "_keep_in_fp32_modules", None) for module in model.modules()):
        return None
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    patterns = [
        pattern
        for module in model.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", ()) or ()
    ]
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    unread = frozenset(
        name for name in sources if name not in shapes and any(re.search(pattern, name) for pattern in patterns)
    )
    if shapes.keys() - tied != sources.keys() - unread - tied:
        return None  # transformers gives the weights other names than the files do
    targets: dict[str, str] = {}
    rows: dict[str, tuple[str, list[int]]] = {}
    scaling = 0.0
    if adapter is not None:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        scaling = _scaling(settings)
        rows = {
            f"{layer}.weight": (f"base_model.model.{layer}{_ROWS}", ids)
            for layer, ids in (settings.get("trainable_token_indices") or {}).items()
        }
        targets = _targets(adapter, shapes, {key for key, _ids in rows.values()}) if scaling else {}
        if not targets or (targets.keys() | rows.keys()) - sources.keys() or (rows and tied & sources.keys()):
            return None
    vocabulary = max([config.get_text_config().vocab_size, *(id_ + 1 for _key, ids in rows.values() for id_ in ids)])
    return Plan(sources, targets, scaling, unread, rows, vocabulary, model, dtype)


def _scaling(config: dict[str, Any]) -> float:
    """What B·A is multiplied by; 0 where the adapter is no plain LoRA of one rank."""
    unsupported = (
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "lora_bias",
        "arrow_config",
    )
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or any(map(config.get, unsupported)):
        return 0.0
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _targets(adapter: Path, shapes: dict[str, tuple[int, ...]], others: set[str]) -> dict[str, str]:
    """The adapter's module of each weight; none where it holds more than A and B for these shapes, and `others`."""
    from safetensors import safe_open

    targets: dict[str, str] = {}
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        modules = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
        if names != others | {f"{module}.lora_{side}.weight" for module in modules for side in "AB"}:
            return {}
        for module in modules:
            name = f"{module.removeprefix('base_model.model.')}.weight"
            shape = (
                file.get_slice(f"{module}.lora_B.weight").get_shape()[0],
                file.get_slice(f"{module}.lora_A.weight").get_shape()[1],
            )
            if shapes.get(name) != shape:
                return {}
            targets[name] = module
    return targets


def _sources(base: Path) -> dict[str, Path]:
    from safetensors import safe_open

    sources: dict[str, Path] = {}
    # Beside transformers' own `model*` files, some repositories hold the same weights in another layout.
    for path in sorted([*base.glob("model*.safetensors")] or base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            sources.update(dict.fromkeys(file.keys(), path))
    return sources


def merge(
    merging: Plan,
    adapter: Path,
    folder: Path,
    progress: Callable[[str, int | None, int | None], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write the merged weights into the new `folder` and prove them. Raises TuituneError, Cancelled.

    Each target weight becomes W + scaling · B·A, computed in float32 (Hu et al. 2021); others are copied in the 16-bit
    type. Every weight is read again from the disk and compared with what was computed.
    """
    from safetensors.torch import save_file

    folder.mkdir()
    names = sorted(merging.sources.keys() - merging.unread, key=lambda name: (str(merging.sources[name]), name))
    groups = _groups(merging, names)
    checksums: dict[str, int] = {}
    index: dict[str, str] = {}
    total_bytes = 0
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for number, group in enumerate(groups, 1):
            progress(_("Merging the adapter"), number - 1, len(groups))
            if cancelled():
                raise Cancelled
            file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
            shard = dict(_merged(merging, adapter, group))
            index.update(dict.fromkeys(shard, file))
            total_bytes += sum(weight.nbytes for weight in shard.values())
            if writing is not None:
                writing.result()

            def write(shard: dict[str, Any] = shard, file: str = file) -> None:
                checksums.update({name: _checksum(weight) for name, weight in shard.items()})
                save_file(shard, folder / file, metadata={"format": "pt"})

            writing = writer.submit(write)
            del shard
        if writing is not None:
            writing.result()
    if len(groups) > 1:
        text = json.dumps(
            {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(index.items()))}, indent=2
        )
        (folder / "model.safetensors.index.json").write_text(text + "\n")
    _prove(folder, index, checksums, progress, cancelled)


def _groups(merging: Plan, names: list[str]) -> list[list[str]]:
    """The weights, some of them at a time: what becomes one file."""
    from safetensors import safe_open

    groups: list[list[str]] = [[]]
    filled = 0
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(merging.sources.values())}
        for name in names:
            size = 2 * math.prod(files[merging.sources[name]].get_slice(name).get_shape())
            if filled and filled + size > _SHARD_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
    return groups


def _merged(merging: Plan, adapter: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Each weight after the merge, in 16 bits on the CPU. Raises TuituneError for one not finite or not changed."""
    import torch
    from safetensors import safe_open

    device = "cuda:0" if _room_on_gpu() else "cpu"
    with ExitStack() as stack, torch.inference_mode():
        lora = stack.enter_context(safe_open(adapter / "adapter_model.safetensors", framework="pt", device=device))
        files = {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in {merging.sources[name] for name in names}
        }
        for name in names:
            weight = files[merging.sources[name]].get_tensor(name)
            if weight.is_floating_point():
                weight = weight.to(merging.dtype)
            if name in merging.rows:
                key, ids = merging.rows[name]
                more = weight.new_zeros(merging.vocabulary - len(weight), *weight.shape[1:])
                weight = torch.cat([weight, more]).index_copy(0, torch.tensor(ids), lora.get_tensor(key).to(weight))
                if not bool(weight[ids].isfinite().all()):
                    raise TuituneError(
                        "The merged weight {name} holds NaN or infinity: nothing was exported.", name=one_line(name)
                    )
            module = merging.targets.get(name)
            if module is None:
                yield name, weight.clone()
                continue
            before = weight.to(device)
            a, b = (lora.get_tensor(f"{module}.lora_{side}.weight").float() for side in "AB")
            after = torch.addmm(before.float(), b, a, alpha=merging.scaling).to(merging.dtype)
            if not bool(after.isfinite().all()):
                raise TuituneError(
                    "The merged weight {name} holds NaN or infinity: nothing was exported.", name=one_line(name)
                )
            if bool(b.count_nonzero()) and torch.equal(before, after):
                raise TuituneError(
                    "The merge left {name} as it was, since the adapter's change is too small for 16-bit "
                    "weights: export the adapter instead, or train longer.",
                    name=one_line(name),
                )
            yield name, after.cpu()


def _prove(
    folder: Path,
    index: dict[str, str],
    checksums: dict[str, int],
    progress: Callable[[str, int | None, int | None], None],
    cancelled: Callable[[], bool],
) -> None:
    """Read every weight from the files again: as it was computed, and no others. Raises TuituneError."""
    from safetensors import safe_open

    files = sorted(set(index.values()))
    missing = set(index)
    with ThreadPoolExecutor(4) as pool:
        for number, name in enumerate(files):
            progress(_("Checking every weight"), number, len(files))
            if cancelled():
                raise Cancelled
            with safe_open(folder / name, framework="pt") as file:
                keys = list(file.keys())
                for key, checksum in zip(
                    keys, pool.map(lambda key: _checksum(file.get_tensor(key)), keys), strict=True
                ):
                    if checksum != checksums.get(key):
                        raise TuituneError(
                            "The merged weight {name} is not the same when it is opened again: nothing was exported.",
                            name=one_line(key),
                        )
                missing -= set(keys)
    if missing:
        raise TuituneError(
            "The merged weight {name} is missing from the files: nothing was exported.",
            name=one_line(sorted(missing)[0]),
        )


def _room_on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > MEMORY_BYTES)


def _checksum(tensor: Any) -> int:
    import torch

    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy())
