"""The loss of GRPO and its kin over the tokens of a pass, laid one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuitune.method_sections import GRPO

_SAPO_POSITIVE, _SAPO_NEGATIVE = 1.0, 1.05
"""Temperatures of the soft gate (Gao et al. 2025)."""


@dataclass(frozen=True)
class Tokens:
    """Answers of one pass. Vectors over tokens have each answer's tokens in order, one answer after another."""

    lengths: Sequence[int]
    logprobs: Tensor  # (tokens,), with gradients
    old: Tensor  # (tokens,), by the weights that the answers are from
    reference: Tensor | None  # (tokens,), by the weights that the run began with
    advantages: Tensor  # (answers,)
    weights: Tensor  # (answers,), of one token of each answer; 0 leaves it out


def token_weights(section: GRPO, lengths: Sequence[int], ended: Sequence[bool]) -> list[float]:
    """What one token of each answer of a step counts, so that the passes of a step only need to be added."""
    counted = [
        length if has_ended or not section.mask_truncated_completions else 0
        for length, has_ended in zip(lengths, ended, strict=True)
    ]
    match section.loss_type:
        case "grpo" | "sapo":  # the mean of a token in each answer, and of all answers
            return [1 / (length * len(lengths)) if length else 0.0 for length in counted]
        case "dr_grpo":  # Liu et al. 2025: no answer's length counts
            return [float(length > 0) / (len(lengths) * section.max_completion_length) for length in counted]
        case _:  # dapo (Yu et al. 2025) and cispo: every token of the step the same
            total = sum(counted)
            return [1 / total if length else 0.0 for length in counted]


def policy_loss(section: GRPO, tokens: Tokens) -> tuple[Tensor, dict[str, float]]:
    """The pass's part of the step's loss, and its sums of clipped tokens and of the divergence from the reference."""
    device = tokens.logprobs.device
    lengths = torch.tensor(tokens.lengths, device=device)
    answer = torch.repeat_interleave(torch.arange(len(tokens.lengths), device=device), lengths)
    advantage, weight = tokens.advantages[answer], tokens.weights[answer]
    log_ratio = tokens.logprobs - tokens.old
    if section.importance_sampling_level == "sequence":  # Zheng et al. 2025 (GSPO)
        means = torch.zeros(len(tokens.lengths), device=device).index_add(0, answer, log_ratio) / lengths.clamp(min=1)
        log_ratio = means[answer]
    ratio = log_ratio.exp()
    low, high = 1 - section.epsilon, 1 + (section.epsilon if section.epsilon_high is None else section.epsilon_high)
    if section.loss_type == "cispo":  # MiniMax 2025
        losses = -ratio.clamp(max=high).detach() * advantage * tokens.logprobs
    elif section.loss_type == "sapo":
        heat = torch.where(advantage > 0, _SAPO_POSITIVE, _SAPO_NEGATIVE)
        losses = -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantage
    else:
        losses = -torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = ((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0))
    sums = {"clipped": float(clipped.sum())}
    if tokens.reference is not None:  # Schulman's estimator of the divergence, never negative
        ahead = tokens.reference - tokens.logprobs
        divergence = ahead.exp() - ahead - 1
        losses = losses + section.beta * divergence
        sums["kl"] = float(divergence.detach().sum())
    return (losses * weight).sum(), sums
