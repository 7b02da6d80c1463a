"""What becomes of a row longer than max_length: cut, left out, or split between its turns."""

from typing import Literal

from tuitune.language import _
from tuitune.masking import IGNORED, Conversation, Masked, Masker, Sample, UnusableRow


def fitted(
    masker: Masker, sample: Sample, result: Masked | UnusableRow, over_length: Literal["cut", "drop", "split"]
) -> list[Masked] | UnusableRow:
    """The rows to train in place of one row, or why there are none; `result` is the row as the masker cut it."""
    if isinstance(result, UnusableRow) and not result.over_length:
        return result
    if isinstance(result, Masked) and not result.truncated:
        return [result]
    if over_length == "drop":
        return UnusableRow(
            _("it is longer than max_length ({max_length})", max_length=masker.max_length),
            _("raise data.max_length, or set data.over_length to cut or split"),
        )
    if over_length == "split":
        parts = _split(masker, sample)
        return parts or UnusableRow(
            _("no part of it with a reply fits max_length ({max_length})", max_length=masker.max_length),
            _("raise data.max_length"),
        )
    return result if isinstance(result, UnusableRow) else [result]


def _split(masker: Masker, sample: Sample) -> list[Masked]:
    """Parts that fit, each beginning with the system message and a user turn; no token is trained twice."""
    if sample.messages is None:
        whole = masker.encode_uncut(sample)
        size = masker.max_length
        pieces = [
            (whole.input_ids[i : i + size], whole.labels[i : i + size]) for i in range(0, len(whole.labels), size)
        ]
        return [Masked(ids, labels, False) for ids, labels in pieces if labels.count(IGNORED) < len(labels)]
    system = sample.messages[:1] if sample.messages[0]["role"] == "system" else []
    exchanges = _exchanges(sample.messages[len(system) :])
    parts: list[Masked] = []
    at = 0
    while at < len(exchanges):
        best: Masked | None = None
        count = 0
        while at + count < len(exchanges):
            turns = [turn for exchange in exchanges[at : at + count + 1] for turn in exchange]
            try:
                masked = masker.encode(system + turns, sample.tools)
            except UnusableRow:
                masked = None
            if masked is None or masked.truncated:
                # A single exchange that does not fit is cut like any other row.
                best = best or masked
                break
            best, count = masked, count + 1
        if best is not None:
            parts.append(best)
        at += max(count, 1)
    return parts


def _exchanges(messages: Conversation) -> list[Conversation]:
    """Each user turn with all that follows up to the next one."""
    exchanges: list[Conversation] = []
    for message in messages:
        if message["role"] == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    return exchanges
