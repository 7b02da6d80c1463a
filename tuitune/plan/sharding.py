"""Whether, and to how many cards, a model's frozen weights can be shared out, for one that no card holds whole."""

from tuitune.language import _
from tuitune.machine.hardware import Gpu
from tuitune.methods import method_of
from tuitune.plan.memory import Memory, Rows, Shape, holds_whole, longest_batch_tokens, memory_of, verdict
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


def cards_needed(
    recipe: Recipe, shape: Shape, rows: Rows | None, *, backend: str, card: Gpu, cards: int
) -> tuple[int, Memory] | None:
    """How many of `cards` cards like `card` hold the recipe's run if they share its weights, and the peak of each.

    None where one card holds all weights beside a single row, so that a run would make its passes smaller and not
    share; where they cannot be shared; and where all cards do not hold the run. `backend` is that of a run on one card.
    """
    if why_not_sharded(recipe) is not None:
        return None
    if holds_whole(recipe, shape, rows, backend=backend, card_bytes=card.total_bytes, free_bytes=card.free_bytes):
        return None
    tokens = longest_batch_tokens(recipe, rows)
    for count in range(2, cards + 1):
        memory = memory_of(recipe, shape, tokens, backend=BACKEND, card_bytes=card.total_bytes, shared_by=count)
        if verdict(memory.total_bytes, card.free_bytes) != "does not fit":
            return count, memory
    return None
