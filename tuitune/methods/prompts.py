"""Prompts that the model answers itself, and what rewards need to judge the answers: what GRPO learns from."""

import json
from collections.abc import Mapping
from typing import Any

from tuitune.conversation import Sample, UnusableRow
from tuitune.language import N_, _
from tuitune.masking import IGNORED, Masker
from tuitune.method_sections import GRPO as Section
from tuitune.methods.advice import Advice, PromptAdvice
from tuitune.methods.method import IDS, TEXT, Encoded, Masks, Method, Metric, OverLength, Part, is_finite
from tuitune.methods.pairs import WHY_NOT_SHARDED, chunked_logits_bytes
from tuitune.recipe import Recipe


class GRPO(Method):
    """A row is `prompt_ids`, the tokens up to where a reply begins, and `row`: as JSON, its `prompt` (messages) and
    every column of the data as it stands there, for the rewards.
    """

    name = "grpo"
    sentence = N_("Answers prompts itself and learns from rewards that check the answers: mathematics, code, formats.")
    why_not_sharded = WHY_NOT_SHARDED
    columns = {"prompt_ids": IDS, "row": TEXT}  # noqa: RUF012
    metrics = (
        Metric("reward", N_("reward"), N_("What the answers are worth on average: this is what should rise.")),
        Metric(
            "reward_std",
            N_("spread"),
            N_("How much the answers to one prompt differ in worth; without any nothing is learned."),
        ),
        Metric(
            "frac_reward_zero_std",
            N_("no spread"),
            N_(
                "Share of prompts whose answers are all worth the same: near 1 the task is too easy, too hard "
                "or unclear."
            ),
            ".0%",
        ),
        Metric("completions/mean_length", N_("tokens"), N_("How long the answers are on average."), ".0f"),
        Metric(
            "completions/clipped_ratio",
            N_("cut off"),
            N_("Share of answers that reached max_completion_length unended."),
            ".0%",
        ),
        Metric("entropy", N_("entropy"), N_("How undecided the model is at each token; near 0 it explores no more.")),
        Metric("kl", N_("KL"), N_("How far the model has moved from what it was, where method.beta holds it."), ".4f"),
        Metric(
            "clip_ratio", N_("clipped"), N_("Share of tokens whose probability has moved further than epsilon."), ".1%"
        ),
        Metric("generating", N_("generating"), N_("Share of the step's time that answering took."), ".0%"),
        Metric(
            "sampling_difference",
            N_("drift"),
            N_(
                "Mean difference of a token's log-probability between decoder and training: rounding alone, about 0.01."
            ),
            ".4f",
        ),
    )
    loss_says = N_("The loss is about 0 by construction and says nothing of progress: watch the reward.")

    def samples(self, sample: Sample) -> list[Sample]:
        if prompt_of(sample) is None:
            raise UnusableRow(_("it has no prompt to answer"), _("map the question's column as prompt in data.columns"))
        return []

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        prompt = prompt_of(sample)
        assert prompt is not None
        ids = masker.prompt_ids(prompt, sample.tools)
        if len(ids) > masker.max_length:
            raise UnusableRow(
                _(
                    "its prompt has {ids:,} tokens, more than max_length ({max_length})",
                    ids=len(ids),
                    max_length=masker.max_length,
                ),
                _("raise data.max_length, or take it out"),
                over_length=True,
            )
        row = json.dumps({**(sample.columns or {}), "prompt": prompt}, ensure_ascii=False, default=str)
        return [Encoded({"prompt_ids": ids, "row": row}, len(ids), 0)]

    def logits_bytes(self, vocabulary: int, batch_tokens: int) -> int | None:
        return chunked_logits_bytes(vocabulary, batch_tokens)

    def advice(self, recipe: Recipe) -> Advice:
        needed = {getattr(reward, "column", None): reward.title for reward in recipe.method.judges()}
        return PromptAdvice({column: title for column, title in needed.items() if column})

    def steps_an_epoch(self, recipe: Recipe, rows: int) -> int:
        """Steps over the prompts once; those that fill no whole step wait for the next epoch."""
        return rows // prompts_a_step(recipe) * section_of(recipe).num_iterations

    def metrics_of(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """The figures above, and the mean of each reward by its own name."""
        own = {name: float(value) for name, value in logs.items() if name.startswith("rewards/") and is_finite(value)}
        return super().metrics_of(logs) | own

    def parts(self, encoded: Encoded) -> list[Part]:
        ids: Any = encoded.columns["prompt_ids"]
        return [Part("prompt", ids, [IGNORED] * len(ids))]


def prompt_of(sample: Sample) -> Any:
    """The turns up to the last reply, which the model is to give itself; None where there are none."""
    if sample.messages is None:
        return None
    roles = [turn["role"] for turn in sample.messages]
    end = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    return sample.messages[:end] or None


def prompts_a_step(recipe: Recipe) -> int:
    """Prompts whose answers make one step of a recipe that learns by GRPO."""
    train = recipe.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps // section_of(recipe).num_generations


def section_of(recipe: Recipe) -> Section:
    """The recipe's section `method`, which is GRPO's."""
    assert isinstance(recipe.method, Section)
    return recipe.method
