"""A disk that is full: the oldest checkpoint gives way to the next one, then the run waits until there is room."""

import time
from collections.abc import Callable
from contextlib import suppress

from tuitune.errors import disk_is_full
from tuitune.language import _
from tuitune.machine.hardware import disk_free_bytes
from tuitune.runs.events import Evaluation, Event, Notice
from tuitune.runs.folder import Run
from tuitune.runs.machine_warnings import CHECKPOINT_BYTES_A_PARAMETER
from tuitune.runs.monitor import newest_checkpoint_bytes
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.control import Control, Emit
from tuitune.units import size

LONGEST_WAIT_S = 3600.0
"""A run that finds no room for that long fails, as its machine may cost money."""
_LONGEST_PAUSE_S = 30.0
_EVENT_BYTES = 2**20


class Room:
    """What a run does where its disk is full. Its methods belong to the thread that trains."""

    def __init__(self, run: Run, control: Control, emit: Emit) -> None:
        self.best: Callable[[], Evaluation | None] = lambda: None
        """The measurement whose checkpoint never gives way."""
        self._run = run
        self._control = control
        self._emit = emit
        self._attempts = 0

    def emit(self, event: Event) -> None:
        """Record an event, once there is room for it. Raises OSError as `again` does."""
        while True:
            try:
                self._emit(event)
                return
            except OSError as error:
                if not disk_is_full(error) or not self.makes_room(error, _("the record"), _EVENT_BYTES):
                    raise

    def makes_room(self, error: BaseException, what: str, needed_bytes: int) -> bool:
        """Whether to write again what failed with `error`: a checkpoint has given way to it, or there is room now.

        False where the run was asked to stop, before or while it waited. Raises `error` after an hour of waiting.
        """
        best = self.best()
        freed = checkpoints.give_way(self._run, best.step if best else None)
        folder = one_line(self._run.folder)
        if freed is not None:
            self._tell(
                _(
                    "The disk of {folder} is full: {checkpoint} was removed for the next one.",
                    folder=folder,
                    checkpoint=freed.name,
                )
            )
            return True
        if self._control.is_asked_to_stop():
            return False
        self._tell(
            _(
                "The disk of {folder} is full: {what} takes {needed}, {free} are free. The run waits for room, for "
                "up to an hour; a stop saves its adapter alone, if that fits.",
                folder=folder,
                what=what,
                needed=size(needed_bytes),
                free=size(disk_free_bytes(self._run.folder)),
            )
        )
        began, pause = time.monotonic(), min(_LONGEST_PAUSE_S, 2.0**self._attempts)
        self._attempts += 1  # free bytes do not tell of a quota: what fails again and again is tried less often
        while time.monotonic() - began < LONGEST_WAIT_S:
            time.sleep(0.2)
            if self._control.is_asked_to_stop():
                return False
            if time.monotonic() - began >= pause and disk_free_bytes(self._run.folder) >= needed_bytes:
                waited_s = time.monotonic() - began
                self._tell(_("There is room again: the run goes on after {seconds:.0f} s.", seconds=waited_s))
                return True
        raise error

    def saved(self) -> None:
        """Something was saved, so the next wait begins anew."""
        self._attempts = 0

    def leave_out(self, step: int) -> None:
        """Report that the checkpoint of a stopping run is not saved, and let the run end with its adapter alone."""
        self._control.pause.clear()  # what is paused goes on from a checkpoint
        self._tell(
            _(
                "The checkpoint of step {step} does not fit on the disk: if there is room, the adapter alone is saved.",
                step=step,
            )
        )

    def checkpoint_bytes(self, trainable_parameters: int) -> int:
        """What the next checkpoint takes: as much as the newest one, or what its weights and Adam's moments come to."""
        return newest_checkpoint_bytes(self._run) or trainable_parameters * CHECKPOINT_BYTES_A_PARAMETER

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # there may be no room for this either
            self._emit(Notice(text=text))
