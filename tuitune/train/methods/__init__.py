"""How each method trains, one file a method."""

from tuitune.recipe import Recipe
from tuitune.train.methods.grpo import GRPO
from tuitune.train.methods.learner import Learner
from tuitune.train.methods.pairs import DPO, ORPO, SimPO
from tuitune.train.methods.pretrain import Pretrain
from tuitune.train.methods.sft import SFT
from tuitune.train.methods.thumbs import KTO

__all__ = ["LEARNERS", "Learner", "learner_of"]

LEARNERS: dict[str, Learner] = {
    learner.method.name: learner for learner in (SFT(), DPO(), ORPO(), SimPO(), KTO(), GRPO(), Pretrain())
}


def learner_of(recipe: Recipe) -> Learner:
    """How the recipe's method trains."""
    return LEARNERS[recipe.method.name]
