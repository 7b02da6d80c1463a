"""How a run stands, and since when, as lists of runs show it."""

import time

from textual.content import Content

from screens.widgets.fit import fit
from tuitune.language import N_, _
from tuitune.runs.summary import Summary
from tuitune.text import one_line

_STATES = (
    N_("live"),
    N_("done"),
    N_("stopped"),
    N_("paused"),
    N_("failed"),
    N_("interrupted"),
    N_("unreadable"),
)
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
    """A run's state as glyph and word, in 14 cells."""
    return Content.styled(fit(state_text(run), 14), state_style(run))


def state_text(run: Summary) -> str:
    return f"{_GLYPHS.get(run.status, '·')} {_(one_line(run.status, max_length=11))}"


def state_style(run: Summary) -> str:
    """Its style, as the theme names it; empty for none."""
    return _STYLES.get(run.status, "")


def ago(run: Summary) -> str:
    """How long ago something was last written to a run's record."""
    return rough(time.time() - run.changed_at) if run.changed_at else ""


def rough(seconds: float) -> str:
    """A time in its largest unit."""
    if seconds >= 86_400:
        return _("{days:.0f} d", days=seconds / 86_400)
    if seconds >= 3_600:
        return _("{hours:.0f} h", hours=seconds / 3_600)
    return _("{minutes:.0f} min", minutes=max(1, seconds / 60))
