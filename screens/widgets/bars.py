"""Bars drawn with block characters."""


def bar(share: float, width: int) -> str:
    """A bar of `width` characters, `share` (0 to 1) of it full."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)
