"""What makes importing the libraries quicker: bytecode that is kept, and one trainer rewritten instead of all."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

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
