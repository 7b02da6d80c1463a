"""The recipe's section `method`: what is learned from, with the fields of that method alone."""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuitune.language import _
from tuitune.reward_sections import NumericMatch, Reward, RewardSection


class Section(BaseModel):
    """A part of the recipe: fields that are checked, described and never changed in place."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class MethodFields(Section):
    """The fields of one method, and what follows from them alone; `tuitune.methods` has everything else of it."""

    usual_learning_rate: ClassVar[float] = 2e-4
    """Taken where the recipe gives none."""
    learns_from_rewards: ClassVar[bool] = False
    """Whether the model learns from answers of its own: then a reward that rises counts, not a loss that falls."""

    def judges(self) -> Sequence[Reward]:
        """The rewards that judge the model's answers."""
        return ()

    def with_rewards(self, change: Callable[[Reward], Reward]) -> Self:
        """The same fields with `change` done to each reward."""
        return self

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer that the model writes while it trains; 0 where it writes none."""
        return 0

    def problem_of_step(self, rows: int) -> str | None:
        """Why a step of so many rows cannot be trained, and what to change; None where it can."""
        return None


class SFT(MethodFields):
    """Supervised fine-tuning: the model learns to write the replies of the data."""

    name: Literal["sft"] = "sft"
    """What is learned from: sft, replies to imitate."""


DPOLoss = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm", "sft"]


class DPO(MethodFields):
    """Direct preference optimization: of two replies the chosen one becomes likelier than the rejected one."""

    usual_learning_rate = 5e-6
    name: Literal["dpo"]
    """What is learned from: dpo, pairs of a chosen and a rejected reply."""
    beta: float = Field(0.1, gt=0, le=10)
    """How closely the model keeps to what it was: 0.1 is usual, more holds it closer."""
    loss_type: list[DPOLoss] = Field(["sigmoid"], min_length=1, max_length=4)
    """The loss, or several that are added: sigmoid (DPO), hinge, ipo, robust, apo_zero, apo_down, sigmoid_norm, sft."""
    loss_weights: list[float] | None = None
    """Weight of each loss; empty weighs all of them 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round, for loss_type robust."""

    @model_validator(mode="after")
    def _one_weight_a_loss(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                _("loss_weights needs one number for each of loss_type ({count})", count=len(self.loss_type))
            )
        if "robust" in self.loss_type and self.label_smoothing == 0:
            raise ValueError(_("loss_type robust needs a label_smoothing, the share of wrong pairs, for example 0.1"))
        return self


class ORPO(MethodFields):
    """Odds ratio preference optimization: imitates the chosen reply and turns away from the rejected one at once."""

    usual_learning_rate = 8e-6
    name: Literal["orpo"]
    """What is learned from: orpo, pairs, with no reference model."""
    beta: float = Field(0.1, gt=0, le=10)
    """Weight of the preference beside imitating the chosen reply."""


class SimPO(MethodFields):
    """Simple preference optimization: DPO without a reference, by the mean log-probability of a token."""

    usual_learning_rate = 2e-6
    name: Literal["simpo"]
    """What is learned from: simpo, pairs, with no reference model."""
    beta: float = Field(2.0, gt=0, le=100)
    """Scale of the difference between the replies' mean log-probabilities: 2 to 10 are usual."""
    simpo_gamma: float = Field(1.0, ge=0, le=100)
    """By how much the chosen reply should win: about half of beta."""


class KTO(MethodFields):
    """Kahneman-Tversky optimization: single replies, each marked good or bad."""

    usual_learning_rate = 5e-6
    name: Literal["kto"]
    """What is learned from: kto, replies with a thumb up or down; pairs count as one of each."""
    beta: float = Field(0.1, gt=0, le=10)
    """How closely the model keeps to what it was: 0.1 is usual, more holds it closer."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto measures each reply against the mean drift from the reference; apo_zero_unpaired against none."""
    desirable_weight: float = Field(1.0, gt=0, le=1000)
    """Weight of good replies: times their number, 1 to 4/3 of what the bad ones have."""
    undesirable_weight: float = Field(1.0, gt=0, le=1000)
    """Weight of bad replies."""


class Pretrain(MethodFields):
    """Continued pretraining: raw text, packed to max_length with an end token after each document."""

    usual_learning_rate = 5e-5
    name: Literal["pretrain"]
    """What is learned from: pretrain, raw text, such as a new language or a field's literature."""
    embedding_learning_rate: float | None = Field(None, gt=0, le=1)
    """Learning rate of embeddings and head in modules_to_save (empty: a tenth) and of new tokens (empty: the same)."""


class GRPO(MethodFields):
    """Group relative policy optimization: the model answers prompts, and rewards say which answers were better."""

    usual_learning_rate = 5e-6
    learns_from_rewards = True
    name: Literal["grpo"]
    """What is learned from: grpo, prompts and rewards for the model's own answers."""
    rewards: list[RewardSection] = Field([NumericMatch(name="numeric_match")], min_length=1, max_length=16)
    """What an answer is worth: a list such as [{name: numeric_match}], each with a weight and options of its own."""
    num_generations: int = Field(8, ge=2, le=256)
    """Answers to each prompt, which are measured against each other; batch × accumulation is a multiple of it."""
    max_completion_length: int = Field(256, ge=1, le=65_536)
    """Longest answer in tokens; what does not end by itself is cut there."""
    temperature: float = Field(1.0, gt=0, le=10)
    """How much the answers vary; 1 is what the model says of itself."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Draw among this many likeliest tokens; 0 sets no limit."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest one."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo", "sapo"] = "dapo"
    """How tokens are weighed: dapo all of a step alike, grpo each answer alike, dr_grpo by no answer's length."""
    beta: float = Field(0.0, ge=0, le=10)
    """Pull towards the model as it was (KL): 0 is usual and needs no reference."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What rewards are divided by: their group's spread, the batch's, or nothing."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether the ratio of new to old probability is taken of each token, or of whole answers (GSPO)."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """How far the ratio may move before it is clipped."""
    epsilon_high: float | None = Field(None, gt=0, le=100)
    """The same upwards, where that is to be another (0.28 in DAPO)."""
    num_iterations: int = Field(1, ge=1, le=64)
    """Steps that learn from each generation."""
    mask_truncated_completions: bool = False
    """Leave out answers that were cut at their longest."""

    def judges(self) -> Sequence[Reward]:
        return self.rewards

    def with_rewards(self, change: Callable[[Reward], Reward]) -> Self:
        return self.model_copy(update={"rewards": [change(reward) for reward in self.rewards]})

    @property
    def answer_tokens(self) -> int:
        return self.max_completion_length

    def problem_of_step(self, rows: int) -> str | None:
        if rows % self.num_generations == 0:
            return None
        return _(
            "a step has {rows} answers (train.per_device_train_batch_size × gradient_accumulation_steps), which "
            "method.num_generations ({answers}) does not divide: change one of them, for example num_generations to "
            "{divisor}",
            rows=rows,
            answers=self.num_generations,
            divisor=_divisor(rows, self.num_generations),
        )


def _divisor(number: int, near: int) -> int:
    """A divisor of the number, at least 2 where it has one, as near as can be."""
    divisors = [divisor for divisor in range(2, number + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: abs(divisor - near), default=number)


MethodSection = Annotated[SFT | DPO | ORPO | SimPO | KTO | GRPO | Pretrain, Field(discriminator="name")]
METHODS: dict[str, type[MethodFields]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in (SFT, DPO, ORPO, SimPO, KTO, GRPO, Pretrain)
}
"""Name of each method to its section."""


def fields_of(method: str) -> type[MethodFields]:
    """The section of that method; that of sft for a name that is no method's."""
    return METHODS.get(method, SFT)
