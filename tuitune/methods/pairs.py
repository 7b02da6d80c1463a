"""Pairs of replies to one prompt, a chosen and a rejected one: what DPO, ORPO and SimPO learn from."""

from collections.abc import Sequence
from typing import Any, Literal

from tuitune.chat_template.template import common_prefix
from tuitune.conversation import Conversation, Sample, UnusableRow
from tuitune.language import N_, _
from tuitune.masking import IGNORED, Masked, Masker
from tuitune.methods.method import IDS, Encoded, Masks, Method, Metric, OverLength, Part
from tuitune.recipe import Recipe

REWARDS = (
    Metric(
        "rewards/margins", N_("margin"), N_("By how much the chosen replies beat the rejected ones: it should rise.")
    ),
    Metric(
        "rewards/accuracies",
        N_("accuracy"),
        N_("Share of pairs with the chosen reply ahead; only 0 or 1 means a step has very few pairs."),
    ),
    Metric(
        "rewards/chosen",
        N_("chosen"),
        N_("Reward of the chosen replies. It often falls too: the margin is what counts."),
    ),
    Metric(
        "rewards/rejected",
        N_("rejected"),
        N_("Reward of the rejected replies: it should fall below that of the chosen."),
    ),
    Metric("logps/chosen", N_("logp chosen"), N_("Log-probability of the chosen replies."), ".1f"),
    Metric("logps/rejected", N_("logp rejected"), N_("Log-probability of the rejected replies."), ".1f"),
)


WHY_NOT_SHARDED = N_("its passes may differ in number from card to card")

LOGITS_AT_ONCE = 2**26
"""Elements of the logits that one chunk of tokens may have: 256 MiB in fp32."""
_BYTES_A_LOGIT = 23
"""In fp32 and 16-bit, with their gradients, while a chunk is computed again on the way back."""


def chunked_logits_bytes(vocabulary: int, batch_tokens: int) -> int:
    """What computing log-probabilities in chunks of tokens holds at its peak."""
    return _BYTES_A_LOGIT * min(vocabulary * batch_tokens, LOGITS_AT_ONCE)


class Pairs(Method):
    """A row is `chosen_` and `rejected_` × `input_ids` and `labels`, both with the prompt, which is not counted."""

    columns = {f"{side}_{name}": IDS for side in ("chosen", "rejected") for name in ("input_ids", "labels")}  # noqa: RUF012
    metrics: Sequence[Metric] = REWARDS
    sequences_a_row = 2
    why_not_sharded = WHY_NOT_SHARDED

    def train_on(self, recipe: Recipe) -> Literal["assistant", "last", "all"]:
        return "assistant"

    def samples(self, sample: Sample) -> list[Sample]:
        if sample.messages is None or sample.rejected is None:
            raise UnusableRow(
                _("it is no pair of a chosen and a rejected reply"),
                _("map them in data.columns, or choose another method than {name} (method.name)", name=self.name),
            )
        shared = common_prefix(sample.messages, sample.rejected)
        if len(sample.messages) == len(sample.rejected) == shared:
            raise UnusableRow(
                _("its chosen and rejected replies are the same"), _("take it out, for it teaches nothing")
            )
        for turns, side in ((sample.messages, "chosen"), (sample.rejected, "rejected")):
            if not any(turn["role"] == "assistant" for turn in turns[shared:]):
                raise UnusableRow(
                    _("its {side} side has no reply of its own", side=_(side)), _("add a reply, or take the row out")
                )
        return [Sample(context(turns, shared), sample.tools) for turns in (sample.messages, sample.rejected)]

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        chosen, rejected = (
            require_mask(mask, masker, over_length, side) for mask, side in zip(masks, _SIDES, strict=True)
        )
        return [
            Encoded(
                {
                    "chosen_input_ids": chosen.input_ids,
                    "chosen_labels": chosen.labels,
                    "rejected_input_ids": rejected.input_ids,
                    "rejected_labels": rejected.labels,
                },
                len(chosen.input_ids) + len(rejected.input_ids),
                chosen.trained_tokens + rejected.trained_tokens,
                chosen.truncated or rejected.truncated,
                chosen.ended and rejected.ended,
            )
        ]

    def parts(self, encoded: Encoded) -> list[Part]:
        ids: list[Any] = [encoded.columns[f"{side}_input_ids"] for side in _SIDES]
        labels: list[Any] = [encoded.columns[f"{side}_labels"] for side in _SIDES]
        start = shared_tokens(ids, labels)
        prompt = Part("prompt", ids[0][:start], labels[0][:start])
        sides = [Part(side, ids[i][start:], labels[i][start:]) for i, side in enumerate(_SIDES)]
        return [prompt, *sides]

    def batch_tokens(self, lengths: Sequence[int], *, padding_free: bool) -> int:
        # A padded pass fills every sequence up to the longest, which may be nearly all of its pair.
        return sum(lengths) if padding_free else len(lengths) * lengths[0]

    def logits_bytes(self, vocabulary: int, batch_tokens: int) -> int | None:
        return chunked_logits_bytes(vocabulary, batch_tokens)

    def advice(self, recipe: Recipe) -> Any:
        from tuitune.methods.advice import PairAdvice

        return PairAdvice()


_SIDES: tuple[Literal["chosen", "rejected"], ...] = ("chosen", "rejected")


class DPO(Pairs):
    name = "dpo"
    sentence = N_("Learns from pairs which of two replies people prefer, and keeps close to the model as it was.")
    loss_says = N_(
        "The loss begins at 0.693, where neither reply is ahead. Rewards of both sides often fall: watch the margin."
    )


class ORPO(Pairs):
    name = "orpo"
    sentence = N_(
        "Learns from pairs in one go with imitating the chosen replies, for a base model that was not tuned yet."
    )
    metrics = (
        *REWARDS,
        Metric("nll_loss", N_("nll"), N_("Loss of imitating the chosen replies alone.")),
        Metric("log_odds_ratio", N_("log odds"), N_("Preference part of the loss: it rises towards 0.")),
    )


class SimPO(Pairs):
    name = "simpo"
    sentence = N_(
        "Learns from pairs like dpo, with no reference model: less memory, and more drift from the model as it was."
    )


def context(turns: Conversation, count: int) -> Conversation:
    """The turns, with no reply among the first `count` counted."""
    marked = [turn.copy() for turn in turns]
    for turn in marked[:count]:
        if turn["role"] == "assistant":
            turn["weight"] = 0
    for turn in marked[count:]:
        turn.pop("weight", None)
    return marked


def require_mask(mask: Masked | UnusableRow, masker: Masker, over_length: OverLength, side: str) -> Masked:
    """The mask of a reply, which over_length does not forbid. Raises UnusableRow."""
    if isinstance(mask, UnusableRow):
        reason, remedy = mask.sentence.values["reason"], mask.sentence.values["remedy"]
        raise UnusableRow(
            _("its {side} side: {reason}", side=_(side), reason=reason), remedy, over_length=mask.over_length
        )
    if mask.truncated and over_length != "cut":
        raise UnusableRow(
            _("its {side} side is longer than max_length ({max_length})", side=_(side), max_length=masker.max_length),
            _("raise data.max_length, or set data.over_length to cut"),
            over_length=True,
        )
    return mask


def shared_tokens(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> int:
    """How many tokens both sequences begin with before the first one that is counted."""
    count = 0
    for one, other, first, second in zip(ids[0], ids[1], labels[0], labels[1], strict=False):
        if one != other or first != IGNORED or second != IGNORED:
            break
        count += 1
    return count
