"""Supervised fine-tuning: replies to imitate, and text to continue."""

from typing import Any

from tuitune.conversation import Sample, UnusableRow
from tuitune.language import N_, _
from tuitune.masking import Masker
from tuitune.methods.lengths import fitted
from tuitune.methods.method import IDS, Encoded, Masks, Method, OverLength, Part


class SFT(Method):
    name = "sft"
    sentence = N_("Imitates the replies of the data: the place to begin.")
    columns = {"input_ids": IDS, "labels": IDS}  # noqa: RUF012

    def samples(self, sample: Sample) -> list[Sample]:
        if sample.desirable is False:
            raise UnusableRow(
                _("its reply is marked bad"), _("take it out, or set method.name to kto, which learns from it")
            )
        return [sample]

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        parts = fitted(masker, sample, masks[0], over_length)
        if isinstance(parts, UnusableRow):
            raise parts
        return [
            Encoded(
                {"input_ids": part.input_ids, "labels": part.labels},
                len(part.input_ids),
                part.trained_tokens,
                part.truncated,
                part.ended,
            )
            for part in parts
        ]

    def parts(self, encoded: Encoded) -> list[Part]:
        ids: Any = encoded.columns["input_ids"]
        labels: Any = encoded.columns["labels"]
        return [Part("", ids, labels)]
