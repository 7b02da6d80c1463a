"""The worker thread: one job at a time, in order, so that the main thread can always answer."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuitune.runs.folder import Run
from tuitune.train.control import Control

Result = dict[str, Any]


class Cancelled(Exception):
    """Raised inside a job that noticed its `cancelled` flag."""


@dataclass(eq=False)
class Job:
    """Work for the worker thread; the callbacks are called in that thread.

    `part` sends something on the way; `cancelled`, and what a run is asked through `control`, are set from outside and
    read by the work.
    """

    command: str
    work: Callable[["Job"], Result]
    on_part: Callable[[dict[str, Any]], None]
    on_end: Callable[[Result | BaseException], None]
    then: list[str] = field(default_factory=list)
    """The words of the command that follows the run."""
    run: Run | None = None
    """The run that the work trains or has trained, from when it has its folder."""
    has_deadline: bool = False
    """Whether the run is given up where it does not end in time."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    control: Control = field(default_factory=Control)

    def part(self, **content: Any) -> None:
        self.on_part(content)

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled


class Worker:
    """A thread that runs queued jobs. It is a daemon: a process that wants to end does not wait for it."""

    def __init__(self, name: str = "worker") -> None:
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.current: Job | None = None

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def _run(self) -> None:
        while True:
            self._do(self._queue.get())

    def _do(self, job: Job) -> None:
        """In a frame of its own: an error holds the frames it came through, and so a model, until it is let go."""
        self.current = job
        end: Result | BaseException
        try:
            job.check()
            end = job.work(job)
        except BaseException as error:  # whatever it is, the client must hear of it and the thread must live on
            end = error
        self.current = None
        job.on_end(end)
