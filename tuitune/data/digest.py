"""Says whether two rows hold the same content, exactly or nearly."""

import hashlib
import re
import zlib
from functools import cache
from typing import Any

from tuitune.template import Sample

_WORDS = re.compile(r"\w+")


def text_of(sample: Sample) -> str:
    """Roles and contents of all turns, or the plain text."""
    if sample.messages is None:
        return sample.text or ""
    return "\0".join(part for turn in sample.messages for part in (turn["role"], (turn["content"] or "").strip()))


def digest(sample: Sample) -> int:
    """64 bits, equal for rows with the same turns or text, whatever their other columns hold."""
    return hash64(text_of(sample))


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def loose_digest(sample: Sample) -> int:
    """64 bits, equal for rows whose words are the same but for case, punctuation and white space."""
    return hash64(" ".join(_WORDS.findall(text_of(sample).lower())))


def prompt_digest(sample: Sample) -> int:
    """64 bits of what stands before the first reply; of plain text, of its first 200 characters."""
    if sample.messages is None:
        return hash64((sample.text or "")[:200])
    parts = []
    for turn in sample.messages:
        if turn["role"] == "assistant":
            break
        parts.append((turn["content"] or "").strip())
    return hash64("\0".join(parts))


_BANDS, _ROWS, _SHINGLE = 3, 6, 4


def bands(text: str) -> list[int]:
    """Three 64-bit keys; two texts of which most word sequences agree share one of them.

    MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4): with 6 hashes a
    band and 3 bands, texts sharing 90% of their 4-word sequences share a key with probability 0.9, 50% with 0.05.
    """
    import numpy

    words = _WORDS.findall(text.lower())
    if len(words) < 2 * _SHINGLE:
        return [hash64(f"{band}\0{text}") for band in range(_BANDS)]
    hashes = numpy.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), numpy.uint64)
    sequences = numpy.zeros(len(hashes) - _SHINGLE + 1, numpy.uint64)
    for offset in range(_SHINGLE):
        sequences = sequences * numpy.uint64(31) + hashes[offset : offset + len(sequences)]
    mixed = (sequences[None, :] * _multipliers()[:, None]) >> numpy.uint64(16)
    lowest = mixed.min(axis=1).reshape(_BANDS, _ROWS)
    return [hash64(f"{band}\0{row.tobytes().hex()}") for band, row in enumerate(lowest)]


@cache
def _multipliers() -> Any:
    import numpy

    return numpy.random.default_rng(1).integers(1, 2**63, _BANDS * _ROWS, dtype=numpy.uint64) * numpy.uint64(
        2
    ) + numpy.uint64(1)
