"""What rewards say of the model's answers before it is trained, and how many prompts teach nothing."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuitune import backends
from tuitune.data.prepare import prepare
from tuitune.errors import UnusableInput
from tuitune.language import _
from tuitune.methods.prompts import section_of
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.rewards.confirmed import require_rewards
from tuitune.rewards.judge import differ


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer with its value by each reward, and their weighted sum."""

    text: str
    tokens: int
    ended: bool
    values: dict[str, float]
    reward: float


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt of the data (its last message) with the answers that the model as it is gives to it."""

    prompt: str
    answers: list[JudgedAnswer]

    @property
    def differs(self) -> bool:
        """Whether something can be learned from it."""
        return differ([answer.reward for answer in self.answers])


@dataclass(frozen=True)
class RewardPreview:
    prompts: list[JudgedPrompt]
    notices: list[str]

    @property
    def mean(self) -> float:
        rewards = [answer.reward for prompt in self.prompts for answer in prompt.answers]
        return sum(rewards) / len(rewards)

    @property
    def without_spread(self) -> float:
        """Share of the prompts whose answers are all worth the same."""
        return sum(not prompt.differs for prompt in self.prompts) / len(self.prompts)

    def verdict(self) -> str:
        """What it means for a training, in a sentence."""
        count = len(self.prompts)
        if self.without_spread == 0:
            return _(
                "The answers to each of {prompts} prompts differ in worth, so every prompt teaches something.",
                prompts=count,
            )
        if self.without_spread < 0.8:
            return _(
                "The answers to {share:.0%} of {prompts} prompts are all worth the same, which teaches nothing; the "
                "others do.",
                share=self.without_spread,
                prompts=count,
            )
        remedy = _(
            "easier prompts, a more lenient reward, more answers (method.num_generations) or a higher temperature"
        )
        best = max(answer.reward for prompt in self.prompts for answer in prompt.answers)
        if all(answer.reward == best for prompt in self.prompts for answer in prompt.answers) and best > 0:
            remedy = _("harder prompts or a stricter reward")
        return _(
            "The answers to {share:.0%} of {prompts} prompts are all worth the same, so hardly anything would be "
            "learned: try {remedy}.",
            share=self.without_spread,
            prompts=count,
            remedy=remedy,
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "mean_reward": self.mean,
            "without_spread": self.without_spread,
            "verdict": self.verdict(),
            "notices": self.notices,
            "prompts": [dataclasses.asdict(prompt) | {"differs": prompt.differs} for prompt in self.prompts],
        }


def preview_rewards(
    recipe: Recipe,
    prompts: int,
    progress: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RewardPreview:
    """Answers to prompts from all over the data, as many to each as a training takes, by the model without an adapter.

    Raises UnusableInput for a recipe that learns from no rewards, TuituneError, and Stopped where `cancelled`.
    """
    if not recipe.method.learns_from_rewards:
        raise UnusableInput(
            "The recipe learns by {method}, which has no rewards: set method.name to grpo.", method=recipe.method.name
        )
    section = section_of(recipe)
    require_rewards(section.rewards)
    progress(_("Reading and tokenising the data"))
    prepared = prepare(recipe, load_tokenizer(recipe.model), cancelled=cancelled)
    notices: list[str] = []
    progress(_("Loading the model"))
    loaded = backends.load(recipe, notices.append, lambda text, done, total: progress(text))
    loaded.thinks = prepared.thinking
    loaded.backend.attach(loaded)

    from tuitune.train.grpo_trainer import roller_of  # not before Unsloth, which changes what it imports

    count = min(prompts, len(prepared.train))
    rows = [prepared.train[(2 * place + 1) * len(prepared.train) // (2 * count)] for place in range(count)]
    progress(_("Answering the prompts"))
    roller = roller_of(loaded, section, rows, lambda event: notices.append(getattr(event, "text", "")))
    try:
        generation = roller.generate(rows, section.num_generations, seed=recipe.train.seed, cancelled=cancelled)
    finally:
        roller.judge.close()
    group = section.num_generations
    judged = []
    for at in range(0, len(generation.completions), group):
        answers = [
            JudgedAnswer(completion.text, len(completion.ids), completion.ended, completion.values, completion.reward)
            for completion in generation.completions[at : at + group]
        ]
        judged.append(JudgedPrompt(generation.completions[at].prompt, answers))
    return RewardPreview(judged, notices)
