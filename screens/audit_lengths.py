"""How long the rows of a dataset are, as the audit draws it."""

from typing import Any

from textual.content import Content

from screens.widgets.bars import bar
from tuitune.language import _

_BAR_WIDTH = 36
_MUTED = "$foreground 60%"


def longer_lengths(audit: dict[str, Any], limit: int) -> list[tuple[int, float, int | None]]:
    """Values of max_length above `limit`, the share of rows that each keeps whole, and the bytes that it needs."""
    kept = {length["max_length"]: (length["share"], length["memory_bytes"]) for length in audit["lengths"]}
    return [(length, share, memory) for length, (share, memory) in sorted(kept.items()) if length > limit]


def lengths(audit: dict[str, Any], limit: int) -> Content:
    """The number of rows in each range of lengths, with a line where max_length cuts."""
    share = f"{audit['trained_share']:.0%}"
    percentiles = {int(percentile): value for percentile, value in audit["token_percentiles"].items()}
    usual = _("Rows by their tokens")
    if percentiles:
        usual = _(
            "Rows by their tokens: half have at most {half:,}, 95 % at most {most:,}",
            half=percentiles[50],
            most=percentiles[95],
        )
    lines = [
        Content(
            _(
                "{used:,} of {rows:,} rows are used: {tokens:,} tokens, {trained:,} trained ({share}); "
                "{truncated:,} longer than max_length {limit:,}",
                used=audit["used"],
                rows=audit["rows"],
                tokens=audit["tokens"],
                trained=audit["trained_tokens"],
                share=share,
                truncated=audit["truncated"],
                limit=limit,
            )
        ),
        Content.styled(usual, _MUTED),
    ]
    buckets = audit["length_histogram"]
    most = max((count for _longest, count in buckets), default=1)
    shortest = 1
    for longest, count in buckets:
        drawn = bar(count / most, _BAR_WIDTH).replace("░", " ")
        name = f"{shortest:,}–{longest:,}"
        style = "$success" if longest <= limit else "$warning"
        lines.append(Content.assemble((f"{name:>15} ", _MUTED), (drawn, style), f" {count:,}"))
        if longest == limit and audit["truncated"]:
            cut = f"✂ max_length {limit:,} "
            below = _("rows below are cut")
            lines.append(Content.styled(f"{cut:>16}{'─' * _BAR_WIDTH} {below}", "$text-warning"))
        shortest = longest + 1
    return Content("\n").join(lines)
