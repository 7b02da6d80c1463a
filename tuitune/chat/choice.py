"""How the next token is chosen from a model's logits."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 256


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from its probabilities; each option as in transformers' `generate`."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def for_generate(self) -> dict[str, Any]:
        """The arguments of transformers' `generate` that mean the same, whatever the model's own settings are."""
        if self.temperature == 0:
            drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            drawn = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "min_p": self.min_p or None,
            }
        return {**drawn, "repetition_penalty": self.repetition_penalty}


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
        tokens = _drawn((_left_in(logits, choice) - normalisers[:, None]).exp(), uniforms)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - normalisers


def _drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The places (rows,) where the sum of `probabilities` (rows, vocabulary), of whatever total, passes its share.

    First among blocks of the vocabulary and then within the block, since one long sum is slow on a GPU and imprecise.
    """
    rows, vocabulary = probabilities.shape
    padded = F.pad(probabilities, (0, -vocabulary % _BLOCK)).view(rows, -1, _BLOCK)
    sums = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    aims = uniforms[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, aims, right=True).clamp(max=sums.shape[-1] - 1)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), torch.zeros_like(aims))
    inside = padded.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    place = torch.searchsorted(inside, aims - before, right=True).clamp(max=_BLOCK - 1)
    tokens: Tensor = (block * _BLOCK + place)[:, 0].clamp(max=vocabulary - 1)
    return tokens


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
