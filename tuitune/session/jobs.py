"""What the worker thread can be asked to do, and the one model it holds while it does it."""

import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitune.atomic import write_atomic
from tuitune.conversation import Conversation
from tuitune.data import cache
from tuitune.errors import TuituneError, UnusableInput
from tuitune.hub.access import WriteAccess
from tuitune.language import _
from tuitune.machine.cards import cards_of
from tuitune.machine.environment import warm_up
from tuitune.machine.hardware import Gpu, chosen_gpu, sample
from tuitune.model.read_ahead import read_ahead
from tuitune.paths import open_own
from tuitune.recipe import Recipe
from tuitune.runs import events
from tuitune.runs.cost import Price
from tuitune.runs.events import Event, Failed, Finished, Notice, Output, Sample, Started
from tuitune.runs.folder import Run, RunWriter, create_run, default_runs_folder
from tuitune.runs.summary import summarize
from tuitune.session import exporting, preparing_requests, questions, result_requests, run_requests
from tuitune.session.failure import failure_of
from tuitune.session.hosts import Meeting, listen
from tuitune.session.models import Models
from tuitune.session.output import printed
from tuitune.session.request import Request
from tuitune.session.sweep import sweep
from tuitune.session.worker import Job, Result
from tuitune.settings import Settings, settings_file
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.documents.library import Library
    from tuitune.train.resume import Resumption

log = logging.getLogger("tuitune.session")


class Jobs:
    """The commands that need the libraries. All but `work`, `emit`, `abandon` and `close` run in the worker thread."""

    def __init__(self, socket_path: Path, on_event: Callable[[], None]) -> None:
        self.run: Run | None = None
        self._socket_path = socket_path
        self._on_event = on_event
        self._writer: RunWriter | None = None
        self._recipe: Recipe | None = None
        self._resolved: Recipe | None = None
        self._writing = threading.Lock()
        self._watched: list[tuple[int, Gpu | None]] = []
        """The processes that train the run, each with its card, where they are several."""
        self._meeting: Meeting | None = None
        """With the other hosts that train the run."""
        self._access = WriteAccess()
        self._models = Models()
        self._libraries: dict[tuple[str, ...], Library] = {}

    @property
    def is_training(self) -> bool:
        return self._writer is not None

    def work(self, request: Request[Any]) -> Callable[[Job], Result]:
        """The work of a request. Raises UnusableInput for its recipe."""
        commands: dict[type[Request[Any]], Callable[..., Result]] = {
            preparing_requests.Summary: questions.summary,
            preparing_requests.Rows: questions.rows,
            preparing_requests.Unusable: questions.unusable,
            preparing_requests.Columns: questions.columns,
            preparing_requests.SearchDatasets: questions.search_datasets,
            preparing_requests.DatasetSplits: questions.dataset_splits,
            preparing_requests.Audit: questions.audit,
            preparing_requests.Estimate: questions.estimate,
            preparing_requests.HubAccess: self.hub_access,
            preparing_requests.PreviewRewards: self.preview_rewards,
            run_requests.Train: self.train,
            run_requests.Resume: self.resume,
            result_requests.Chat: self.chat,
            result_requests.Attach: self.attach,
            result_requests.Retrieve: self.retrieve,
            result_requests.Export: exporting.export,
            result_requests.Preflight: exporting.preflight,
        }
        arguments = request.arguments()
        if "recipe" in arguments:
            arguments["recipe"] = Recipe.from_data(arguments["recipe"])
        if "run" in arguments:
            arguments["run"] = Run(Path(arguments["run"]))
        arguments.pop("then", None)  # is the main thread's
        if isinstance(request, run_requests.Train):
            read_ahead(arguments["recipe"].model)
        return lambda job: commands[type(request)](job, **arguments)

    def warm_up(self, job: Job) -> Result:
        """Import the heavy libraries while the user is still choosing, and tidy what killed sessions left."""
        warm_up()
        sweep(default_runs_folder())
        cache.sweep()
        return {}

    def hub_access(self, job: Job, repository: str | None, public: bool, again: bool = False) -> Result:
        """Runs in the thread that waits for the Hub, and not in the worker thread."""
        return {"refusal": self._access.refusal(repository, public=public, again=again)}

    def preview_rewards(self, job: Job, recipe: Recipe, prompts: int) -> Result:
        """What the recipe's rewards say of answers of the model as it is."""
        from tuitune.train.control import Stopped
        from tuitune.train.reward_preview import preview_rewards

        self._models.unload()
        try:
            preview = preview_rewards(
                recipe, max(1, min(prompts, 256)), lambda text: job.part(loading=text), job.cancelled.is_set
            )
        except Stopped:
            job.check()
            raise
        finally:
            self._models.unload()
        return preview.as_dict()

    def train(
        self,
        job: Job,
        recipe: Recipe,
        runs: str | None = None,
        name: str | None = None,
        price: str = "",
        hosts: int = 1,
        rendezvous: str = "",
    ) -> Result:
        """Train in a new run folder, which is sent as a part as soon as it exists."""
        from tuitune.export.needs import require_exportable
        from tuitune.machine.hardware import machine
        from tuitune.train.check import check
        from tuitune.train.pinning import pinned

        per_hour = price_of(price)
        runs_folder = Path(runs) if runs else default_runs_folder()
        check(recipe, hosts)
        require_exportable(recipe, runs_folder)
        cards_of(recipe.train.gpus)
        if hosts > 1:
            listen(rendezvous).close()
        resolved = pinned(recipe)
        self._models.unload()
        sweep(runs_folder)
        writer = create_run(recipe, runs_folder, name, machine(runs_folder).as_dict(), resolved)
        return self._train(job, writer, recipe, resolved, per_hour, hosts=hosts, rendezvous=rendezvous)

    def resume(
        self,
        job: Job,
        run: Run,
        changes: tuple[str, ...] = (),
        price: str = "",
        hosts: int = 1,
        rendezvous: str = "",
    ) -> Result:
        """Go on with a run in its own folder."""
        from tuitune.train.check import check
        from tuitune.train.resume import changed, require_unfinished

        per_hour = price_of(price)
        recipe = run.recipe()
        resolved = changed(run.resolved(), list(changes))
        require_unfinished(run, resolved)
        check(resolved, hosts)
        cards_of(resolved.train.gpus)
        if hosts > 1:
            listen(rendezvous).close()
        self._models.unload()
        writer = RunWriter(run)
        if changes:
            run.keep_resolved(resolved)
        return self._train(
            job, writer, recipe, resolved, per_hour, hosts=hosts, rendezvous=rendezvous, going_on=True, changes=changes
        )

    def change(self, job: Job, changes: tuple[str, ...]) -> run_requests.Changed:
        """Have the run that is going be trained by other settings from its next step on. Raises UnusableInput."""
        from tuitune.train.resume import changed

        assert self.run is not None, "a run is going"
        before = job.control.recipe or self.run.resolved()
        recipe = changed(before, list(changes))
        if recipe.train.gpus != before.train.gpus:
            raise UnusableInput(
                "A run that goes stays on its cards: pause it, and `tuitune resume {run} --gpus` takes others.",
                run=one_line(self.run.name),
            )
        job.control.recipe = recipe
        self.emit(Notice(text=_told(changes)))
        train = recipe.train
        return run_requests.Changed(
            max_steps=train.max_steps, num_train_epochs=train.num_train_epochs, learning_rate=train.learning_rate
        )

    def _train(
        self,
        job: Job,
        writer: RunWriter,
        recipe: Recipe,
        resolved: Recipe,
        per_hour: Price | None,
        *,
        hosts: int = 1,
        rendezvous: str = "",
        going_on: bool = False,
        changes: tuple[str, ...] = (),
    ) -> Result:
        """Train in a run folder that this session holds, and give it back."""
        from tuitune.train.resume import resumption_of
        from tuitune.train.run import train

        job.run = run = writer.run
        self.run, self._writer, self._recipe, self._resolved = run, writer, recipe, resolved
        try:
            writer.announce(self._socket_path)
            _log_to(run.log_file)
            resumed = resumption_of(run, self.emit) if going_on else None
            self.emit(Started(run=run.name, attempt=resumed.attempt if resumed else 1, pid=os.getpid()))
            self.set_price(per_hour)
            job.part(run=str(run.folder))
            if resumed:
                self._tell_changed_libraries(run)
            if changes:
                self.emit(Notice(text=_told(changes)))
            meeting = self._meeting = Meeting(rendezvous, hosts) if hosts > 1 else None
            cards = cards_of(resolved.train.gpus) or ([chosen_gpu()] if meeting else [])
            if cards:
                loaded = None  # which the processes had; a chat loads it anew
                self._train_on(cards, meeting, job, resolved, run, resumed)
            else:
                with printed(lambda line: self.emit(Output(text=line))):
                    loaded = train(resolved, run, job.control, self.emit, resumed=resumed)
        except BaseException as error:
            if not isinstance(error, TuituneError):
                log.error("training failed", exc_info=error)
            with contextlib.suppress(OSError):  # whoever waits is told even where the disk is too full to record it
                self.emit(Failed(message=failure_of(error, run)))
            raise TuituneError(failure_of(error, run)) if not isinstance(error, TuituneError) else error from None
        finally:
            meeting, self._meeting = self._meeting, None
            if meeting is not None:
                meeting.close(_how_it_ended(run), has_failed=run.status() == "failed")
            self._close_run()
            _log_to(self._socket_path.with_suffix(".log"))  # what comes later is no matter of this run
        if job.control.pause.is_set():
            loaded = None
            self._models.unload()
        if loaded is not None and run.adapter.is_dir():  # else it may be half trained
            self._models.keep(run, loaded)
        return {"status": run.status()}

    def _train_on(
        self,
        cards: list[Gpu | None],
        meeting: Meeting | None,
        job: Job,
        recipe: Recipe,
        run: Run,
        resumed: "Resumption | None",
    ) -> None:
        """Train in a process for each card, with those of the hosts of `meeting`."""
        from tuitune.session.ranks import train_on_ranks

        def watch(pids: list[int]) -> None:
            self._watched = list(zip(pids, cards, strict=True))

        try:
            train_on_ranks(recipe, run, job.control, self.emit, cards, resumed=resumed, meeting=meeting, on_start=watch)
        finally:
            self._watched = []

    def samples(self) -> list[Sample]:
        """The machine's state now: once, or for each card that trains the run, of every host; safe from any thread."""
        folder, meeting = self.run.folder if self.run else None, self._meeting
        own = [sample(pid, folder, card) for pid, card in self._watched or [(os.getpid(), None)]]
        return own + (meeting.samples() if meeting else [])

    def _tell_changed_libraries(self, run: Run) -> None:
        """Tell the user of library versions that differ from those the run began with: its numbers may differ."""
        from tuitune.machine.hardware import installed_versions

        recorded, installed = run.libraries(), installed_versions()
        changed = [
            f"{name} {version} → {installed.get(name, 'absent')}"
            for name, version in recorded.items()
            if version != installed.get(name)
        ]
        if changed:
            text = _(
                "Libraries have changed since the run began, so what follows may differ: {changes}.", changes=changed
            )
            self.emit(Notice(text=one_line(text, max_length=600)))

    def chat(
        self,
        job: Job,
        run: Run,
        messages: Conversation,
        adapter: bool = True,
        sampling: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        passages: list[str] | None = None,
        beside: bool = False,
        engine: str = "",
    ) -> Result:
        """The next message. Parts are `text` as it comes; before, `loading` with `done` of `total`, and `notice`."""
        from tuitune.chat.reply import reply
        from tuitune.chat.sampling import Sampling

        settings = Sampling.parse(sampling or {})
        cancelled = job.cancelled.is_set

        def progress(text: str, done: int, total: int) -> None:
            job.part(loading=text, done=done, total=total)

        def on_text(text: str) -> None:
            job.part(text=text)

        if engine:
            gguf = self._models.gguf(run, checkpoint, engine, progress, cancelled)
            job.check()
            answer = gguf.reply(messages, settings, passages=passages, on_text=on_text, cancelled=cancelled)
        else:
            loaded = self._models.of(
                run, checkpoint, beside=beside, notice=lambda text: job.part(notice=text), progress=progress
            )
            job.check()
            answer = reply(
                loaded,
                messages,
                settings,
                adapter=adapter,
                passages=passages,
                fast=True,
                on_text=on_text,
                cancelled=cancelled,
            )
        job.check()
        result = dataclasses.asdict(answer)
        return {"reply": result.pop("text"), **result}

    def attach(self, job: Job, paths: list[str]) -> Result:
        """What the documents at these paths are, once they are indexed."""
        return self._library(job, paths).summary()

    def retrieve(self, job: Job, paths: list[str], question: str, limit: int = 5) -> Result:
        """The passages that answer a question best."""
        return {
            "passages": [dataclasses.asdict(passage) for passage in self._library(job, paths).search(question, limit)]
        }

    def _library(self, job: Job, paths: list[str]) -> "Library":
        """The documents at these paths as they are now, indexed."""
        from tuitune.documents.library import Library

        library = self._libraries.setdefault(tuple(paths), Library([Path(path) for path in paths]))
        library.refresh(lambda text, done, total: job.part(indexing=text, done=done, total=total), job.cancelled.is_set)
        job.check()
        return library

    # --- the run's record --------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Record an event of the current run and wake whoever follows it; safe from any thread.

        A sample that is taken while the session still tidies up after the run is left out: the end is the last event.
        """
        with self._writing:
            if self._writer is None or (self._writer.has_ended and isinstance(event, Sample)):
                return
            self._writer.append(event)
        self._on_event()

    def set_price(self, price: Price | None) -> None:
        """Record what an hour of this machine costs, where that is known; safe from any thread."""
        if price is not None:
            self.emit(events.Price(per_hour=price.per_hour, currency=price.currency))

    def keep_folder(self) -> None:
        """Where the folder of the run that is training was moved or removed, make it anew for what is still saved."""
        if not self.is_training or self.run is None or self._recipe is None or self.run.recipe_file.exists():
            return
        self.run.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self.run.recipe_file, self._recipe.to_yaml())
        self.run.keep_resolved(self._resolved or self._recipe)
        text = _(
            "The run folder {folder} was moved or removed: what is saved from now on is in a new folder of that name.",
            folder=one_line(self.run.folder),
        )
        self.emit(Notice(text=text))

    def abandon(self) -> None:
        """Record that the run was stopped in the middle of a step; the process ends after this."""
        if self.run is not None:
            saved = "adapter" if self.run.adapter.is_dir() else None
            history = self.run.history()
            seconds = history.last_at - history.started.at if history.started else 0.0
            self.emit(Finished(status="stopped", step=history.step, seconds=seconds, adapter=saved))
        self._close_run()

    def close(self) -> None:
        """Leave nothing half made; the process ends after this, without the interpreter's own end."""
        self._close_run()
        cache.discard_unfinished()
        self._models.close_gguf()

    def _close_run(self) -> None:
        with self._writing:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()
                summarize(writer.run)  # which lists then need not read its record for


def _how_it_ended(run: Run) -> str:
    """For the hosts that have joined the run."""
    ended = run.history().ended
    if isinstance(ended, Failed):
        return ended.message
    return _("{run} is {status}.", run=one_line(run.name), status=_(run.status()))


def _told(changes: tuple[str, ...]) -> str:
    return _("Changed from the next step on: {changes}.", changes=one_line(", ".join(changes), max_length=300))


def price_of(text: str) -> Price | None:
    """The price that the text says, or else the user's settings. Raises UnusableInput for the text."""
    if text.strip():
        return Price.parse(text)
    with contextlib.suppress(UnusableInput):  # what was written into the file by hand ends no run
        return Price.parse(Settings.load(settings_file()).price)
    return None


def _log_to(file: Path) -> None:
    """Send everything this process prints, C libraries included, to a log, if it can be written."""
    try:
        handle = open_own(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
