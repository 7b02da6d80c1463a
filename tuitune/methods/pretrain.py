"""Continued pretraining: raw text, one document behind the other."""

from typing import Any

from tuitune.conversation import Sample, UnusableRow
from tuitune.language import N_, _
from tuitune.masking import Masker
from tuitune.methods.method import Encoded, Masks, OverLength
from tuitune.methods.packing import packed
from tuitune.methods.sft import SFT
from tuitune.recipe import Recipe


class Pretrain(SFT):
    """A row of the data is a document, kept whole; the trainer gets them packed to max_length."""

    name = "pretrain"
    sentence = N_("Goes on with pretraining on raw text: a new language, or the literature of a field.")
    loss_says = N_("The loss is that of every token of the text; it falls slowly.")

    def samples(self, sample: Sample) -> list[Sample]:
        if sample.text is None:
            raise UnusableRow(
                _("it is a conversation, and pretrain learns from raw text"),
                _("map its column as text in data.columns, or set method.name to sft"),
            )
        return [sample]

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        mask = masks[0]
        if isinstance(mask, UnusableRow):
            raise mask
        if mask.truncated and over_length == "drop":
            raise UnusableRow(
                _("it is longer than max_length ({max_length})", max_length=masker.max_length),
                _("raise data.max_length, or set data.over_length to split"),
                over_length=True,
            )
        whole = masker.encode_uncut(sample) if mask.truncated else mask
        return [
            Encoded({"input_ids": whole.input_ids, "labels": whole.labels}, len(whole.input_ids), whole.trained_tokens)
        ]

    def arranged(self, rows: Any, recipe: Recipe) -> Any:
        return packed(rows, recipe.data.max_length, recipe.train.seed)
