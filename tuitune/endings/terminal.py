"""Calls for a user through the terminal: the bell, and a desktop notification by the sequence that it understands."""

import os
from collections.abc import Mapping

from tuitune.text import one_line

BELL = "\x07"


def notification(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The control sequence that has the terminal notify with this text, of which it obeys nothing.

    kitty reads OSC 99, foot and rxvt OSC 777, Ghostty, WezTerm and iTerm OSC 9; one that is not known gets 9 and 777.
    A terminal leaves out a sequence that it does not know; tmux passes it on where `allow-passthrough` is set.
    """
    message = payload(text)
    terminal = f"{environment.get('TERM', '')} {environment.get('TERM_PROGRAM', '')}".lower()
    if "kitty" in terminal:
        sequence = f"\x1b]99;i=tuitune:d=1;{message}\x1b\\"
    elif "foot" in terminal or "rxvt" in terminal:
        sequence = f"\x1b]777;notify;tuitune;{message}\x07"
    elif any(name in terminal for name in ("ghostty", "wezterm", "iterm")):
        sequence = f"\x1b]9;{message}\x07"
    else:
        sequence = f"\x1b]9;{message}\x07\x1b]777;notify;tuitune;{message}\x07"
    if environment.get("TMUX"):
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence


def title(text: str) -> str:
    """The control sequence that sets the title of the terminal's window."""
    return f"\x1b]2;{payload(text)}\x07"


def payload(text: str) -> str:
    """What may stand inside a control sequence: one line without controls or the separators of OSC 777."""
    return one_line(text, max_length=120).replace(";", ",")
