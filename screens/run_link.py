"""The app's link to its session: the draft, the run on show and its events, in one place that tells by messages."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.message import Message
from textual.worker import Worker

from screens.draft import Draft
from tuitune.endings.command import words_of
from tuitune.errors import TuituneError
from tuitune.language import N_, _
from tuitune.runs.events import Event, Failed, Finished, Started
from tuitune.runs.folder import Run, all_runs
from tuitune.runs.history import History
from tuitune.session.client import Session, SessionLost
from tuitune.session.request import ReplyT, Request
from tuitune.session.run_requests import EndingStatus, Resume, SetPrice, SetThen, Status, Stopping, Train, Trained

if TYPE_CHECKING:
    from tuitune.recipe import Recipe

AGAIN = N_("r goes on with it.")
_REDRAW_SECONDS = 0.2
_SPARED_STEPS = 5_000


class RunLink:
    """Keeps a session for the app, and knows the run on show through it or from its record.

    All methods belong to the app's event loop. What has changed is posted to the app as one of the messages here.
    """

    class StateChanged(Message):
        """The session does something else; `state` says what."""

    class Lost(Message):
        """The session has ended unexpectedly and another one is started.

        `ending`: how, as the beginning of a sentence. `training`: a run was going in it. `told`: whoever waited for an
        answer says so.
        """

        def __init__(self, ending: str, *, training: bool, told: bool) -> None:
            super().__init__()
            self.ending = ending
            self.training = training
            self.told = told

    class NotReached(Message):
        """No session could be started, or the one of the run on show not be reached."""

        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

    class RunChanged(Message, bubble=False):
        """New events of the run on show, or another run.

        The app passes it down to its screens, from where it must not come back to be passed down again.
        """

    class RunEnded(Message):
        """The run on show has ended while its session was followed; `run` is its name where it is known."""

        def __init__(self, run: str | None, event: Finished | Failed) -> None:
            super().__init__()
            self.run = run
            self.event = event

    class EndingTold(Message):
        """What follows the end of the run on show; `ending` is None once nothing does any more."""

        def __init__(self, ending: EndingStatus | None) -> None:
            super().__init__()
            self.ending = ending

    def __init__(self, app: App[int], recipe: "Recipe | None", runs_folder: Path, run: Run | None) -> None:
        """`recipe` to begin the draft with; `run` to show first, instead of a live one."""
        self._app = app
        self.runs_folder = runs_folder
        self.draft = Draft(recipe)
        self.run = run
        """The run on show; None while there is none, and until one that was started has its folder."""
        self.history = History()
        """What is known of the run on show."""
        self.state = N_("starting…")
        """What the session is doing, in a word or two of English."""
        self._answering_state = self.state
        self.then = ""
        """The command that follows the next run that is started; kept for no run after it."""
        self.ending: EndingStatus | None = None
        """What was last heard of the command that follows the run on show, once that has ended."""
        self.problem: str | None = None
        """Why the run on show could not start or went on no longer, where no event says it."""
        self._find_live = recipe is None and run is None
        self._live = False
        """Whether the run on show is a session's, and not known from its record alone."""
        self._sends_ours = False
        """Whether the session's events are of the run on show: it reports every run that it trains."""
        self._keeper: Worker[None] | None = None
        """Who starts the session and follows its run; None before `begin`."""
        self._asking = 0
        self._changed = False
        self._spared = 0

    # --- the session ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find the run to show first, the one that is live; the session is reached by `begin`."""
        self._session: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        if self._find_live:
            live = [run for run in all_runs(self.runs_folder)[:20] if run.is_live()]
            self.run = live[0] if len(live) == 1 else None  # of several, the user chooses

    def begin(self) -> None:
        """Take the first run's recipe for the draft, and start or reach a session."""
        if self.run is not None:
            with contextlib.suppress(TuituneError):  # its record can be shown all the same
                self.draft = Draft(self.run.recipe())
        if self._keeper is None:
            self._start()

    def _start(self) -> None:
        self._keeper = self._app.run_worker(self._keep_session(), name="session", exit_on_error=False)

    async def close(self) -> None:
        """Let the session go: a run goes on, an idle session ends."""
        if self._session.done() and self._session.exception() is None:
            await self._session.result().close()

    async def call(self, request: Request[ReplyT], on_part: Callable[[dict[str, Any]], None] | None = None) -> ReplyT:
        """Ask the session, once there is one; one that could not start is tried again. Raises TuituneError."""
        if self._session.done() and self._session.exception() is not None:
            self._session = asyncio.get_running_loop().create_future()
            self._start()
        session = await asyncio.shield(self._session)
        self._asking += 1
        try:
            return await session.call(request, on_part)
        finally:
            self._asking -= 1

    async def stop(self, *, now: bool) -> Stopping:
        """Ask the run on show to stop, as `Session.stop` does. Raises TuituneError."""
        session = await asyncio.shield(self._session)
        return await session.stop(self.run.name if self.run else None, now=now)

    async def change_session(self) -> None:
        """Leave this session, which goes on if it trains and else ends, for the one of the run on show."""
        if self._keeper is not None:
            self._keeper.cancel()
        await self.close()
        if self._session.done():  # else who waits for it gets the new one
            self._session = asyncio.get_running_loop().create_future()
        self._set_state(N_("starting…"))
        self._start()

    async def _keep_session(self) -> None:
        """Start or reach the session, follow its run, and say so when it is lost."""
        try:
            session = await self._reach_session()
        except (TuituneError, OSError) as error:
            self._session.set_exception(error)
            self._session.exception()  # each caller of `call` is told; none of them may have come yet
            self._set_state(N_("no session"))
            self._app.post_message(self.NotReached(error))
            return
        self._session.set_result(session)
        while not session.lost.is_set():
            try:
                status = await session.call(Status())
            except TuituneError:
                break
            if status["ready"]:
                break
            self._set_state(N_("loading libraries…"))
            await asyncio.sleep(0.3)
        self._set_state(N_("ready"))
        await session.lost.wait()
        self._set_state(N_("session lost"))
        self._session = asyncio.get_running_loop().create_future()
        self._app.post_message(self.Lost(session.ending, training=self.is_training, told=self._asking > 0))
        if self.is_training:
            self.problem = _(
                "{ending}. {saved} {again}", ending=session.ending, saved=self.what_is_saved(), again=_(AGAIN)
            )
            self._app.post_message(self.RunChanged())
        self._app.call_later(self._start)

    async def _reach_session(self) -> Session:
        run = self.run
        if run is None or not run.is_live():
            if run is not None:
                self._live = False
                self._read_record(run)
            session = await Session.start()
            session.on_silence = self._tell_silence
            return session
        self._live = self._sends_ours = True  # before it answers, so that no other run is begun meanwhile
        try:
            session = await Session.attach(run)
        except TuituneError:
            self._live = False
            raise
        session.on_silence = self._tell_silence
        try:
            await session.follow(self._receive)
        except BaseException:  # also where another run is chosen meanwhile: nobody else knows this connection
            await session.close()
            raise
        return session

    def _set_state(self, state: str) -> None:
        self._answering_state = state
        self._show_state(state)

    def _tell_silence(self, silent_s: int) -> None:
        silence = _("not answering, {seconds} s", seconds=silent_s)
        self._show_state(silence if silent_s else self._answering_state)

    def _show_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._app.post_message(self.StateChanged())

    # --- the run on show --------------------------------------------------------------------------------------

    @property
    def is_training(self) -> bool:
        """Whether the run on show is going, or about to."""
        return self._live and self.history.ended is None and self.problem is None

    async def show(self, run: Run) -> bool:
        """Show a run, a live one through its session and another one from its record; the draft becomes its recipe.

        Returns whether it is another run than before. Raises UnusableInput where its recipe cannot be read.
        """
        if run == self.run:
            return False
        self.draft, busy = Draft(run.recipe()), self.is_training
        self.run, self.history, self.problem, self._live = run, History(), None, False
        if run.is_live() or busy:
            await self.change_session()
        else:
            self._read_record(run)
        return True

    def moved(self, folder: Path, run: Run | None) -> bool:
        """The run in `folder`, which no session holds, has moved, or was deleted (None); whether it was on show."""
        if self.run is None or self.run.folder.resolve() != folder.resolve():
            return False
        self.run = run
        if run is None:
            self.history, self.problem = History(), None
        self._app.post_message(self.RunChanged())
        return True

    def start_run(self) -> None:
        """Train the draft. Raises UnusableInput before anything is started."""
        data, then = self.draft.as_data(), self._take_words()
        self.run, self.history, self.problem = None, History(), None
        self._live, self._sends_ours = True, False
        request = Train(data, str(self.runs_folder.absolute()), then=then)
        self._app.run_worker(self._train(request), name="train", exit_on_error=False)

    def resume_run(self, changes: tuple[str, ...] = ()) -> None:
        """Go on with the run on show, which ended early, or is trained further by `changes` (see `Resume`)."""
        assert self.run is not None, "there is a run to go on with"
        ended, self.history.ended, self.problem = self.history.ended, None, None
        self._live = self._sends_ours = True
        request = Resume(str(self.run.folder), changes, then=self._take_words())
        self._app.run_worker(self._train(request, ended), name="train", exit_on_error=False)
        self._app.post_message(self.RunChanged())

    async def _train(self, request: Request[Trained], ended: Finished | Failed | None = None) -> None:
        """Have a run trained; one that had `ended` has ended as before where going on with it is refused."""
        history, attempts = self.history, len(self.history.attempts)
        try:
            await self.call(request, self._begun)
        except SessionLost:
            pass  # said by whoever keeps the session
        except TuituneError as error:
            self.problem = error.sentence
            if len(history.attempts) == attempts:
                history.ended = ended
        finally:
            self._app.post_message(self.RunChanged())

    def _begun(self, part: dict[str, Any]) -> None:
        self.run = Run(Path(part["run"]))
        self._app.run_worker(self._session.result().follow(self._receive), name="follow", exit_on_error=False)

    # --- what follows its end ---------------------------------------------------------------------------------

    def _take_words(self) -> list[str]:
        """The words of the command for the run that is being started, and for no later one. Raises UnusableInput."""
        words, self.then = words_of(self.then), ""
        return words

    async def command_at_end(self) -> str:
        """The command that follows the run that is going. Raises TuituneError."""
        ending = (await self.call(Status()))["ending"]
        return ending["command"] if ending and self.run and ending["run"] == self.run.name else ""

    async def set_ending(self, price: str, then: str, words: list[str] | None) -> None:
        """Give the run that is going, or else the next one, its price (if any) and its command (None: as it is).

        Raises TuituneError.
        """
        if not self.is_training:
            self.then = then
        elif self.run is None:
            raise TuituneError("The run is only just beginning: try again in a moment.")
        else:
            if price:
                await self.call(SetPrice(self.run.name, price))
            if words is not None:
                await self.call(SetThen(self.run.name, words))

    async def cancel_ending(self, run: str) -> None:
        """Raises TuituneError where it is too late."""
        await self.call(SetThen(run))

    async def _watch_ending(self, run: Run | None) -> None:
        """Tell of the command that follows the run, until it is cancelled or has been run."""
        with contextlib.suppress(TuituneError):
            session = await asyncio.shield(self._session)
            while (ending := (await session.call(Status()))["ending"]) is not None and run == self.run:
                if run is None or ending["run"] != run.name:
                    break
                self.ending = ending
                self._app.post_message(self.EndingTold(ending))
                await asyncio.sleep(0.25)
        self.ending = None
        self._app.post_message(self.EndingTold(None))

    def finished_with_draft(self) -> Run | None:
        """The run on show where it has finished with the very recipe that the draft is. Raises UnusableInput."""
        recipe = self.draft.recipe()
        if self.run is None or not isinstance(self.history.ended, Finished):
            return None
        try:
            return self.run if self.run.recipe() == recipe else None
        except TuituneError:  # its recipe cannot be read: nobody knows
            return None

    def what_is_saved(self) -> str:
        """Which checkpoint of the run on show is on disk, in one sentence."""
        run = self.run
        if run is None:
            return _("Nothing had been saved yet.")
        if self.history.checkpoints:
            step = self.history.checkpoints[-1].step
            return _("Saved in {folder}: the checkpoint of step {step}.", folder=run.folder, step=step)
        return _("No checkpoint had been saved yet; the record is in {folder}.", folder=run.folder)

    # --- its events -------------------------------------------------------------------------------------------

    def _receive(self, event: Event) -> None:
        """Take an event of the session's run in; called in the event loop, possibly many times a second."""
        if isinstance(event, Started) and event.attempt == 1:
            started = self.history.started
            self._sends_ours = self._live and (started is None or started.run == event.run)
            if self._sends_ours:
                self.history = History()
        if not (self._live and self._sends_ours):
            return
        self.history.add(event)
        if isinstance(event, Finished | Failed):
            self._app.post_message(self.RunEnded(self.run.name if self.run else None, event))
            self._app.run_worker(self._watch_ending(self.run), group="ending", exclusive=True, exit_on_error=False)
        if not self._changed:
            self._changed = True
            self._app.set_timer(_REDRAW_SECONDS, self._tell_of_change)

    def _tell_of_change(self) -> None:
        self._changed = False
        if len(self.history.steps) > self._spared + _SPARED_STEPS:
            self._spared = len(self.history.steps)
            gc.freeze()  # the garbage collector need not look at a long record again and again: it would stall keys
        self._app.post_message(self.RunChanged())

    def _read_record(self, run: Run) -> None:
        """Take in the record of a run that no session holds, once a thread has read it."""

        async def read() -> None:
            unreadable: str | None = None
            history = History()
            try:
                history = await asyncio.to_thread(run.history)
            except TuituneError as error:
                unreadable = error.sentence
            if run == self.run and not self._live:
                self.history, self.problem = history, unreadable or self.problem
                self._tell_of_change()

        self._app.run_worker(read(), group="record", exclusive=True, exit_on_error=False)
