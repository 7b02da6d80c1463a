"""How weights are held in 4 or 8 bits."""

from typing import Any

from tuitune.machine.precision import compute_dtype
from tuitune.recipe import Recipe


def quantization(recipe: Recipe) -> dict[str, Any]:
    """nf4 with double quantisation (Dettmers et al. 2023, QLoRA), LLM.int8 (2022), or nothing."""
    from transformers import BitsAndBytesConfig

    if recipe.model.load_in_8bit:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    if not recipe.model.load_in_4bit:
        return {}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(load_in_4bit=True),
    )
    return {"quantization_config": nf4}
