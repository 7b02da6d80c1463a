"""How a run stands, and since when, as lists of runs show it."""

import time

from textual.content import Content

from tuitune.runs.summary import Summary
from tuitune.text import one_line

_GLYPHS = {
    "live": "▶",
    "done": "✔",
    "stopped": "■",
    "paused": "‖",
    **dict.fromkeys(("failed", "interrupted", "unreadable"), "✘"),
}
_STYLES = {
    "live": "$text-primary",
    "done": "$text-success",
    **dict.fromkeys(("failed", "interrupted", "unreadable"), "$text-error"),
}


def state_of(run: Summary) -> Content:
    """A run's state as glyph and word, in 14 characters."""
    return Content.styled(f"{state_text(run):<14}", state_style(run))


def state_text(run: Summary) -> str:
    return f"{_GLYPHS.get(run.status, '·')} {one_line(run.status, max_length=11)}"


def state_style(run: Summary) -> str:
    """Its style, as the theme names it; empty for none."""
    return _STYLES.get(run.status, "")


def ago(run: Summary) -> str:
    """How long ago something was last written to a run's record."""
    return rough(time.time() - run.changed_at) if run.changed_at else ""


def rough(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "1 min"
