"""What follows the end of one run, in the session's event loop: it happens without a terminal, and can be cancelled."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tuitune.endings.command import run_command, shown
from tuitune.endings.notify import SECONDS_TO_ANSWER, senders
from tuitune.endings.outcome import Outcome
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import _
from tuitune.runs.events import Notice
from tuitune.runs.folder import Run, RunWriter, all_runs
from tuitune.settings import Settings, settings_file
from tuitune.text import one_line

log = logging.getLogger("tuitune.session")

COUNTDOWN_SECONDS = 10.0
_TELL_SECONDS = SECONDS_TO_ANSWER + 5.0  # a server may answer byte by byte, each in time

State = Literal["waiting", "counting", "running"]


def is_wanted(words: Sequence[str]) -> bool:
    """Whether anything is to follow a run's end, with this command."""
    settings = _settings()
    return bool(words or settings.webhook or settings.ntfy)


class Ending:
    """Holds the run while it counts down and runs the command, so that it can be reached by the run's name.

    All methods belong to the event loop. What goes wrong is a notice, and changes nothing of the run.
    """

    def __init__(self, run: Run, words: Sequence[str], socket: Path, on_event: Callable[[], None]) -> None:
        """`words`: of the command, empty for none; `on_event` is called when the record has grown."""
        self.run = run
        self.command = shown(words) if words else ""
        self.state: State = "waiting"
        self.seconds_left: float | None = None
        """Until the command is run, while it is counted down to."""
        self._words = list(words)
        self._on_event = on_event
        self._cancelled = asyncio.Event()
        self._socket = socket
        self._writer: RunWriter | None = None
        self._gave_way = False

    async def follow(self) -> None:
        """Tell of the end, and run the command once it was shown for ten seconds and nobody has cancelled it."""
        try:
            outcome = await asyncio.to_thread(lambda: Outcome.of(self.run, self.run.history()))
            telling = asyncio.create_task(self._tell(outcome))
            if self._words and outcome.state not in ("done", "failed"):
                self.cancel(_("the run was stopped") if outcome.state == "stopped" else _("the run is paused"))
            counted_down = bool(self._words) and await self._count_down()
            await telling
            if counted_down and not self._cancelled.is_set():
                await self._run(outcome)
        except Exception as error:  # whatever it is, the run has ended as it has
            log.error("what follows the run's end failed (%s)", type(error).__name__)
            self._notice(_("What was to follow the run's end failed ({error}).", error=type(error).__name__))
        finally:
            self._let_go()

    def cancel(self, reason: str) -> bool:
        """Do not run the command, and give the run's folder back; False where it is running or there is none."""
        if not self._words or self.state == "running" or self._cancelled.is_set():
            return False
        self._cancelled.set()
        self.command, self.seconds_left = "", None
        self._notice(_("The command for the end ({name}) is not run: {reason}.", name=self._name, reason=reason))
        return True

    def give_way(self) -> None:
        """Let another attempt take the run's folder: nothing more is recorded, and no command begun."""
        self.cancel(_("another run begins"))
        self._gave_way = True
        self._let_go()

    @property
    def _name(self) -> str:
        """The command as the record may hold it: its words may be secrets, and run folders are given away."""
        return one_line(Path(self._words[0]).name, max_length=60)

    async def _count_down(self) -> bool:
        """Whether the ten seconds have passed without a reason not to run the command."""
        if self._cancelled.is_set() or await self._another_run_goes():
            return False
        self._hold()
        self._notice(
            _(
                "In {seconds:.0f} s the command for the end ({name}) is run; `tuitune then {run} --cancel` cancels it.",
                seconds=COUNTDOWN_SECONDS,
                name=self._name,
                run=one_line(self.run.name, max_length=80),
            )
        )
        self.state = "counting"
        loop = asyncio.get_running_loop()
        end = loop.time() + COUNTDOWN_SECONDS
        while (seconds_left := end - loop.time()) > 0:
            self.seconds_left = seconds_left
            with suppress(TimeoutError):
                await asyncio.wait_for(self._cancelled.wait(), min(seconds_left, 0.25))
                return False
        self.seconds_left = 0.0
        return not await self._another_run_goes()

    async def _another_run_goes(self) -> bool:
        """Whether another run of the same folder of runs is training, for which the machine is needed."""
        live_run = await asyncio.to_thread(_live_beside, self.run)
        if live_run is not None:
            self.cancel(_("run {run} is training", run=one_line(live_run.name, max_length=80)))
        return live_run is not None

    async def _run(self, outcome: Outcome) -> None:
        self.state, self.seconds_left = "running", None
        try:
            status = await run_command(self._words, self.run, outcome)
        except TuituneError as error:
            self._notice(_("The command for the end ({name}) {problem}.", name=self._name, problem=error.sentence))
            return
        if status == 0:
            self._notice(_("The command for the end ({name}) has ended.", name=self._name))
            return
        self._notice(
            _(
                "The command for the end ({name}) failed with status {status}: what it printed is in the log.",
                name=self._name,
                status=status,
            )
        )

    async def _tell(self, outcome: Outcome) -> None:
        await asyncio.gather(
            *(self._tell_one(name, send) for name, send in senders(_settings(), outcome).items()),
        )

    async def _tell_one(self, what: str, send: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(asyncio.to_thread(send), _TELL_SECONDS)
        except UnusableInput as error:
            self._notice(error.sentence)
        except TimeoutError:
            self._notice(
                _(
                    "The {receiver} was not told of the end: it took longer than {seconds:.0f} s to answer.",
                    receiver=_(what),
                    seconds=_TELL_SECONDS,
                )
            )
        except TuituneError as error:
            self._notice(
                _("The {receiver} was not told of the end: {reason}.", receiver=_(what), reason=error.sentence)
            )
        except Exception as error:  # its text may quote the address
            self._notice(
                _("The {receiver} was not told of the end ({error}).", receiver=_(what), error=type(error).__name__)
            )

    def _notice(self, text: str) -> None:
        """Record a sentence with the run, as long as nobody else has taken its folder."""
        notice = Notice(text=one_line(text, max_length=600))
        if self._gave_way:
            return
        try:
            if self._writer is not None:
                self._writer.append(notice)
            else:
                writer = RunWriter(self.run)
                try:
                    writer.append(notice)
                finally:
                    writer.close()
        except (TuituneError, OSError) as error:  # another session was faster, the disk is full, the folder is gone
            log.warning("the run's record cannot be written: %s", explain(error))
        self._on_event()

    def _hold(self) -> None:
        """Take the run's folder, where it can be had, and say where this session is reached."""
        with suppress(TuituneError, OSError):
            self._writer = RunWriter(self.run)
            self._writer.announce(self._socket)

    def _let_go(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _settings() -> Settings:
    return Settings.load(settings_file()).with_environment()


def _live_beside(run: Run) -> Run | None:
    """Another run beside this one that has not ended and is held by a session."""
    for other in all_runs(run.folder.parent):
        with suppress(TuituneError):
            if other.folder != run.folder and other.is_live() and other.status() == "live":
                return other
    return None
