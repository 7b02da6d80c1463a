"""Write a 16-bit GGUF file again in another type, by the kernels of llama.cpp that xllamacpp carries.

A program of its own, started by `tuitune.export.gguf` as a child process:
`python quantise.py KERNELS SOURCE OUTFILE KIND [IMATRIX]`. KERNELS is xllamacpp's library, IMATRIX says which weights
of a row matter most. Which tensor gets which type follows llama-quantize (llama.cpp, src/llama-quant.cpp), so that a
kind means the same in both. It ends when its stdin does. Prints `Quantising: NN%`. One tensor is held in memory at a
time.
"""

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

DEFAULT_TYPES: dict[str, Type] = {
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
    "q6_k": Type.Q6_K,
    "q5_k_m": Type.Q5_K,
    "q5_k_s": Type.Q5_K,
    "q5_1": Type.Q5_1,
    "q5_0": Type.Q5_0,
    "q4_k_m": Type.Q4_K,
    "q4_k_s": Type.Q4_K,
    "q4_1": Type.Q4_1,
    "q4_0": Type.Q4_0,
    "q3_k_l": Type.Q3_K,
    "q3_k_m": Type.Q3_K,
    "q3_k_s": Type.Q3_K,
}
"""Of each kind that can be made here, the type of a tensor that no rule is for."""

_FALLBACKS = {Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""For rows that are not a multiple of 256 weights long."""

# Small, sensitive, or not used as a matrix.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b|position_embd|token_types"
    r"|patch_embd|indexer\.[kq]_proj"
)
_LIKE_V = re.compile(r"attn_(qkv|kv_b|v)\.weight")
_CHUNK_WEIGHTS = 1 << 22


@dataclass
class Mixture:
    """Chooses the type of each tensor of one model, asked in the file's order.

    `layers` counts the model's blocks, `values` its tensors of attention values, `weighed` says that weights are
    rounded by their importance.
    """

    kind: str
    architecture: str
    layers: int
    values: int
    experts: int
    tied: bool
    weighed: bool = False
    seen_values: int = 0
    seen_down: int = 0

    def type_of(self, name: str, row_weights: int, dimensions: int, stored: Type) -> Type:
        """The type for the tensor `name` with rows of `row_weights` weights, stored as `stored` now."""
        default = DEFAULT_TYPES[self.kind]
        if dimensions < 2 or not name.endswith("weight") or _KEPT.search(name):
            return stored
        if default in (Type.F16, Type.BF16):
            return default if stored in (Type.F16, Type.BF16) else stored
        chosen = self._chosen(name, row_weights, default)
        block = GGML_QUANT_SIZES[chosen][0]
        if row_weights % block:
            chosen = _FALLBACKS.get(chosen, chosen)
            if row_weights % GGML_QUANT_SIZES[chosen][0]:
                return Type.F16
        return chosen

    def _chosen(self, name: str, row_weights: int, default: Type) -> Type:
        kind, falcon = self.kind, self.architecture == "falcon"
        if name == "output.weight" or (self.tied and name in ("token_embd.weight", "per_layer_token_embd.weight")):
            if falcon or row_weights % GGML_QUANT_SIZES[default][0]:
                return Type.Q8_0
            return default if default == Type.Q8_0 else Type.Q6_K
        if name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return default
        if _LIKE_V.search(name):
            place, self.seen_values = self.seen_values, self.seen_values + 1
            chosen = self._for_values(kind, place, default)
            if self.layers == 80 and self.architecture == "llama" and chosen in (Type.Q3_K, Type.Q4_K):
                chosen = Type.Q5_K
            return Type.Q8_0 if self.experts == 8 else chosen
        if "attn_k.weight" in name:
            return Type.Q8_0 if self.experts == 8 else default
        if "ffn_down" in name:
            place, self.seen_down = self.seen_down, self.seen_down + 1
            if self.experts > 1:
                place = int(name.split(".")[1])
            return self._for_down(kind, place, default, falcon)
        if "attn_output.weight" in name:
            return self._for_attention_output(kind, default, falcon)
        return default

    def _for_values(self, kind: str, place: int, default: Type) -> Type:
        if kind == "q3_k_m":
            return Type.Q5_K if place < 2 else Type.Q4_K
        if kind == "q3_k_l" or (kind == "q4_k_s" and place < 4):
            return Type.Q5_K
        if kind in ("q4_k_m", "q5_k_m") and _gets_more(place, self.values):
            return Type.Q6_K
        return default

    def _for_down(self, kind: str, place: int, default: Type, falcon: bool) -> Type:
        layers, first = self.layers, place < self.layers // 8
        if kind == "q3_k_m":
            if place < layers // 16:
                return Type.Q5_K
            return Type.Q4_K if not falcon or _gets_more(place, layers) else Type.Q3_K
        if kind == "q3_k_l":
            return Type.Q4_K if falcon else Type.Q5_K
        if kind == "q4_k_m" and falcon:
            return Type.Q6_K if place < layers // 16 else Type.Q5_K if _gets_more(place, layers) else Type.Q4_K
        if kind in ("q4_k_m", "q5_k_m") and _gets_more(place, layers):
            return Type.Q6_K
        if kind == "q4_k_s" and first and not falcon:
            return Type.Q5_K
        if kind in ("q4_0", "q5_0") and self.weighed and first:
            return Type.Q4_1 if kind == "q4_0" else Type.Q5_1
        return default

    def _for_attention_output(self, kind: str, default: Type, falcon: bool) -> Type:
        if falcon:
            return Type.Q4_K if kind == "q3_k_l" else default
        if self.experts == 8:
            return Type.Q5_K if kind in ("q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m") else default
        return {"q3_k_m": Type.Q4_K, "q3_k_l": Type.Q5_K}.get(kind, default)


def _gets_more(place: int, count: int) -> bool:
    """The first and last eighth of the layers, and every third between them, are stored more exactly."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


class Kernels:
    """`ggml_quantize_chunk` of a library that has llama.cpp inside."""

    def __init__(self, library: str) -> None:
        self._quantise = ctypes.CDLL(library).ggml_quantize_chunk
        self._quantise.restype = ctypes.c_size_t
        self._quantise.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        ]

    def quantise(
        self, type_: Type, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """`rows` (rows, weights) as the bytes of `type_` (rows, bytes); `importance` (weights,) says which weights of a
        row matter most."""
        count, weights = rows.shape
        block, block_bytes = GGML_QUANT_SIZES[type_]
        encoded = np.empty((count, weights // block * block_bytes), dtype=np.uint8)
        weighed = None if importance is None else importance.ctypes.data
        written = self._quantise(type_.value, rows.ctypes.data, encoded.ctypes.data, 0, count, weights, weighed)
        if written != encoded.nbytes:
            raise ValueError(f"{type_.name} gave {written} bytes, not {encoded.nbytes}")
        return encoded


def quantise(library: str, source: str, outfile: str, kind: str, imatrix: str = "") -> None:
    """Write the GGUF file `source`, of 16 and 32-bit tensors, as `outfile` of the given kind. Raises ValueError."""
    kernels, reader = Kernels(library), GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(outfile, architecture)
    _copy_fields(reader, writer, kind)
    importances = _importances(imatrix) if imatrix else {}
    if importances:
        writer.add_string("quantize.imatrix.dataset", "training rows")
        writer.add_uint32("quantize.imatrix.entries_count", len(importances))
    # llama-quantize takes tensors by layer and name.
    tensors = sorted(reader.tensors, key=lambda tensor: (_layer(tensor.name), tensor.name))
    mixture = _mixture(reader, kind, architecture, weighed=bool(importances))
    types: dict[str, Type] = {}
    for tensor in tensors:
        type_ = mixture.type_of(tensor.name, int(tensor.shape[0]), len(tensor.shape), tensor.tensor_type)
        if tensor.tensor_type not in (Type.F32, Type.F16, Type.BF16):
            raise ValueError(f"{tensor.name} is stored as {tensor.tensor_type.name}, not in 16 bits")
        types[tensor.name] = type_
    for tensor in tensors:
        block, block_bytes = GGML_QUANT_SIZES[types[tensor.name]]
        rows = [int(length) for length in tensor.shape[::-1]]
        shape = [*rows[:-1], rows[-1] // block * block_bytes]
        nbytes = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), nbytes, raw_dtype=types[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(int(tensor.n_elements) for tensor in tensors), 0
    with ThreadPoolExecutor(_cores()) as pool:
        for tensor in tensors:
            type_ = types[tensor.name]
            if type_ == tensor.tensor_type:
                data = np.ascontiguousarray(tensor.data).view(np.uint8)
            else:
                importance = importances.get(tensor.name)
                parts = pool.map(
                    lambda rows, type_=type_, weighed=importance: kernels.quantise(type_, rows, weighed), chunks(tensor)
                )
                data = np.concatenate([*parts])
            writer.write_tensor_data(data.reshape(-1))
            done += int(tensor.n_elements)
            sys.stdout.write(f"Quantising: {100 * done // total:3d}%\n")
            sys.stdout.flush()
    writer.close()


def chunks(tensor: Any) -> Iterator[NDArray[np.float32]]:
    """The tensor's rows in float32, some millions of weights at a time."""
    weights = int(tensor.shape[0])
    raw = np.ascontiguousarray(tensor.data)
    if tensor.tensor_type == Type.BF16:
        raw = raw.view(np.uint16)
    rows = raw.reshape(-1, weights)
    step = max(1, _CHUNK_WEIGHTS // weights)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if tensor.tensor_type == Type.BF16:
            yield (part.astype(np.uint32) << 16).view(np.float32)
        else:
            yield part.astype(np.float32)


def _importances(path: str) -> dict[str, NDArray[np.float32]]:
    """For each tensor of an importance matrix the mean square of what its columns see, (columns,)."""
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32).reshape(-1) for tensor in GGUFReader(path).tensors}
    sums = {name.removesuffix(".in_sum2"): data for name, data in tensors.items() if name.endswith(".in_sum2")}
    return {name: np.ascontiguousarray(data / tensors[f"{name}.counts"][0]) for name, data in sums.items()}


def _mixture(reader: GGUFReader, kind: str, architecture: str, *, weighed: bool) -> Mixture:
    names = [tensor.name for tensor in reader.tensors]
    experts = reader.fields.get(f"{architecture}.expert_count")
    return Mixture(
        kind,
        architecture,
        layers=int(reader.fields[f"{architecture}.block_count"].contents()),
        values=sum(bool(_LIKE_V.search(name)) for name in names),
        experts=int(experts.contents()) if experts else 0,
        tied="output.weight" not in names,
        weighed=weighed,
    )


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, kind: str) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value_type = field.types[0]
        element_type = field.types[-1] if value_type == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), value_type, sub_type=element_type)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    if "general.quantization_version" not in reader.fields:
        writer.add_quantization_version(2)


def _layer(name: str) -> int:
    block = re.match(r"blk\.(\d+)\.", name)
    return int(block[1]) if block else -1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    quantise(*sys.argv[1:])
