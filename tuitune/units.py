"""Numbers as a person reads them, and writes them."""

import re

from tuitune.language import _


def gib(size: float) -> str:
    """Bytes as GiB (2**30)."""
    return f"{size / 2**30:.1f} GiB"


def size(count: float) -> str:
    """Bytes in the binary unit that gives one to three digits before the point."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def bytes_of(text: str) -> int:
    """Bytes that a person wrote: `500M` and `2G` are binary as in `split`, `500MB` and `2GB` decimal. Raises
    ValueError."""
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?b)?", text.strip(), re.IGNORECASE)
    if written is None:
        raise ValueError(text)
    base = 1000 if (written[3] or "").lower() == "b" else 1024
    return int(float(written[1]) * base ** " kmg".index(written[2].lower() or " "))


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return _("{seconds} s", seconds=whole)
    if whole < 3600:
        return _("{minutes} min {seconds:02} s", minutes=whole // 60, seconds=whole % 60)
    return _("{hours} h {minutes:02} min", hours=whole // 3600, minutes=whole % 3600 // 60)


def about(seconds: float) -> str:
    """A time that is only estimated, in one unit: `about 40 s`, `about 4 min` or `about 2.5 h`."""
    return _("about {time}", time=roughly(seconds))


def roughly(seconds: float) -> str:
    """The same without the word: `40 s`, `4 min` or `2.5 h`."""
    if seconds < 60:
        return _("{seconds} s", seconds=max(1, round(seconds)))
    if seconds < 5400:
        return _("{minutes:.0f} min", minutes=seconds / 60)
    return _("{hours:.1f} h", hours=seconds / 3600)


def count(number: float) -> str:
    """A count with K, M or B behind it."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'K' else limit):.3g}{unit}"
    return f"{number:,.0f}"
