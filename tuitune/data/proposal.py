"""Proposes what to learn from a dataset, and says why: pairs, thumbs, checkable answers, raw text, or replies."""

import re
from itertools import islice

from tuitune.conversation import Sample
from tuitune.data.dataset import LOOKED_AT, Dataset
from tuitune.language import _

_CHECKABLE = re.compile(r"####|\\boxed\{|<answer>|\A\s*[-+]?[$€£]?\d[\d,.]*\s*%?\s*\Z")
"""An answer that a program can hold against another one: marked in the text, or a number alone."""
_MARKUP = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|\[INST\]|### ?(Instruction|Response|Human)|<start_of_turn>")
"""How chats that were written out as text look."""


def proposal(dataset: Dataset) -> dict[str, str]:
    """`method` and `method_reason`, from the first rows."""
    samples = [row.sample for row in islice(dataset.rows(stop=LOOKED_AT), LOOKED_AT) if row.sample]
    method, reason = _proposed(dataset.format.name, samples)
    return {"method": method, "method_reason": reason}


def _proposed(form: str, samples: list[Sample]) -> tuple[str, str]:
    if form == "preference":
        return "dpo", _("each row has a chosen and a rejected reply")
    if form == "labelled":
        return "kto", _("each reply is marked good or bad")
    if form == "prompt":
        return "grpo", _("the rows are prompts without replies")
    if form == "text":
        texts = [sample.text or "" for sample in samples]
        if texts and not any(map(_MARKUP.search, texts)):
            return "pretrain", _("the rows are raw text")
        return "sft", _("the rows are chats written out as text")
    answers = [_answer(sample) for sample in samples]
    if answers and sum(bool(_CHECKABLE.search(answer)) for answer in answers) > 0.9 * len(answers):
        return "grpo", _("the answers can be checked by a program")
    return "sft", _("the rows are replies to imitate")


def _answer(sample: Sample) -> str:
    """The only reply of a conversation; empty where it has none or several."""
    roles = [turn["role"] for turn in sample.messages or []]
    if sample.messages is None or roles.count("assistant") != 1:
        return ""
    return sample.messages[roles.index("assistant")]["content"] or ""
