"""What makes importing the libraries quicker: kept bytecode, one trainer rewritten, the compiler only when called."""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_PROBED = ("torch", "transformers", "unsloth")


def keep_bytecode(folder: Path) -> None:
    """Keep compiled modules in `folder`, where Python has none beside the libraries and may put none there.

    So it is in many images, built with PYTHONDONTWRITEBYTECODE or with folders that cannot be written: there Python
    compiles thousands of files again at every start. `folder` must be one that only this user can write.
    """
    if sys.pycache_prefix is None and not all(_has_bytecode(name) for name in _PROBED):
        sys.pycache_prefix = str(folder)
        sys.dont_write_bytecode = False


def _has_bytecode(name: str) -> bool:
    """Whether a package has its bytecode, or will have it after it was imported once; True for one not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return True
    if os.path.isfile(importlib.util.cache_from_source(spec.origin)):
        return True
    return not sys.dont_write_bytecode and os.access(os.path.dirname(spec.origin), os.W_OK)


class OneTrainer(importlib.abc.MetaPathFinder):
    """Has Unsloth rewrite SFTTrainer alone. As it is imported, it would import and rewrite all 19 of TRL's.

    An Unsloth that does it by other names is left to do as it does.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "unsloth.models.rl":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _RewritesOne(spec.loader.name, spec.loader.path)
        return spec


class _RewritesOne(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        rewrite = getattr(module, "_patch_trl_rl_trainers", None)
        if rewrite is not None and hasattr(module, "patch_trl_rl_trainers"):
            vars(module)["patch_trl_rl_trainers"] = lambda: rewrite("sft_trainer")


@contextlib.contextmanager
def compiled_when_called() -> Iterator[None]:
    """Within the block, `torch.compile` compiles a function only when it is first called.

    `torch.compile` imports the compiler at once, which takes a CPU 0.8 s; bitsandbytes asks for it as it is imported,
    for functions that a model in 16-bit never calls.
    """
    import torch

    compile_now = torch.compile

    def compile_later(model: Callable[..., Any] | None = None, **options: Any) -> Any:
        if model is None:
            return lambda function: compile_later(function, **options)
        compiled = functools.cache(lambda: compile_now(model, **options))

        @functools.wraps(model)
        def call(*arguments: Any, **named: Any) -> Any:
            return compiled()(*arguments, **named)

        return call

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now
