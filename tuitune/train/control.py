"""What another thread may ask of a run and see of it, and how a run tells what happens."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.runs.events import Event

Emit = Callable[[Event], None]


@dataclass
class Control:
    """What another thread may ask of a run, and sees of it."""

    stop: threading.Event = field(default_factory=threading.Event)
    """End after this step, with a checkpoint and the adapter saved."""
    now: threading.Event = field(default_factory=threading.Event)
    """End as soon as the code can; what was saved before stays."""
    save: threading.Event = field(default_factory=threading.Event)
    """Save a checkpoint after this step."""
    pause: threading.Event = field(default_factory=threading.Event)
    """With `stop`: end for a while only, with a checkpoint and no adapter."""
    saving: threading.Event = field(default_factory=threading.Event)
    """Set by the run while a checkpoint or the adapter is written, which no deadline should break off."""
    recipe: Recipe | None = None
    """What to train from the next step on, where that was changed."""

    def agree(self) -> None:
        """With several processes: all take up, at the same step, what any of them was asked."""

    def is_asked_to_stop(self) -> bool:
        """Whether this process was asked, also where the others do not know it yet."""
        return self.stop.is_set()


class NotFinite(TuituneError):
    """A loss or a gradient norm is NaN or infinite: nothing that is trained from here on means anything."""


class WrongStart(TuituneError):
    """The first step is not what the method begins with, so what follows would not be what was asked for."""


class Stopped(Exception):
    """Raised inside the trainer to leave a step or an evaluation that was asked to end."""
