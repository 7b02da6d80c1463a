"""The number format to compute in: what cards and processors can do without emulating it."""

from typing import Any

_AMPERE = 8
"""The compute capability from which on cards multiply bf16 in hardware, and flash attention runs."""


def is_ampere_or_later(compute_capability: tuple[int, int]) -> bool:
    return compute_capability[0] >= _AMPERE


def gpu_has_bf16() -> bool:
    """Whether there is a current CUDA device, and it computes in bf16.

    torch's `is_bf16_supported` counts emulation by default, which would put a T4 on a path ten times slower.
    """
    import torch

    return torch.cuda.is_available() and is_ampere_or_later(torch.cuda.get_device_capability())


def compute_dtype(*, load_in_4bit: bool) -> Any:
    """The torch dtype to compute in.

    On a GPU bf16 from Ampere on, and fp16 before it. On a CPU 4-bit weights are computed in bf16 where the
    processor has bf16 instructions, which is a third faster there (without them it is emulated, and slower);
    unquantised weights stay in fp32, so that what is merged and exported is exactly what was trained.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if gpu_has_bf16() else torch.float16
    return torch.bfloat16 if load_in_4bit and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
