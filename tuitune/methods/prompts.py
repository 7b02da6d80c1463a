"""Prompts that the model answers itself, and what rewards need to judge the answers: what GRPO learns from."""

import json
from typing import Any

from tuitune.conversation import Sample, UnusableRow
from tuitune.masking import IGNORED, Masker
from tuitune.methods.method import IDS, TEXT, Encoded, Masks, Method, OverLength, Part


class GRPO(Method):
    """A row is `prompt_ids`, the tokens up to where a reply begins, and `row`: as JSON, its `prompt` (messages) and
    every column of the data as it stands there, for the rewards.
    """

    name = "grpo"
    sentence = "Answers prompts itself and learns from rewards that check the answers: mathematics, code, formats."
    columns = {"prompt_ids": IDS, "row": TEXT}  # noqa: RUF012
    loss_says = "The loss is about 0 by construction and says nothing of progress: watch the reward."

    def samples(self, sample: Sample) -> list[Sample]:
        if prompt_of(sample) is None:
            raise UnusableRow("it has no prompt to answer", "map the question's column as prompt in data.columns")
        return []

    def encode(self, masker: Masker, sample: Sample, masks: Masks, over_length: OverLength) -> list[Encoded]:
        prompt = prompt_of(sample)
        assert prompt is not None
        ids = masker.prompt_ids(prompt, sample.tools)
        if len(ids) > masker.max_length:
            raise UnusableRow(
                f"its prompt has {len(ids):,} tokens, more than max_length ({masker.max_length})",
                "raise data.max_length, or take it out",
                over_length=True,
            )
        row = json.dumps({**(sample.columns or {}), "prompt": prompt}, ensure_ascii=False, default=str)
        return [Encoded({"prompt_ids": ids, "row": row}, len(ids), 0)]

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
