"""When torch.compile is used on a model, and how little is tuned before the first step."""

import sys
from collections.abc import Iterator
from typing import Any

# Unsloth runs these with kernels of its own, and only their loss is compiled, in seconds. Of every other architecture
# it compiles each part of a layer: one to several minutes at the first step, and again for each new shape.
_COMPILED_IN_SECONDS = {"llama", "mistral", "qwen2", "qwen3"}
# Shared memory of a multiprocessor from which on a kernel's middle configuration fits (A100, H100 and newer).
_AMPLE_SHARED_BYTES = 160 * 1024


def compiles_in_seconds(config: Any) -> bool:
    """Whether compiling the transformers model of `config` before its first step takes seconds, not minutes."""
    return getattr(config, "model_type", None) in _COMPILED_IN_SECONDS


def set_compiling(on: bool) -> None:
    """Have functions that were given to torch.compile run compiled, or as they were written.

    Unsloth would set it back whenever it, or its trainer, switches a model between training and inference.
    """
    import torch
    from unsloth.models import vision

    if hasattr(vision, "torch_compiler_set_stance"):
        vision.torch_compiler_set_stance = None
    torch.compiler.set_stance("default" if on else "force_eager")


def tune_less() -> None:
    """Give each kernel of flash-linear-attention one configuration in place of the 3 to 48 it would try first.

    Trying them compiles each: over two minutes before the first step of Qwen 3.5, for kernels that take a tenth of it.
    A card with little shared memory keeps a second, smaller one. Call it after Unsloth is imported; again is harmless.
    """
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    config_count = 1 if properties.shared_memory_per_multiprocessor >= _AMPLE_SHARED_BYTES else 2
    for tuner in _tuners():
        if len(tuner.configs) > config_count:
            by_size = sorted(tuner.configs, key=lambda config: (config.num_warps, config.num_stages, _block(config)))
            tuner.configs = [by_size[len(by_size) // 2], by_size[0]][:config_count]


def _tuners() -> Iterator[Any]:
    """Every Triton autotuner that a module of flash-linear-attention holds, also behind its heuristics."""
    from triton.runtime.autotuner import Autotuner

    for name, module in list(sys.modules.items()):
        if module is None or not (name == "fla" or name.startswith("fla.") or "._vendored.fla" in name):
            continue
        for value in list(vars(module).values()):
            kernel = value
            while hasattr(kernel, "fn") and hasattr(kernel, "arg_names"):
                if isinstance(kernel, Autotuner):
                    yield kernel
                kernel = kernel.fn


def _block(config: Any) -> int:
    """Elements of a configuration's block: the product of its sizes."""
    size = 1
    for value in config.kwargs.values():
        size *= value if isinstance(value, int) else 1
    return size
