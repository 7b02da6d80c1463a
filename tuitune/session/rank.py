"""One of the processes that train a run together: `python -m tuitune.session.rank`, which the session starts.

It gets its work on stdin and tells of it on stdout, both of which libraries do not see: their stdin is empty, and what
they print goes to stderr. When stdin ends, so has the session, and this process ends with it.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from typing import BinaryIO

from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.environment import warm_up
from tuitune.runs.events import Output
from tuitune.session.failure import failure_of
from tuitune.session.output import printed
from tuitune.session.rank_messages import (
    Ended,
    Message,
    Orders,
    SavingFlag,
    Start,
    line_of,
    resumption_from_data,
    run_of,
)
from tuitune.train.control import Control

log = logging.getLogger("tuitune.rank")

_CUT_OFF = ("connection closed", "connection reset", "gloo", "nccl", "broken pipe")
"""Of the errors by which a process notices that another one is gone."""


def main() -> int:
    lines, channel = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a library, or a program it starts, that reads stdin would wait for ever
    os.close(nothing)
    os.dup2(2, 1)  # whatever prints
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # schedulers send them to every process of a run
        signal.signal(number, signal.SIG_IGN)  # the session decides what comes of it
    start = Start.from_line(lines.readline().decode())
    requests = Control()
    threading.Thread(target=_listen, args=(lines, requests), daemon=True).start()
    sending = threading.Lock()

    def send(message: Message) -> None:
        line = line_of(message)
        with sending:
            while line:
                line = line[os.write(channel, line) :]

    ending = _work(start, requests, send if start.rank == 0 else lambda event: None)
    send(ending)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(0)  # libraries' threads may still wait for the other processes


def _listen(lines: BinaryIO, requests: Control) -> None:
    try:
        for line in lines:
            Orders.from_line(line.decode()).pass_on(requests)
    finally:  # also where the last line is half there
        os._exit(1)


def _work(start: Start, requests: Control, emit: "object") -> Ended:
    from tuitune.recipe import Recipe
    from tuitune.train.ranks import SharedControl, join
    from tuitune.train.run import train

    run, tell = run_of(start), emit
    assert callable(tell)
    try:
        warm_up()
        recipe = Recipe.from_data(start.recipe)
        ranks = join(
            start.rank, start.world, start.meeting, has_own_card=start.has_own_card, places=tuple(start.places)
        )
        control = SharedControl(ranks=ranks, requests=requests, saving=SavingFlag(tell))
        with printed(lambda line: tell(Output(text=line))):
            train(recipe, run, control, tell, resumed=resumption_from_data(start.resumed), ranks=ranks)
        ranks.wait()
    except UnusableInput as error:
        return Ended("unusable", error.sentence)
    except TuituneError as error:
        return Ended("failed", error.sentence)
    except BaseException as error:  # whatever it is, the session must hear of it
        if type(error).__name__ == "OutOfMemoryError":
            return Ended("out of memory", failure_of(error, run))
        log.error("training failed", exc_info=error)
        text = str(error).lower()
        is_own_fault = not (isinstance(error, RuntimeError) and any(word in text for word in _CUT_OFF))
        return Ended("failed", failure_of(error, run), is_own_fault=is_own_fault)
    return Ended("done")


if __name__ == "__main__":
    sys.exit(main())
