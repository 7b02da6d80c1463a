"""A model in memory, and what a backend is."""

from dataclasses import dataclass, field
from typing import Any, Protocol

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
    decoder: Any = None
    """What decodes its replies fast, once a chat has needed it."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass; the trainer must be told the same."""
    padding_free: bool = False
    """Whether batches may hold their rows end to end, kept apart by the attention kernel."""
    attention: str = "sdpa"
    """The attention kernel in use, in words for the user."""
    targets: Targets | None = None
    """The layers that got a fresh adapter; None before, and with a saved one."""
    begun: dict[str, Any] = field(default_factory=dict)
    """The trained parameters as the run began with them, by name, on the CPU; empty before a trainer is made."""
    reference: dict[str, Any] = field(default_factory=dict)
    """What the model said of the training and the held-out rows before it was trained, where a method asks that."""
    compiled: bool = True
    """Whether torch.compile is used on the model's own parts."""
    dequantize_once: bool = False
    """Whether the 16-bit values of 4-bit weights are kept while training, beside them."""
    trained_head: bool = False
    """Whether the output layer can be left out for tokens whose next token has no label."""
    shards: Any = None
    """What shares its frozen weights out to several processes; None where this one holds them whole."""
    pass_sizes: tuple[int, ...] = ()
    """Tokens that padding-free passes are filled up to, where they are captured as CUDA graphs; else empty."""


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
