"""Single replies marked good or bad: what KTO learns from."""

from typing import Any, Literal

from tuitune import method_sections
from tuitune.conversation import Sample, UnusableRow
from tuitune.language import N_, _
from tuitune.masking import Masker
from tuitune.methods.method import IDS, Encoded, Masks, Method, Metric, OverLength, Part
from tuitune.methods.pairs import WHY_NOT_SHARDED, Pairs, chunked_logits_bytes, context, require_mask
from tuitune.recipe import Recipe

_PAIRS = Pairs()


class KTO(Method):
    """A row is one reply: `input_ids`, `labels`, and `desirable` ([1] or [0]); a pair counts as one of each."""

    name = "kto"
    sentence = N_("Learns from single replies with a thumb up or down, where there is no pair for each prompt.")
    columns = {"input_ids": IDS, "labels": IDS, "desirable": IDS}  # noqa: RUF012
    why_not_sharded = WHY_NOT_SHARDED
    loss_says = N_("The loss begins at 0.5, and falls as good replies become likelier than bad ones.")
    metrics = (
        Metric("rewards/margins", N_("margin"), N_("By how much good replies beat bad ones: it should rise.")),
        Metric(
            "rewards/chosen",
            N_("good"),
            N_("Reward of the good replies. It often falls too: the margin is what counts."),
        ),
        Metric(
            "rewards/rejected", N_("bad"), N_("Reward of the bad replies: it should fall below that of the good ones.")
        ),
        Metric("kl", N_("kl"), N_("How far the model has drifted from what it was, in nats a reply.")),
        Metric("logps/chosen", N_("logp good"), N_("Log-probability of the good replies."), ".1f"),
        Metric("logps/rejected", N_("logp bad"), N_("Log-probability of the bad replies."), ".1f"),
    )

    def train_on(self, recipe: Recipe) -> Literal["assistant", "last", "all"]:
        return "assistant"

    def samples(self, sample: Sample) -> list[Sample]:
        if sample.rejected is not None:
            return _PAIRS.samples(sample)
        if sample.messages is None or sample.desirable is None:
            raise UnusableRow(
                _("it has no mark whether its reply is good"),
                _("map the column with the marks as label in data.columns, or choose another method (method.name)"),
            )
        roles = [turn["role"] for turn in sample.messages]
        if "assistant" not in roles:
            raise UnusableRow(_("it has no reply"), _("add one, or take the row out"))
        last = len(roles) - 1 - roles[::-1].index("assistant")
        return [Sample(context(sample.messages, last), sample.tools)]

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        marks = [True, False] if sample.rejected is not None else [bool(sample.desirable)]
        rows = []
        for mask, desirable in zip(masks, marks, strict=True):
            masked = require_mask(mask, masker, over_length, "good" if desirable else "bad")
            columns: dict[str, list[int] | str] = {
                "input_ids": masked.input_ids,
                "labels": masked.labels,
                "desirable": [int(desirable)],
            }
            rows.append(Encoded(columns, len(masked.input_ids), masked.trained_tokens, masked.truncated, masked.ended))
        return rows

    def parts(self, encoded: Encoded) -> list[Part]:
        ids: Any = encoded.columns["input_ids"]
        labels: Any = encoded.columns["labels"]
        return [Part("good" if encoded.columns["desirable"] == [1] else "bad", ids, labels)]

    def logits_bytes(self, vocabulary: int, batch_tokens: int) -> int | None:
        return chunked_logits_bytes(vocabulary, batch_tokens)

    def advice(self, recipe: Recipe) -> Any:
        from tuitune.methods.advice import ThumbAdvice

        section = recipe.method
        assert isinstance(section, method_sections.KTO)
        return ThumbAdvice(section.desirable_weight, section.undesirable_weight)
