"""Bars and sparklines drawn with block characters."""

from collections.abc import Sequence
from itertools import pairwise

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def bar(share: float, width: int) -> str:
    """A bar of `width` characters, `share` (0 to 1) of it full."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values in `width` characters or fewer, each stretch by its mean, from lowest to highest."""
    if not values:
        return ""
    stretches = min(width, len(values))
    edges = [round(index * len(values) / stretches) for index in range(stretches + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (high - low) or 1.0
    return "".join(_EIGHTHS[1 + round((mean - low) / scale * 7)] for mean in means)
