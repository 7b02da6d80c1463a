"""How the next token is chosen from a model's logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from its probabilities; each option as in transformers' `generate`."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def choose(logits: Tensor, choice: Choice, uniforms: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The next tokens (rows,) and their log-probabilities at the temperature, before any is left out.

    `uniforms` (rows,) in [0, 1) choose by the inverse of the cumulative distribution; `seen` (rows, vocabulary) marks
    tokens that the repetition penalty (Keskar et al. 2019) is for.
    """
    logits = logits.float()
    if seen is not None:
        penalised = torch.where(logits > 0, logits / choice.repetition_penalty, logits * choice.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if choice.temperature > 0:
        logits = logits / choice.temperature
    normalisers = torch.logsumexp(logits, dim=-1)
    if choice.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities = (_left_in(logits, choice) - normalisers[:, None]).exp().double().cumsum(-1)
        aims = uniforms[:, None] * probabilities[:, -1:]
        tokens = torch.searchsorted(probabilities, aims, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - normalisers


def _left_in(logits: Tensor, choice: Choice) -> Tensor:
    """The logits with those set to minus infinity that top_k, top_p and min_p leave out."""
    if 0 < choice.top_k < logits.shape[-1]:
        least = logits.topk(choice.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if choice.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= choice.top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    if choice.min_p > 0:
        probabilities = logits.softmax(-1)
        least = choice.min_p * probabilities.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(probabilities < least, -math.inf)
    return logits
