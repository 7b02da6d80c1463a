"""A run on several cards: the session starts a process for each, and is told by them, stops them and outlives them."""

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.hardware import Gpu, usable_cores
from tuitune.paths import own_folder, temporary_folder
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished
from tuitune.runs.folder import Run
from tuitune.session.rank_messages import Ended, Orders, Start, message_of, resumption_to_data
from tuitune.text import one_line, safe_text
from tuitune.train import checkpoints
from tuitune.train.autotune import with_less_memory
from tuitune.train.control import Control, Emit
from tuitune.train.ranks import SOCKETS
from tuitune.train.resume import Resumption, resumption_of
from tuitune.train.run import tell_less_memory

_POLL_SECONDS = 0.1
_GATHERING_SECONDS = 1.0
"""For so long the ends of all processes are gathered once one has ended: the first to be noticed may be a victim."""
_LAST_LINES = 20
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which libraries would take a process for one of several."""


@dataclass(eq=False)
class _Process:
    """One of the processes."""

    rank: int
    place: str
    """The card it works on, in words."""
    process: subprocess.Popen[bytes]
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    ended: Ended | None = None

    @property
    def has_failed(self) -> bool:
        if self.ended is not None:
            return self.ended.how != "done"
        return self.process.poll() is not None


class RanksEnded(TuituneError):
    """A process that trains a run has died."""


def train_on_ranks(
    recipe: Recipe,
    run: Run,
    control: Control,
    emit: Emit,
    cards: Sequence[Gpu | None],
    *,
    resumed: Resumption | None = None,
    on_start: Callable[[list[int]], None] = lambda pids: None,
) -> None:
    """Train as `tuitune.train.run.train` does, each of `cards` (None: the CPU) its share.

    `on_start` is given the ids of the processes, by rank. Raises TuituneError where one of them fails or dies; the
    others are ended then. Where memory runs out on one, all go on from the newest checkpoint with less of it.
    """
    while True:
        ending = _train_once(recipe, run, control, emit, cards, resumed, on_start)
        if ending is None:
            return
        hungry = run.resolved()
        recipe = with_less_memory(hungry)
        run.keep_resolved(recipe)
        step, attempt = run.history().step, resumed.attempt if resumed else 1
        resumed = replace(resumption_of(run, emit), attempt=attempt)
        tell_less_memory(hungry, recipe, step, resumed.checkpoint, emit)


def _train_once(
    recipe: Recipe,
    run: Run,
    control: Control,
    emit: Emit,
    cards: Sequence[Gpu | None],
    resumed: Resumption | None,
    on_start: Callable[[list[int]], None],
) -> Ended | None:
    """Train to the end; how a process has ended where memory ran out. Raises TuituneError."""
    world = len(cards)
    are_cards = len({card.uuid for card in cards if card is not None}) == world
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=own_folder(temporary_folder() / "ranks")))  # 0700
    messages: queue.SimpleQueue[tuple[_Process, bytes]] = queue.SimpleQueue()
    processes: list[_Process] = []
    try:
        for rank in range(world):
            process = _spawn(rank, world, cards[rank], messages)
            processes.append(process)
            start = Start(
                rank,
                world,
                are_cards,
                str(folder / "meeting"),
                str(run.folder),
                recipe.model_dump(mode="json"),
                resumption_to_data(resumed),
            )
            _tell(process, start.to_line())
        on_start([process.process.pid for process in processes])
        return _watch(processes, run, control, emit, messages)
    finally:
        for process in processes:
            process.process.kill()
        for process in processes:
            process.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.tidy(run)


def _watch(
    processes: list[_Process],
    run: Run,
    control: Control,
    emit: Emit,
    messages: "queue.SimpleQueue[tuple[_Process, bytes]]",
) -> Ended | None:
    """Pass on what the processes tell, and what the run is asked, until all have ended or one has failed."""
    first, orders = processes[0], Orders()
    began = time.monotonic()
    deadline: float | None = None
    while True:
        if control.now.is_set():
            _stopped_now(run, emit, time.monotonic() - began)
            return None
        orders = _pass_on(first, control, orders)
        with contextlib.suppress(queue.Empty):
            process, line = messages.get(timeout=_POLL_SECONDS)
            message = message_of(line)
            if isinstance(message, Ended):
                process.ended = message
            elif message is not None and process is first:
                emit(message)
            continue  # whatever has arrived comes before what is concluded from it
        if first.ended is not None and first.ended.how == "done":  # which it is once all have come to the end
            return None
        if any(process.has_failed for process in processes):
            deadline = deadline or time.monotonic() + _GATHERING_SECONDS
            if time.monotonic() > deadline or all(process.ended is not None for process in processes):
                return _judged(processes, run)


def _judged(processes: list[_Process], run: Run) -> Ended | None:
    """The failure to report, of those that came together. Raises TuituneError for all but lack of memory."""
    ends = [process.ended for process in processes if process.ended is not None and process.ended.how != "done"]
    for kind in ("out of memory", "unusable"):
        for ending in ends:
            if ending.how == kind:
                if kind == "unusable":
                    raise UnusableInput(ending.text)
                return ending
    dead = [process for process in processes if process.ended is None and process.process.poll() is not None]
    if dead:
        raise RanksEnded(_death_of(dead[0], len(processes), run))
    at_fault = next((ending for ending in ends if ending.is_own_fault), ends[0])
    raise TuituneError(at_fault.text)


def _death_of(process: _Process, world: int, run: Run) -> str:
    code = process.process.returncode
    ending = f"was ended by signal {-code}" if code < 0 else f"has ended with status {code}"
    if code == -9:
        ending = "was killed by signal 9 (often: memory ran out)"
    words = " / ".join(line for line in process.last_lines if line.strip()) or "none"
    saved = checkpoints.checkpoints_of(run)
    where = saved[-1].name if saved else "the start, as nothing was saved yet"
    return (
        f"The process on {process.place} ({process.rank + 1} of {world}) {ending}; the others were ended. Its last "
        f"words: {one_line(words[-300:], max_length=300)}. `tuitune resume {one_line(run.name)}` goes on from {where}."
    )


def _stopped_now(run: Run, emit: Emit, seconds: float) -> None:
    """Emit the event that a run in one process emits when it is stopped in the middle of a step."""
    saved = "adapter" if run.adapter.is_dir() else None
    emit(Finished(status="stopped", step=run.history().step, seconds=seconds, adapter=saved))


def _pass_on(first: _Process, control: Control, last_orders: Orders) -> Orders:
    """Tell the first process what is new in what the run is asked; returns all that it was told."""
    recipe = control.recipe.model_dump(mode="json") if control.recipe is not None else None
    save = control.save.is_set()
    control.save.clear()
    orders = Orders(control.stop.is_set(), control.pause.is_set(), False, recipe)
    if orders != last_orders or save:
        new_orders = replace(orders, save=save, recipe=recipe if recipe != last_orders.recipe else None)
        _tell(first, new_orders.to_line())
    return orders


def _tell(process: _Process, line: bytes) -> None:
    assert process.process.stdin is not None
    with contextlib.suppress(OSError):  # it is dead, which is noticed in its own place
        process.process.stdin.write(line)
        process.process.stdin.flush()


def _spawn(rank: int, world: int, card: Gpu | None, messages: "queue.SimpleQueue[tuple[_Process, bytes]]") -> _Process:
    """A fresh process that sees one card alone: Unsloth settles at its import for how many cards it is."""
    environment = {**os.environ, **SOCKETS, "CUDA_VISIBLE_DEVICES": card.uuid if card else ""}
    for name in _OF_LAUNCHERS:
        environment.pop(name, None)
    if card is None:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // world)))
    process = _Process(
        rank,
        f"GPU {card.index}" if card else "the CPU",
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tuitune.session.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ),
    )
    for work in (_read_messages, _read_output):
        threading.Thread(target=work, args=(process, messages), daemon=True).start()
    return process


def _read_messages(process: _Process, messages: "queue.SimpleQueue[tuple[_Process, bytes]]") -> None:
    for line in _lines(process.process.stdout):
        messages.put((process, line))


def _read_output(process: _Process, messages: "queue.SimpleQueue[tuple[_Process, bytes]]") -> None:
    """Pass on to the log what the process prints, and keep its last words."""
    for line in _lines(process.process.stderr):
        text = safe_text(line.decode(errors="replace")).rstrip()
        process.last_lines.append(text)
        print(f"[{process.rank}] {text}", file=sys.__stderr__, flush=True)


def _lines(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
