"""4-bit weights whose 16-bit values are kept from pass to pass, where memory has room for both.

Every pass computes these values twice, once on its way forward and once on its way back, and throws them away.
"""

import functools
from typing import Any

_BYTES = 2
_kept: dict[int, tuple[Any, Any]] = {}
"""A weight's quantisation state, by its id, and the weight's values (out, in)."""
_keeping = False


def kept_bytes(model: Any) -> int:
    """What keeping the values of all of the model's 4-bit weights takes; 0 where it has none."""
    states = (getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules())
    return sum(_BYTES * state.shape.numel() for state in states if state is not None)


def keep_dequantized(on: bool) -> None:
    """Have Unsloth's layers keep what they dequantise from now on, or forget it. The values are the same ones."""
    global _keeping  # noqa: PLW0603  (Unsloth's function is one for all models)
    import torch
    from unsloth.kernels import fast_lora, utils

    for module in (utils, fast_lora):
        dequantize = module.fast_dequantize
        if not hasattr(dequantize, "of_unsloth"):
            module.fast_dequantize = _keeping_of(dequantize)
    _keeping = on
    if not on and _kept:
        torch.cuda.synchronize()  # a pass that reads them may still run
        _kept.clear()


def _keeping_of(dequantize: Any) -> Any:
    """Unsloth's `fast_dequantize`, which gives a weight's values (out, in), or (in, out) for one that is transposed."""
    import torch

    @functools.wraps(dequantize)
    def kept(weight: Any, quant_state: Any = None, out: Any = None, use_global_buffer: bool = False) -> Any:
        if not _keeping or out is not None or not hasattr(quant_state, "absmax"):
            return dequantize(weight, quant_state, out, use_global_buffer)
        transposed = weight.shape[0] == 1
        entry = _kept.get(id(quant_state))
        if entry is None:
            if torch.cuda.is_current_stream_capturing():  # what a capture makes has no values before its replay
                return dequantize(weight, quant_state, out, use_global_buffer)
            values = dequantize(weight, quant_state)
            entry = _kept[id(quant_state)] = quant_state, values.t() if transposed else values
        return entry[1].t() if transposed else entry[1]

    kept.of_unsloth = dequantize  # type: ignore[attr-defined]
    return kept
