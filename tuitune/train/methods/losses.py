"""What preference methods minimise, as functions of the log-probabilities of whole replies.

Every tensor is fp32, one value a pair (or a reply); log-probabilities are sums over a reply's counted tokens, in nats.
Sources: DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), robust DPO (Chowdhury et al. 2024), APO (D'Oosterlinck
et al. 2024), ORPO (Hong et al. 2024), SimPO (Meng et al. 2024), KTO (Ethayarajh et al. 2024).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tuitune.method_sections import DPO, KTO, ORPO, SimPO


@dataclass(frozen=True, slots=True)
class Replies:
    """Chosen and rejected replies: their log-probabilities, by the model and by its reference, and their tokens."""

    logps: Tensor
    reference: Tensor
    """0 where the method has no reference."""
    tokens: Tensor

    @property
    def ratio(self) -> Tensor:
        """By how much the model finds the reply likelier than its reference does."""
        return self.logps - self.reference

    @property
    def mean(self) -> Tensor:
        """Log-probability of a token."""
        return self.logps / self.tokens


def dpo_loss(method: DPO, kind: str, chosen: Replies, rejected: Replies) -> Tensor:
    """One loss of `method.loss_type` but sft, (pairs,)."""
    beta, margin = method.beta, chosen.ratio - rejected.ratio
    if kind == "sigmoid":
        return -logsigmoid(beta * margin)
    if kind == "hinge":
        return torch.relu(1 - beta * margin)
    if kind == "ipo":
        # By the token, as the paper's authors mean it: sums would weigh long replies more.
        difference = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
        return (difference - 1 / (2 * beta)) ** 2
    if kind == "robust":
        share = method.label_smoothing
        mixed = -(1 - share) * logsigmoid(beta * margin) + share * logsigmoid(-beta * margin)
        return mixed / (1 - 2 * share)
    if kind == "apo_zero":
        return 1 - torch.sigmoid(beta * chosen.ratio) + torch.sigmoid(beta * rejected.ratio)
    if kind == "apo_down":
        return torch.sigmoid(beta * chosen.ratio) + 1 - torch.sigmoid(beta * margin)
    assert kind == "sigmoid_norm", kind
    return -logsigmoid(beta * (chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens))


def orpo_log_odds(chosen: Replies, rejected: Replies) -> Tensor:
    """Logarithm of the odds ratio of a token of the chosen reply to one of the rejected, (pairs,)."""
    return chosen.mean - rejected.mean - (_log1mexp(chosen.mean) - _log1mexp(rejected.mean))


def _log1mexp(logps: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 (Mächler 2012); a reply that is certain counts as just not certain."""
    below = logps.clamp(max=-1e-6)
    # Each branch is computed for all, so what the other one is for must not make it infinite.
    near, far = below.clamp(min=-0.6931), below.clamp(max=-0.6931)
    return torch.where(below > -0.6931, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


def orpo_loss(method: ORPO, chosen: Replies, rejected: Replies) -> Tensor:
    """The preference part, to which imitating the chosen replies is added, (pairs,)."""
    return -method.beta * logsigmoid(orpo_log_odds(chosen, rejected))


def simpo_loss(method: SimPO, chosen: Replies, rejected: Replies) -> Tensor:
    """(pairs,)"""
    return -logsigmoid(method.beta * (chosen.mean - rejected.mean) - method.simpo_gamma)


def kto_loss(method: KTO, replies: Replies, desirable: Tensor, kl: Tensor) -> Tensor:
    """(replies,); `kl` is how far the model has drifted from its reference, a scalar without gradient."""
    sign = torch.where(desirable, 1.0, -1.0)
    drift = kl if method.loss_type == "kto" else torch.zeros_like(kl)
    weight = torch.where(desirable, method.desirable_weight, method.undesirable_weight)
    return weight * (1 - torch.sigmoid(method.beta * sign * (replies.ratio - drift)))
