"""A host that joins a run on another one: it trains with its cards what the first host says, until the run is over."""

import fcntl
import json
import os
import queue
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import Sentence, _
from tuitune.machine.hardware import Gpu, sample
from tuitune.paths import own_folder, temporary_folder
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB
from tuitune.runs.events import to_json
from tuitune.session.hosts import HostTold, Joined, RunTold, libraries
from tuitune.session.rank_messages import Ended, Start, message_of
from tuitune.session.rank_processes import Messages, RankProcess, end_processes, first_failure, start_processes
from tuitune.session.ranks import have_cards
from tuitune.text import one_line, safe_text

_POLL_SECONDS = 0.1
_GATHERING_SECONDS = 1.0
_TRY_SECONDS = 1.0
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class OwnPaths:
    """Where this host has the run's base model and data files, if not where the first one has them.

    `model` is a folder; `data` are files in the order of the recipe, empty where all lie at the same paths. Whether
    their content is that of the first host's is found out by all hosts together.
    """

    model: str | None = None
    data: tuple[str, ...] = ()

    def put_into(self, recipe: Recipe) -> Recipe:
        """The first host's recipe with these paths in place of its own. Raises UnusableInput where they do not fit."""
        model, data = recipe.model, recipe.data
        if self.model is not None:
            if not Path(model.name).is_absolute():
                raise UnusableInput(
                    "The run's base model {model} is one of the Hub, which this host gets by its commit: leave out "
                    "--model.",
                    model=one_line(model.name, max_length=120),
                )
            model = model.model_copy(update={"name": self.model})
        if self.data:
            paths = [data.path, *(source.path for source in data.also), *filter(None, [data.eval_path])]
            files = list(dict.fromkeys(path for path in paths if not path.startswith(HUB)))
            if len(files) != len(self.data):
                raise UnusableInput(
                    "The run reads {count} data files ({files}): give --data for each of them, in this order.",
                    count=len(files),
                    files=[one_line(file, max_length=120) for file in files],
                )
            own = dict(zip(files, self.data, strict=True))
            also = [source.model_copy(update={"path": own.get(source.path, source.path)}) for source in data.also]
            update = {"path": own.get(data.path, data.path), "also": also}
            if data.eval_path is not None:
                update["eval_path"] = own.get(data.eval_path, data.eval_path)
            data = data.model_copy(update=update)
        return recipe.model_copy(update={"model": model, "data": data})


def join_run(address: str, cards: Sequence[Gpu | None], paths: OwnPaths, tell: Callable[[str], None]) -> None:
    """Take part in the run that waits at `address` until it is over; `tell` is given a sentence for each change.

    Where the first host is out of reach, it is tried until it answers. Raises TuituneError where this host is refused
    or the run has failed.
    """
    told = HostTold(processes=len(cards), have_cards=have_cards(cards), libraries=libraries())
    joined_folder = own_folder(temporary_folder() / "joined")
    with own_place(joined_folder / str(os.getpid()), joined_folder) as folder:
        _take_part(address, cards, paths, tell, told, folder)


@contextmanager
def own_place(folder: Path, joined_folder: Path) -> Iterator[Path]:
    """This process's folder among those of all that have joined runs, held; what killed ones were brought is removed.

    Their logs stay. Raises TuituneError.
    """
    with ExitStack() as held:
        held.callback(os.close, _held(own_folder(folder)))
        for other in joined_folder.iterdir():
            with suppress(OSError):
                handle = _held(other)
                shutil.rmtree(other / "run", ignore_errors=True)
                os.close(handle)
        yield folder


def _held(folder: Path) -> int:
    """A handle that holds the folder until it is closed. Raises OSError where another process holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _take_part(
    address: str,
    cards: Sequence[Gpu | None],
    paths: OwnPaths,
    tell: Callable[[str], None],
    told: HostTold,
    folder: Path,
) -> None:
    """Take part as `join_run` does; `folder` is for what this host writes."""
    waiting = ""
    while True:
        try:
            joined = Joined(address, told)
        except OSError:
            if not waiting:
                waiting = _(
                    "No run answers at {address}: trying until one does; Ctrl+C ends this.", address=one_line(address)
                )
                tell(waiting)
            time.sleep(_TRY_SECONDS)
            continue
        waiting = ""
        tell(_("Joined {address} as {host}.", address=one_line(address), host=joined.place))
        host = _Host(joined, cards, paths, folder, tell)
        try:
            if (over := host.work()) is not None:
                text = one_line(over.text, max_length=1000)
                if over.has_failed:
                    raise TuituneError("The run is over: {text}", text=text)
                shutil.rmtree(folder, ignore_errors=True)
                tell(_("The run is over: {text}", text=text))
                return
        finally:
            host.end_round()
            joined.leave()
        tell(_("The first host at {address} does not answer any more.", address=one_line(address)))


def samples_of(pids: Sequence[int], cards: Sequence[Gpu | None]) -> list[dict[str, Any]]:
    """The machine now, once for each process and its card, as the first host is told of it."""
    samples = [sample(pid, card=card) for pid, card in zip(pids, cards, strict=True)]
    return [json.loads(to_json(entry)) for entry in samples]


class _Host:
    """This host, for as long as it reaches the first one."""

    def __init__(
        self,
        joined: Joined,
        cards: Sequence[Gpu | None],
        paths: OwnPaths,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._joined = joined
        self._paths = paths
        self._cards = cards
        self._folder = folder
        self._tell = tell
        self._round = -1
        self._processes: list[RankProcess] = []
        self._messages: Messages = queue.SimpleQueue()
        self._log = (folder / "log").open("a", encoding="utf-8", errors="backslashreplace")
        self._failing_since: float | None = None
        self._has_told_end = False
        self._sampled_at = 0.0

    def work(self) -> RunTold | None:
        """Train, round after round; what the first host said at the end, None where it is out of reach."""
        while not self._joined.is_lost:
            run = self._joined.run()
            if run is not None:
                if run.state == "over":
                    return run
                if self._joined.name in run.refused:
                    raise UnusableInput("The first host refuses: {reason}", reason=run.refused[self._joined.name])
                if self._processes and (run.state != "training" or run.round != self._round):
                    self.end_round()
                if not self._processes and run.state == "training" and run.round != self._round:
                    self._begin(run)
            self._tell_samples()
            self._listen()
        return None

    def end_round(self) -> None:
        end_processes(self._processes)
        self._processes = []

    def _tell_samples(self) -> None:
        """Tell the first host how this machine is, while it trains."""
        if self._processes and time.monotonic() - self._sampled_at > _SAMPLE_SECONDS:
            self._sampled_at = time.monotonic()
            pids = [process.process.pid for process in self._processes]
            self._joined.tell(samples=samples_of(pids, self._cards))

    def _begin(self, run: RunTold) -> None:
        first_rank = run.first_ranks.get(self._joined.name)
        self._round = run.round
        if first_rank is None:  # the run has hosts enough
            return
        shutil.rmtree(self._folder / "run", ignore_errors=True)
        (self._folder / "run").mkdir(mode=0o700)
        try:
            start = Start.from_data(run.start)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise TuituneError("The first host tells what this one does not understand: is it tuitune?") from None
        recipe = self._paths.put_into(Recipe.from_data(start.recipe)).model_dump(mode="json")
        start = replace(start, run=str(self._folder / "run"), recipe=recipe)
        starts = [replace(start, rank=first_rank + number) for number in range(len(self._cards))]
        self._messages, self._failing_since, self._has_told_end = queue.SimpleQueue(), None, False
        self._processes = start_processes(starts, self._cards, self._joined.sockets, self._messages, self._log)
        self._tell(
            _(
                "Training with {own} of the run's {processes} processes; their log is {file}.",
                own=len(starts),
                processes=start.world,
                file=self._log.name,
            )
        )

    def _listen(self) -> None:
        """Hear what the processes say, and tell the first host where one has failed."""
        try:
            process, line = self._messages.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            pass
        else:
            message = message_of(line)
            if isinstance(message, Ended):
                process.told_end = message
            return
        failures = [end for process in self._processes if (end := process.end) is not None and end.how != "done"]
        if not failures or self._has_told_end:
            return
        self._failing_since = self._failing_since or time.monotonic()
        if time.monotonic() - self._failing_since > _GATHERING_SECONDS:
            failure = first_failure(failures)
            self._has_told_end = True
            text = failure.text.english if isinstance(failure.text, Sentence) else failure.text
            self._joined.tell(round=self._round, end=asdict(replace(failure, text=text)))
            if failure.is_own_fault:
                self._tell(safe_text(failure.text))
