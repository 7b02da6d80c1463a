"""The models in memory: one base for all adapters that were trained on it, and other bases beside it where they fit."""

import gc
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import attach_beside
from tuitune.backends.progress import Progress
from tuitune.chat.gguf_engine import GgufModel, open_gguf
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import exports_of
from tuitune.language import _
from tuitune.machine.hardware import chosen_gpu
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train.checkpoints import adapter_of, require_whole_adapter
from tuitune.units import size

_GGUF_TOKENS = 8192
"""The longest prompt with its reply in llama.cpp, whose cache is allocated whole."""
_WORKSPACE_BYTES = 2**29
"""What a reply needs beside weights: keys and values of its tokens, and the library's workspaces."""


@dataclass
class _Base:
    """A base model with the adapters on it: each run's `LoadedModel` by run and checkpoint, and its adapter's name."""

    key: str
    model: LoadedModel
    adapters: dict[tuple[Run, str | None], tuple[str, LoadedModel]] = field(default_factory=dict)


class Models:
    """What the session holds in memory for chat; belongs to the worker thread."""

    def __init__(self) -> None:
        self._bases: list[_Base] = []
        self._gguf: tuple[tuple[Path, int, int], GgufModel] | None = None
        """Which file it is of, which may be exported anew, and the model."""
        self._running = ExitStack()
        """Ends the process that runs the GGUF."""

    def keep(self, run: Run, loaded: LoadedModel) -> None:
        """Hold the model that a run has just trained, with its adapter."""
        self.unload()
        self._bases = [_Base(_key(loaded.recipe), loaded, {(run, None): ("default", loaded)})]

    def of(
        self, run: Run, checkpoint: str | None, *, beside: bool, notice: Callable[[str], None], progress: Progress
    ) -> LoadedModel:
        """The model of a run with its adapter, or that of a checkpoint, active.

        A base that is in memory is shared. Another one is loaded in its place, or with `beside` next to it, if it fits.
        Raises TuituneError where it does not, where the run is training, or where its adapter is not as it was saved.
        """
        for base in self._bases:
            if (attached := base.adapters.get((run, checkpoint))) is not None:
                return self._active(base, *attached)
        if run.status() == "live":
            raise TuituneError(
                "Run {run} is still training: chat with it once it has finished.", run=one_line(run.name)
            )
        chosen = adapter_of(run, checkpoint)
        require_whole_adapter(chosen)
        recipe = run.resolved()
        shared = next((base for base in self._bases if base.key == _key(recipe)), None)
        if shared is not None:
            progress(_("Adding the adapter"), 0, 0)
            for _name, other in shared.adapters.values():
                other.decoder = None  # which holds a copy of one adapter alone
            adapter = f"adapter{len(shared.adapters)}"
            attach_beside(shared.model, str(chosen.adapter), adapter)
            loaded = _for_run(shared.model, run, recipe)
            shared.adapters[(run, checkpoint)] = (adapter, loaded)
            return self._active(shared, adapter, loaded)
        self._make_room(recipe, beside=beside)
        progress(_("Loading the model"), 0, 0)
        loaded = backends.load(recipe, notice, progress)
        progress(_("Adding the adapter"), 0, 0)
        loaded.backend.attach_saved(loaded, str(chosen.adapter))
        loaded.thinks = run.thinks()
        self._bases.append(_Base(_key(recipe), loaded, {(run, checkpoint): ("default", loaded)}))
        return loaded

    def gguf(
        self, run: Run, checkpoint: str | None, kind: str, progress: Progress, cancelled: Callable[[], bool]
    ) -> GgufModel:
        """An exported GGUF of a run in llama.cpp: `gguf` (the first there is) or `gguf:TYPE`. Raises TuituneError."""
        from tuitune.model.config import load_config

        chosen = adapter_of(run, checkpoint)
        exports = [export for export in exports_of(chosen) if export.path.suffix == ".gguf"]
        export = next(
            (export for export in exports if kind in ("gguf", export.kind) and export.kind.startswith("gguf:")), None
        )
        if export is None:
            kind_to_make = kind if ":" in kind else "gguf:q8_0"
            raise UnusableInput(
                "Run {run} has no export {kind}: make it with `tuitune export {run} --to {kind_to_make}`.",
                run=one_line(run.name),
                kind=one_line(kind, max_length=40),
                kind_to_make=one_line(kind_to_make, max_length=40),
            )
        file_status = export.path.stat()
        key = (export.path, file_status.st_ino, file_status.st_mtime_ns)
        if self._gguf is None or self._gguf[0] != key or not self._gguf[1].is_running:
            self.close_gguf()
            progress(_("Loading {file} into llama.cpp", file=export.path.name), 0, 0)
            positions = getattr(load_config(run.resolved().model).get_text_config(), "max_position_embeddings", None)
            context = min(positions or _GGUF_TOKENS, _GGUF_TOKENS)
            model = self._running.enter_context(open_gguf(export.path, context=context, cancelled=cancelled))
            self._gguf = (key, model)
        return self._gguf[1]

    def close_gguf(self) -> None:
        """End llama.cpp, and remove what it had for itself."""
        self._gguf = None
        self._running.close()

    def unload(self) -> None:
        """Let go of every model, on the card too."""
        self.close_gguf()
        self._bases.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _active(self, base: _Base, adapter: str, loaded: LoadedModel) -> LoadedModel:
        loaded.model = base.model.model
        if loaded.model.active_adapters != [adapter]:
            loaded.model.set_adapter(adapter)
        return loaded

    def _make_room(self, recipe: Recipe, *, beside: bool) -> None:
        """Raises TuituneError where a base does not fit beside those that are to stay."""
        if not self._bases:
            return
        if not beside:
            self.unload()
            return
        needed, available = _needed_bytes(recipe), _available_bytes()
        if needed > available:
            raise TuituneError(
                "{model} does not fit beside the model in memory (it needs about {needed}, {free} are "
                "free): compare runs of one base model, or chat with this run alone.",
                model=one_line(recipe.model.name, max_length=120),
                needed=size(needed),
                free=size(available),
            )


def _for_run(shared: LoadedModel, run: Run, recipe: Recipe) -> LoadedModel:
    """The shared model as another run's: with its recipe, and its tokenizer where that has another chat template."""
    from tuitune.model.config import load_tokenizer

    same = recipe.model.chat_template == shared.recipe.model.chat_template
    tokenizer = shared.tokenizer if same else load_tokenizer(recipe.model)
    masker = shared.masker if same else None
    return replace(shared, recipe=recipe, tokenizer=tokenizer, masker=masker, thinks=run.thinks(), decoder=None)


def _key(recipe: Recipe) -> str:
    """What two runs must have in common for their adapters to stand on one base in memory."""
    from tuitune.model.config import load_config

    model, lora = recipe.model, recipe.lora
    own = getattr(load_config(model).get_text_config(), "max_position_embeddings", None) or 0
    scaled_to = recipe.data.max_length if recipe.data.max_length > own else 0
    # Where parts of the base itself are trained, peft keeps a copy a run, and Unsloth moves the base's own away.
    trained_parts = [*lora.modules_to_save, lora.bias]
    name = (model.name, model.revision, model.load_in_4bit, model.load_in_8bit, model.backend, model.new_tokens)
    return json.dumps([name, scaled_to, trained_parts], default=str)


def _needed_bytes(recipe: Recipe) -> int:
    """Memory of the base's weights and of a reply with them."""
    from tuitune.plan.memory import memory_of, shape_of

    card = chosen_gpu()
    shape, backend = shape_of(recipe), backends.choose(recipe).name
    memory = memory_of(recipe, shape, 1, backend=backend, card_bytes=card.total_bytes if card else None)
    return memory.weights_bytes + memory.adapter_bytes + _WORKSPACE_BYTES


def _available_bytes() -> int:
    """Memory that is free where models are loaded, with what torch holds but does not use."""
    card = chosen_gpu()
    if card is None:
        return int(psutil.virtual_memory().available)
    import torch

    return int(card.free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
