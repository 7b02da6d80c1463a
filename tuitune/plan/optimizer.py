"""Which optimizer a run gets."""

from tuitune.recipe import Recipe

_LARGE_STATES = 0.02


def optimizer_name(recipe: Recipe, trainable_parameters: int, total_bytes: int | None) -> str:
    """The trainer's `optim`: fused fp32 Adam, or 8-bit states where fp32 ones would take much of the card.

    `total_bytes` is the card's memory, None on a CPU.
    """
    if total_bytes is None:
        return "adamw_torch"
    if recipe.train.optim != "auto":
        return recipe.train.optim
    return "adamw_torch_fused" if 8 * trainable_parameters <= _LARGE_STATES * total_bytes else "adamw_8bit"
