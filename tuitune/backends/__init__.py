"""What differs between Unsloth and plain transformers: loading, attaching the adapter, switching modes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tuitune.backends.progress import Progress, download, weights_loading
from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.environment import unsloth_is_usable
from tuitune.model.targets import Targets
from tuitune.recipe import Recipe


@dataclass
class LoadedModel:
    """A model in memory, with its tokenizer and what made it. `model` has an adapter once one was attached."""

    model: Any
    tokenizer: Any
    backend: "Backend"
    recipe: Recipe
    thinks: bool = False
    """Whether its training data brings its own thinking, so that a reply begins with it."""
    masker: Any = None
    """The tokenizer's Masker, once a reply has needed one."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass; the trainer must be told the same."""
    padding_free: bool = False
    """Whether batches may hold their rows end to end, kept apart by the attention kernel."""
    attention: str = "sdpa"
    """The attention kernel in use, in words for the user."""
    targets: Targets | None = None
    """The layers that got a fresh adapter; None before, and with a saved one."""
    compiled: bool = True
    """Whether torch.compile is used on the model's own parts."""


class Backend(Protocol):
    """Loads a base model and puts an adapter on it; everything else is shared."""

    name: str

    def load(self, recipe: Recipe) -> LoadedModel:
        """The base model with all weights frozen, on its device. Raises TuituneError."""
        ...

    def attach(self, loaded: LoadedModel) -> None:
        """Add the recipe's fresh LoRA adapter; only its weights require gradients."""
        ...

    def attach_saved(self, loaded: LoadedModel, folder: str) -> None:
        """Add the adapter saved in `folder`, for chat and export."""
        ...

    def for_training(self, loaded: LoadedModel) -> None: ...

    def for_inference(self, loaded: LoadedModel) -> None: ...


def choose(recipe: Recipe) -> Backend:
    """The recipe's backend; `auto` is Unsloth where it is installed beside an NVIDIA GPU."""
    wanted = recipe.model.backend
    if wanted == "unsloth" or (wanted == "auto" and unsloth_is_usable()):
        from tuitune.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from tuitune.backends.transformers import TransformersBackend

    return TransformersBackend()


def load(
    recipe: Recipe, tell: Callable[[str], None], progress: Progress = lambda text, done, total: None
) -> LoadedModel:
    """The base model through the recipe's backend; `tell` gets a sentence for what is slower than it could be.

    Where the choice was left to tuitune and Unsloth refuses the model, transformers stands in. Raises TuituneError.
    """
    loaded = _loaded(recipe, tell, progress)
    if loaded.attention == "eager":
        tell("No fast attention kernel here can do what this architecture does, so long rows are slow.")
    return loaded


def _loaded(recipe: Recipe, tell: Callable[[str], None], progress: Progress) -> LoadedModel:
    from tuitune.backends.loading import MemoryRanOut, whole
    from tuitune.backends.transformers import TransformersBackend

    backend = choose(recipe)
    download(recipe.model, progress)
    try:
        with weights_loading(progress), whole(recipe):
            return backend.load(recipe)
    except (MemoryRanOut, UnusableInput):
        raise
    except TuituneError as error:
        if backend.name != "unsloth" or recipe.model.backend != "auto":
            raise
        tell(f"Unsloth does not take this model, so transformers trains it, more slowly. {error}")
        with weights_loading(progress), whole(recipe):
            return TransformersBackend().load(recipe)
