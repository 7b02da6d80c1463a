"""What differs between Unsloth and plain transformers: loading, attaching the adapter, switching modes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tuitune.backends.loaded import Backend, LoadedModel
from tuitune.backends.progress import Progress, download, weights_loading
from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.machine.environment import unsloth_is_usable
from tuitune.recipe import Recipe

if TYPE_CHECKING:
    from tuitune.backends.sharding import Peers


def choose(recipe: Recipe) -> Backend:
    """The recipe's backend; `auto` is Unsloth where it is installed beside an NVIDIA GPU, but not for new tokens.

    Their rows are trained by PEFT's layers, past which Unsloth's kernels might read.
    """
    backend = recipe.model.backend
    if backend == "unsloth" or (backend == "auto" and not recipe.model.new_tokens and unsloth_is_usable()):
        from tuitune.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from tuitune.backends.transformers import TransformersBackend

    return TransformersBackend()


def load(
    recipe: Recipe,
    tell: Callable[[str], None],
    progress: Progress = lambda text, done, total: None,
    *,
    peers: "Peers | None" = None,
) -> LoadedModel:
    """The base model through the recipe's backend; `tell` gets a sentence for what is slower than it could be.

    Where the choice was left to tuitune and Unsloth refuses the model, transformers stands in. With `peers`, this
    process holds its share of the frozen weights alone, by transformers. Raises TuituneError.
    """
    if peers is None:
        loaded = _loaded(recipe, choose(recipe), tell, progress)
    else:
        from tuitune.backends.sharding import shared_as_loaded
        from tuitune.backends.transformers import TransformersBackend

        with shared_as_loaded(peers) as shards:
            loaded = _loaded(recipe, TransformersBackend(), tell, progress)
        shards.hook()
        loaded.shards = shards
    if loaded.attention == "eager":
        tell(_("No fast attention kernel here can do what this architecture does, so long rows are slow."))
    return loaded


def _loaded(recipe: Recipe, backend: Backend, tell: Callable[[str], None], progress: Progress) -> LoadedModel:
    from tuitune.backends.loading import MemoryRanOut, WeightsMissing, no_weights_missing
    from tuitune.backends.transformers import TransformersBackend

    if recipe.model.new_tokens and unsloth_is_usable():
        tell(_("New tokens are trained by transformers and PEFT, more slowly than Unsloth trains other runs."))
    download(recipe.model, progress)
    try:
        with weights_loading(progress), no_weights_missing(recipe):
            return backend.load(recipe)
    except (MemoryRanOut, WeightsMissing, UnusableInput):  # transformers would find no more, Unsloth's layers in place
        raise
    except TuituneError as error:
        if backend.name != "unsloth" or recipe.model.backend != "auto":
            raise
        tell(
            _(
                "Unsloth does not take this model, so transformers trains it, more slowly. {reason}",
                reason=error.sentence,
            )
        )
        with weights_loading(progress), no_weights_missing(recipe):
            return TransformersBackend().load(recipe)
