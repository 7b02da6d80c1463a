"""Reads a model's weights into the page cache while the libraries that will load them are still being imported."""

import threading
from pathlib import Path

import psutil

from tuitune.hub.reach import hub_cache
from tuitune.model.config import is_folder
from tuitune.recipe_sections import ModelSection

_BLOCK_BYTES = 8 * 2**20


def read_ahead(model: ModelSection) -> threading.Thread:
    """Begin to read in a thread of its own, which gives way to whatever goes wrong: loading will say it better.

    Imports nothing heavy. Nothing is read where the weights would fill more than half of the free memory.
    """
    thread = threading.Thread(target=_read, args=(model,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read(model: ModelSection) -> None:
    try:
        files = sorted(_folder(model).glob("model*.safetensors"))
        if sum(file.stat().st_size for file in files) > psutil.virtual_memory().available // 2:
            return
        block = bytearray(_BLOCK_BYTES)
        for file in files:
            with file.open("rb", buffering=0) as raw:
                while raw.readinto(block):
                    pass
    except OSError:
        return


def _folder(model: ModelSection) -> Path:
    """Where the weights lie; for a Hub model in the Hub's cache, if it was downloaded before.

    huggingface_hub would tell, but Unsloth has to be imported before what it patches.
    """
    if is_folder(model.name):
        return Path(model.name)
    repository = hub_cache() / f"models--{model.name.replace('/', '--')}"
    revision = model.revision or "main"
    named = repository / "refs" / revision
    return repository / "snapshots" / (named.read_text().strip() if named.is_file() else revision)
