"""What can be learned from, one object a method: rows, columns, preview, audit, estimate and figures."""

from typing import Any

from tuitune.methods.method import Encoded, Method, Metric, Part
from tuitune.methods.pairs import DPO, ORPO, SimPO
from tuitune.methods.pretrain import Pretrain
from tuitune.methods.prompts import GRPO
from tuitune.methods.sft import SFT
from tuitune.methods.thumbs import KTO
from tuitune.recipe import Recipe

__all__ = ["METHODS", "Encoded", "Method", "Metric", "Part", "method_of"]

METHODS: dict[str, Method] = {
    method.name: method for method in (SFT(), DPO(), ORPO(), SimPO(), KTO(), GRPO(), Pretrain())
}


def method_of(recipe: Recipe | dict[str, Any]) -> Method:
    """The method of a recipe, or of a recipe's plain data."""
    name = recipe.method.name if isinstance(recipe, Recipe) else recipe.get("method", {}).get("name", "sft")
    return METHODS[name]
