"""A run on several cards: the session starts a process for each, and is told by them, stops them and outlives them.

With several hosts it does so for the cards of its own, and other hosts for theirs, each round anew.
"""

import contextlib
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import _
from tuitune.machine.hardware import Gpu
from tuitune.paths import own_folder, temporary_folder
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished, Notice
from tuitune.runs.folder import Run
from tuitune.session.hosts import LOST_SECONDS, PRIVATE, Meeting, Member
from tuitune.session.rank_messages import Ended, Orders, Saving, Start, message_of, resumption_to_data
from tuitune.session.rank_processes import Messages, RankProcess, end_processes, first_failure, start_processes
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.autotune import with_less_memory
from tuitune.train.control import Control, Emit
from tuitune.train.ranks import SOCKETS
from tuitune.train.resume import Resumption, resumption_of
from tuitune.train.run import tell_less_memory

_POLL_SECONDS = 0.1
_GATHERING_SECONDS = 1.0
"""For so long the ends of all processes are gathered once one has ended: the first to be noticed may be a victim."""
_GATHERING_OVER_HOSTS_SECONDS = LOST_SECONDS + 3.0
"""And for so long where all that is known is that they are cut off from another host."""


class RanksEnded(TuituneError):
    """A process that trains a run has died."""


class _HostLost(Exception):
    def __init__(self, member: Member) -> None:
        self.member = member


@dataclass(frozen=True)
class _Work:
    """What is trained, and by what."""

    run: Run
    control: Control
    emit: Emit
    cards: Sequence[Gpu | None]
    meeting: Meeting | None
    on_start: Callable[[list[int]], None]

    @property
    def have_cards(self) -> bool:
        """Whether each process of this host has a card of its own."""
        return have_cards(self.cards)


def have_cards(cards: Sequence[Gpu | None]) -> bool:
    return len({card.uuid for card in cards if card is not None}) == len(cards)


def train_on_ranks(
    recipe: Recipe,
    run: Run,
    control: Control,
    emit: Emit,
    cards: Sequence[Gpu | None],
    *,
    resumed: Resumption | None = None,
    meeting: Meeting | None = None,
    on_start: Callable[[list[int]], None] = lambda pids: None,
) -> None:
    """Train as `tuitune.train.run.train` does, each of `cards` (None: the CPU) its share, with the hosts of `meeting`.

    `on_start` is given the ids of the processes of this host, by rank. Raises TuituneError where one of them fails or
    dies; the others are ended then. Where memory runs out on one, all go on from the newest checkpoint with less of it;
    where a host is lost, once it has come back.
    """
    work = _Work(run, control, emit, cards, meeting, on_start)
    while True:
        try:
            ending = _train_once(work, recipe, resumed)
        except _HostLost as lost:
            resumed = _resumed_anew(work, resumed)
            emit(Notice(text=_loss_of(lost.member, work, resumed)))
            continue
        if ending is None:
            return
        hungry = run.resolved()
        recipe = with_less_memory(hungry)
        run.keep_resolved(recipe)
        step = run.history().step
        resumed = _resumed_anew(work, resumed)
        tell_less_memory(hungry, recipe, step, resumed.checkpoint, emit)


def _resumed_anew(work: _Work, resumed: Resumption | None) -> Resumption:
    """How the same attempt goes on from the newest checkpoint."""
    return replace(resumption_of(work.run, work.emit), attempt=resumed.attempt if resumed else 1)


def _loss_of(member: Member, work: _Work, resumed: Resumption) -> str:
    assert work.meeting is not None
    where = resumed.checkpoint.name if resumed.checkpoint else _("the start, as nothing was saved yet")
    return _(
        "Host {host} has left or does not answer: the run waits for it, and goes on from {where} when it is back "
        "(there: `tuitune join {address}`).",
        host=member.place,
        where=where,
        address=work.meeting.address,
    )


def _train_once(work: _Work, recipe: Recipe, resumed: Resumption | None) -> Ended | None:
    """Train to the end; how a process has ended where memory ran out. Raises TuituneError, _HostLost."""
    began = time.monotonic()
    meeting, own = work.meeting, len(work.cards)
    if meeting is not None and not _gather(work, meeting):
        _stopped(work, time.monotonic() - began)
        return None
    folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=own_folder(temporary_folder() / "ranks")))  # 0700
    start = Start(
        rank=0,
        world=meeting.world if meeting else own,
        has_own_card=work.have_cards,
        meeting=f"{meeting.address}/{meeting.round}" if meeting else str(folder / "meeting"),
        run=str(work.run.folder),
        recipe=recipe.model_dump(mode="json"),
        resumed=resumption_to_data(resumed),
        places=meeting.places(own) if meeting else [],
    )
    messages: Messages = queue.SimpleQueue()
    processes: list[RankProcess] = []
    try:
        starts = [replace(start, rank=rank) for rank in range(own)]
        processes = start_processes(starts, work.cards, meeting.sockets if meeting else SOCKETS, messages)
        if meeting is not None:
            meeting.begin(asdict(start))
        work.on_start([process.process.pid for process in processes])
        return _watch(processes, work, messages)
    finally:
        if meeting is not None:
            meeting.end_round()
        end_processes(processes)
        work.control.saving.clear()
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.tidy(work.run)


def _gather(work: _Work, meeting: Meeting) -> bool:
    """Wait for the other hosts; False where the run is asked to stop."""
    work.emit(
        Notice(
            text=_(
                "Waiting for other hosts: `tuitune join {address}` on each. {warning}",
                address=meeting.address,
                warning=_(PRIVATE),
            )
        )
    )
    if not meeting.gather(len(work.cards), work.have_cards, work.control):
        return False
    there = [member.place for member in meeting.members]
    work.emit(
        Notice(
            text=_(
                "{hosts} hosts train with {processes} processes; joined: {there}.",
                hosts=len(meeting.members) + 1,
                processes=meeting.world,
                there=there,
            )
        )
    )
    return True


def _watch(processes: list[RankProcess], work: _Work, messages: Messages) -> Ended | None:
    """Pass on what the processes tell, and what the run is asked, until all have ended or one has failed."""
    first, orders, meeting, control = processes[0], Orders(), work.meeting, work.control
    began = time.monotonic()
    failing_since: float | None = None
    while True:
        if control.now.is_set():
            _stopped(work, time.monotonic() - began)
            return None
        orders = _pass_on(first, control, orders)
        with contextlib.suppress(queue.Empty):
            process, line = messages.get(timeout=_POLL_SECONDS)
            message = message_of(line)
            if isinstance(message, Ended):
                process.told_end = message
            elif isinstance(message, Saving):
                control.saving.set() if message.is_set else control.saving.clear()
            elif message is not None and process is first:
                work.emit(message)
            continue  # whatever has arrived comes before what is concluded from it
        if first.told_end is not None and first.told_end.how == "done":  # which it is once all have come to the end
            return None
        if meeting is not None and (member := meeting.lost()) is not None:
            raise _HostLost(member)
        ends = [process.end for process in processes] + (list(meeting.ends()) if meeting else [])
        failures = [end for end in ends if end is not None and end.how != "done"]
        if failures:
            failing_since = failing_since or time.monotonic()
            cut_off = meeting is not None and not any(end.is_own_fault for end in failures)
            patience = _GATHERING_OVER_HOSTS_SECONDS if cut_off else _GATHERING_SECONDS
            if time.monotonic() - failing_since > patience or (meeting is None and None not in ends):
                return _judged(first_failure(failures), work.run)


def _judged(failure: Ended, run: Run) -> Ended:
    """The failure where memory ran out. Raises TuituneError for any other."""
    if failure.how == "out of memory":
        return failure
    if failure.how == "unusable":
        raise UnusableInput(failure.text)
    if failure.how == "dead":
        saved = checkpoints.checkpoints_of(run)
        where = saved[-1].name if saved else _("the start, as nothing was saved yet")
        raise RanksEnded(
            "{text} `tuitune resume {run}` goes on from {where}.",
            text=failure.text,
            run=one_line(run.name),
            where=where,
        )
    raise TuituneError(failure.text)


def _stopped(work: _Work, seconds: float) -> None:
    """Emit the event that a run in one process emits when it is stopped in the middle of a step, or before one."""
    saved = "adapter" if work.run.adapter.is_dir() else None
    status: Literal["paused", "stopped"] = "paused" if work.control.pause.is_set() else "stopped"
    work.emit(Finished(status=status, step=work.run.history().step, seconds=seconds, adapter=saved))


def _pass_on(first: RankProcess, control: Control, last_orders: Orders) -> Orders:
    """Tell the first process what is new in what the run is asked; returns all that it was told."""
    recipe = control.recipe.model_dump(mode="json") if control.recipe is not None else None
    save = control.save.is_set()
    control.save.clear()
    orders = Orders(control.stop.is_set(), control.pause.is_set(), False, recipe)
    if orders != last_orders or save:
        new_orders = replace(orders, save=save, recipe=recipe if recipe != last_orders.recipe else None)
        first.tell(new_orders.to_line())
    return orders
