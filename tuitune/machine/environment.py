"""What must stand in the environment before any heavy library is imported, how those are installed and imported."""

import gc
import importlib.util
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from tuitune.machine.hardware import choose_gpu, gpus
from tuitune.machine.quick_import import OneTrainer, compiled_when_called, keep_bytecode
from tuitune.paths import own_folder, temporary_folder


def prepare_environment() -> None:
    """Settle caches, telemetry and prompts for this process and its children; what the user set stays set.

    Cheap: it imports no heavy library. Call it before torch, transformers or unsloth is imported.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuitune"
    compiled = caches / "unsloth_compiled"
    with suppress(OSError):
        compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(compiled, os.W_OK | os.X_OK):  # a home that cannot be written
        compiled = own_folder(temporary_folder() / "unsloth_compiled")
    settings = {
        # Unsloth puts this folder first on sys.path, so it must be one that only this user can write.
        "UNSLOTH_COMPILE_LOCATION": str(compiled),
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # What it would warn of reaches the user as one sentence.
        "HF_HUB_VERBOSITY": "error",
        "DO_NOT_TRACK": "1",
        # Compiling whole decoder layers takes Unsloth minutes before the first step, and a compiled layer attends to
        # rows laid end to end through a dense mask instead of the variable-length kernel.
        "UNSLOTH_BLOCK_COMPILE": "0",
        # Uncompiled, flex attention holds every pair of tokens in memory; wide heads take sdpa instead.
        "UNSLOTH_FLEX_ATTENTION_FOR_LARGE_HEAD_DIM": "0",
        # The matrix products of compiled parts are not tuned for each shape that comes.
        "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS": "ATEN",
        "TOKENIZERS_PARALLELISM": "false",
        # Rows of every length come and go: without this the allocator keeps a block for each size it has seen.
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        # Threads that wait for their turn sleep instead of spinning: on a CPU that others use too (the app, a second
        # run), steps were 20 times faster so.
        "OMP_WAIT_POLICY": "passive",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    keep_bytecode(compiled / "pycache")


def install_line(*requirements: str) -> str:
    """The line for a shell that installs these packages into the environment that tuitune runs in."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def unsloth_is_usable() -> bool:
    """Whether Unsloth is installed beside an NVIDIA GPU that is not hidden; neither is loaded to find out."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and importlib.util.find_spec("unsloth") is not None and bool(gpus())


def warm_up() -> None:
    """Import everything a job needs, Unsloth before what it patches. Takes 5 to 40 s; meant for a worker thread."""
    prepare_environment()
    choose_gpu()
    gc.disable()  # each collection in between would go through everything imported so far, and find nothing
    try:
        if unsloth_is_usable():
            sys.meta_path.insert(0, OneTrainer())
            import unsloth  # noqa: F401
        import torch

        with compiled_when_called():
            import bitsandbytes  # noqa: F401
        import datasets  # noqa: F401
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
        from trl import SFTTrainer  # noqa: F401

        if torch.cuda.is_available():
            torch.cuda.init()
    finally:
        gc.enable()
    # What stays for good is left out of later collections: Unsloth asks for a dozen, of 0.3 s each otherwise. It is not
    # gone through now either, which would take as long for the few MB of it that are not needed.
    gc.freeze()
