"""Says whether two rows hold the same content, exactly or nearly."""

import hashlib
import re

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
