"""Says whether two rows hold the same content, exactly or nearly."""

import hashlib
import json
import re
import zlib
from functools import cache
from typing import Any

from tuitune.conversation import Sample

# Signs but common punctuation are words of their own: 3+5 is not 3-5, nor one emoji another.
_WORDS = re.compile(r"[^\W_]+|[^\w\s.,;:!?'\"()]")


def digest(sample: Sample) -> int:
    """64 bits, equal for rows with the same turns or text, whatever their other columns hold."""
    if sample.messages is None:
        return hash64(sample.text or "")
    parts: list[str] = []
    if sample.desirable is not None:
        parts.append(str(sample.desirable))
    for turn in [*sample.messages, *(sample.rejected or [])]:
        parts += (turn["role"], (turn["content"] or "").strip())
        if thought := turn.get("reasoning_content"):
            parts.append(thought.strip())
        if calls := turn.get("tool_calls"):
            parts.append(json.dumps(calls, sort_keys=True, default=str))
    return hash64("\0".join(parts))


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prompt_digest(sample: Sample) -> int:
    """A 64-bit digest of the turns before the first reply, or of the first 200 characters of plain text."""
    if sample.messages is None:
        return hash64((sample.text or "")[:200])
    parts = []
    for turn in sample.messages:
        if turn["role"] == "assistant":
            break
        parts.append((turn["content"] or "").strip())
    return hash64("\0".join(parts))


BANDS = 3
_ROWS, _SHINGLE = 6, 4


def bands(text: str) -> list[int]:
    """Three 64-bit keys; two texts of which most word sequences agree share one of them.

    MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4): with 6 hashes a
    band and 3 bands, texts sharing 90% of their 4-word sequences share a key with probability 0.9, 50% with 0.05. Of a
    few words, all must agree, but for case, common punctuation and white space.
    """
    import numpy

    words = _WORDS.findall(text.lower())
    if len(words) < 2 * _SHINGLE:
        return [hash64(" ".join(words))] * BANDS
    hashes = numpy.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), numpy.uint64)
    sequences = numpy.zeros(len(hashes) - _SHINGLE + 1, numpy.uint64)
    for offset in range(_SHINGLE):
        sequences = sequences * numpy.uint64(31) + hashes[offset : offset + len(sequences)]
    mixed = (sequences[None, :] * _multipliers()[:, None]) >> numpy.uint64(16)
    lowest = mixed.min(axis=1).reshape(BANDS, _ROWS)
    return [hash64(f"{band}\0{row.tobytes().hex()}") for band, row in enumerate(lowest)]


@cache
def _multipliers() -> Any:
    import numpy

    return numpy.random.default_rng(1).integers(1, 2**63, BANDS * _ROWS, dtype=numpy.uint64) * numpy.uint64(
        2
    ) + numpy.uint64(1)


_BLOCK = 2**20


def repeats(values: Any) -> Any:
    """Whether each 64-bit value of an array occurs at an earlier place too. Takes 8 bytes of working memory a value."""
    import numpy

    ordered = numpy.sort(values)
    several = numpy.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    repeated = numpy.zeros(len(values), dtype=bool)
    seen = numpy.zeros(len(several), dtype=bool)
    for start in range(0, len(values) if len(several) else 0, _BLOCK):
        block = values[start : start + _BLOCK]
        at = numpy.minimum(numpy.searchsorted(several, block), len(several) - 1)
        places = numpy.flatnonzero(several[at] == block)
        indices, first = numpy.unique(at[places], return_index=True)
        repeated[start + places] = True
        repeated[start + places[first[~seen[indices]]]] = False
        seen[indices] = True
    return repeated


def among(values: Any, known: Any, where: Any = None) -> Any:
    """Whether each 64-bit value is among the known ones (of those where `where` is true); these may be many more."""
    import numpy

    ordered = numpy.unique(values)
    is_known = numpy.zeros(len(ordered), dtype=bool)
    for start in range(0, len(known) if len(ordered) else 0, _BLOCK):
        block = known[start : start + _BLOCK]
        if where is not None:
            block = block[where[start : start + _BLOCK]]
        at = numpy.minimum(numpy.searchsorted(ordered, block), len(ordered) - 1)
        is_known[at[ordered[at] == block]] = True
    return is_known[numpy.searchsorted(ordered, values)]
