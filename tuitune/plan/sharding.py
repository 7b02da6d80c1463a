"""Whether a model's frozen weights can be shared out to several cards, for one that no card holds whole."""

from tuitune.language import _
from tuitune.methods import method_of
from tuitune.recipe import Recipe

BACKEND = "transformers"
"""What trains a model whose weights are shared out."""
_HELD_WHOLE = {"embed_tokens", "lm_head"}


def why_not_sharded(recipe: Recipe, hosts: int = 1) -> str | None:
    """Why the recipe's weights cannot be shared out to the cards of `hosts` hosts; None where they can."""
    lora = recipe.lora
    if reason := method_of(recipe).why_not_sharded:
        return _(reason)
    if recipe.model.backend == "unsloth":
        return _("Unsloth reads weights past the layers that would fetch them (model.backend)")
    if hosts > 1:
        return _("a network between hosts is too slow for what each layer would fetch")
    if recipe.model.load_in_8bit:
        return _("8-bit weights are unpacked outside of their layers")
    if lora.use_dora or lora.init_lora_weights == "loftq":
        return _("the adapter begins with values computed from whole weights (lora.use_dora, lora.init_lora_weights)")
    if set(lora.modules_to_save) - _HELD_WHOLE:
        return _("layers of the decoder that are trained whole are copied whole (lora.modules_to_save)")
    return None
