"""How long the rows of a dataset are, as the audit draws it."""

from typing import Any

from textual.content import Content

from screens.widgets.bars import bar

_BAR_WIDTH = 36
_MUTED = "$foreground 60%"


def longer_lengths(found: dict[str, Any], limit: int) -> list[tuple[int, float, int | None]]:
    """Values of max_length above `limit`, the share of rows that each keeps whole, and the bytes that it needs."""
    kept = {each["max_length"]: (each["share"], each["memory_bytes"]) for each in found["lengths"]}
    return [(length, *what) for length, what in sorted(kept.items()) if length > limit]


def lengths(found: dict[str, Any], limit: int) -> Content:
    """How many rows are how long, with a line where max_length cuts."""
    share = f"{found['trained_share']:.0%}"
    at = {int(percentile): value for percentile, value in found["token_percentiles"].items()}
    usual = f": half have at most {at[50]:,}, 95 % at most {at[95]:,}" if at else ""
    lines = [
        Content(
            f"{found['used']:,} of {found['rows']:,} rows are used: {found['tokens']:,} tokens, "
            f"{found['trained_tokens']:,} trained ({share}); {found['truncated']:,} longer than max_length {limit:,}"
        ),
        Content.styled(f"Rows by their tokens{usual}", _MUTED),
    ]
    buckets = found["length_histogram"]
    most = max((count for _, count in buckets), default=1)
    shortest = 1
    for longest, count in buckets:
        drawn = bar(count / most, _BAR_WIDTH).replace("░", " ")
        name = f"{shortest:,}–{longest:,}"
        style = "$success" if longest <= limit else "$warning"
        lines.append(Content.assemble((f"{name:>15} ", _MUTED), (drawn, style), f" {count:,}"))
        if longest == limit and found["truncated"]:
            cut = f"✂ max_length {limit:,} "
            lines.append(Content.styled(f"{cut:>16}{'─' * _BAR_WIDTH} rows below are cut", "$text-warning"))
        shortest = longest + 1
    return Content("\n").join(lines)
