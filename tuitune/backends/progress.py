"""The progress bars that libraries draw while a model comes, as numbers instead."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tuitune.hub.reach import refusal
from tuitune.language import _
from tuitune.model.config import is_folder
from tuitune.recipe_sections import ModelSection

Progress = Callable[[str, int, int], None]
"""Called with what is happening in words, how much is done, and of how much."""
_LOADED = ("*.json", "*.jinja", "*.model", "*.txt", "model.safetensors", "model-*-of-*.safetensors")
_MB = 10**6


def download(model: ModelSection, progress: Progress) -> None:
    """Bring the files of a Hub model that loading it reads into the Hub's cache; nothing for a folder.

    What the Hub refuses is not raised here: loading the model meets it again, and says it in one sentence.
    """
    if is_folder(model.name) or refusal(model.name, "model") is not None:
        return
    import huggingface_hub
    from httpx import HTTPError

    furthest = 0

    def tell(bar: Any) -> None:
        nonlocal furthest
        if bar.unit == "B" and bar.total and bar.n > furthest:  # there are others, which count the files
            furthest = bar.n
            progress(_("Downloading the model (MB)"), furthest // _MB, int(bar.total) // _MB)

    try:
        huggingface_hub.snapshot_download(
            model.name, revision=model.revision, allow_patterns=list(_LOADED), tqdm_class=_bar(tell)
        )
    except (HTTPError, OSError, ValueError):
        return


@contextmanager
def weights_loading(progress: Progress) -> Iterator[None]:
    """Tell `progress` of the weights that transformers loads inside this block; it draws nothing."""
    from transformers.utils import logging

    def tell(bar: Any) -> None:
        if bar.total:
            progress(_("Loading the model's weights"), bar.n, int(bar.total))

    kind = _bar(tell)
    earlier = logging.set_tqdm_hook(lambda _bar_class, arguments, options: kind(*arguments, **options))
    try:
        yield
    finally:
        logging.set_tqdm_hook(earlier)


def _bar(tell: Callable[[Any], None]) -> type:
    """A tqdm class whose bars call `tell` at most ten times a second, and at their end, where others would draw."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that would redraw

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False, "leave": True})

        def display(self, *_unused: Any, **_options: Any) -> bool:
            tell(self)
            return True

    Bar.set_lock(threading.RLock())  # tqdm's own is for many processes, and starts one
    return Bar
