"""How each method trains, one file a method."""

from tuitune.recipe import Recipe
from tuitune.train.methods.grpo import GRPO
from tuitune.train.methods.learner import Learner
from tuitune.train.methods.sft import SFT

LEARNERS: dict[str, Learner] = {learner.method.name: learner for learner in (SFT(), GRPO())}


def learner_of(recipe: Recipe) -> Learner:
    """How the recipe's method trains."""
    return LEARNERS[recipe.method.name]
