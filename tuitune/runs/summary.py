"""A run in short: what lists show of it, read from its record once and kept beside it in `summary.json`."""

import json
import math
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from tuitune.atomic import write_atomic
from tuitune.errors import TuituneError, explain
from tuitune.language import N_, _
from tuitune.runs.cost import cost, money
from tuitune.runs.events import Started, Step, from_json
from tuitune.runs.folder import Run, all_runs
from tuitune.runs.history import History
from tuitune.text import one_line
from tuitune.typed import checked, field_types
from tuitune.units import duration

_VERSION = 1
_UNREADABLE = N_("unreadable recipe")
"""In the place of a model that no recipe names."""
_MOST_BYTES = 2**16
_NOTE_CHARACTERS = 2_000
_LONGEST_LINE = 2**20
_SAMPLED_LOSSES = 20
_STEP = b'{"event": "step"'
_NOT_NEEDED = tuple(
    b'{"event": "%s"' % kind for kind in (b"phase", b"reply", b"sample", b"checkpoint", b"notice", b"output")
)
"""How lines begin that need not be parsed, which are nearly all of a long record."""
_ENDED = ("done", "stopped", "paused", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a list shows of one run."""

    folder: Path
    note: str = ""
    status: str
    """A word of `tuitune.runs.folder.Status`, or `unreadable`; another one where a newer tuitune wrote it."""
    problem: str = ""
    """Why the record cannot be read."""
    model: str = ""
    data: tuple[str, ...] = ()
    """The paths of its datasets."""
    method: str = ""
    """How it is trained, in words."""
    step: int = 0
    total_steps: int = 0
    held_out: tuple[float | None, ...] = ()
    """Mean loss over the held-out rows, before training and of the adapter; None where it was no finite number."""
    losses: tuple[float, ...] = ()
    """Training losses of up to 21 of its steps in their order, the newest last; only finite ones."""
    seconds: float = 0.0
    """How long its attempts took."""
    cost: float | None = None
    """What they cost in `currency`; None where no price is known."""
    currency: str = ""
    changed_at: float = 0.0
    """When its record was last written, in seconds since the epoch; 0 where there is none."""

    @property
    def name(self) -> str:
        return self.folder.name

    def as_dict(self) -> dict[str, Any]:
        """The run as `tuitune runs` exports it: values that JSON and CSV can hold."""
        return {
            "run": self.name,
            "folder": str(self.folder),
            "status": self.status,
            "model": self.model,
            "data": list(self.data),
            "method": self.method,
            "step": self.step,
            "total_steps": self.total_steps,
            "held_out_before": self.held_out[0] if len(self.held_out) > 1 else None,
            "held_out": self.held_out[-1] if self.held_out else None,
            "loss": self.losses[-1] if self.losses else None,
            "seconds": round(self.seconds, 3),
            "cost": None if self.cost is None else round(self.cost, 4),
            "currency": self.currency,
            "changed_at": self.changed_at,
            "note": self.note,
        }

    def matches(self, words: Iterable[str]) -> bool:
        """Whether each of the words stands in its name, state, model, data, method or note, in any case."""
        text = " ".join([self.name, self.status, self.model, *self.data, self.method, self.note]).casefold()
        return all(word.casefold() in text for word in words)


# How lists on a screen and on plain output word it.


def model_text(run: Summary, *, max_length: int = 80) -> str:
    """The model, or that the recipe which names it cannot be read."""
    return _(_UNREADABLE) if run.model == _UNREADABLE else one_line(run.model, max_length=max_length)


def model_name(run: Summary) -> str:
    """The model without its folders or owner."""
    return model_text(replace(run, model=PurePath(run.model).name or run.model))


def data_names(run: Summary) -> str:
    """The first dataset's name, and how many more there are."""
    if not run.data:
        return ""
    name = one_line(PurePath(run.data[0]).name or run.data[0], max_length=80)
    return f"{name} +{len(run.data) - 1}" if len(run.data) > 1 else name


def steps_text(run: Summary) -> str:
    return f"{run.step:,}/{run.total_steps:,}" if run.total_steps else ""


def held_out_text(run: Summary) -> str:
    """The loss over the held-out rows before and now, or the one that was measured; of rewards, the mean reward."""
    from tuitune.method_sections import fields_of  # with pydantic, which not every list of runs needs

    if run.held_out and fields_of(run.method.partition(" ")[0].lower()).learns_from_rewards:
        rewards = " → ".join("nan" if loss is None else f"{-loss:.2f}" for loss in run.held_out)
        return _("reward {rewards}", rewards=rewards)
    return " → ".join("nan" if loss is None else f"{loss:.3f}" for loss in run.held_out)


def duration_text(run: Summary) -> str:
    return duration(run.seconds)[:12] if run.seconds else ""


def cost_text(run: Summary) -> str:
    return "" if run.cost is None else money(run.cost, run.currency)


_KEPT = {name: hint for name, hint in field_types(Summary).items() if name not in ("folder", "note", "changed_at")}


def summaries(runs_folder: Path) -> list[Summary]:
    """Every run in the folder in short, the most recently changed first."""
    return [summarize(run) for run in all_runs(runs_folder)]


def summarize(run: Run) -> Summary:
    """A run in short, from `summary.json` where that belongs to the record as it is, else from the record.

    What was read from a record that no session writes to is kept in `summary.json`. Never raises for a run that is
    broken; what the file holds is checked, and for display alone.
    """
    fields = _kept(run)
    if fields is None or (fields["status"] not in _ENDED and run.is_live()):
        try:
            fields = _read(run)
        except OSError as error:
            reason = _("The record cannot be read ({reason}).", reason=one_line(explain(error), max_length=200))
            fields = {"status": "unreadable", "problem": reason}
    return Summary(folder=run.folder, note=note_of(run), changed_at=_changed_at(run), **fields)


def note_of(run: Run) -> str:
    """What the user has noted about the run; empty where there is nothing, or what cannot be read."""
    return (_small_file(run.note_file) or b"").decode(errors="replace").strip()[:_NOTE_CHARACTERS]


# --- what is kept ------------------------------------------------------------------------------------------------


def _kept(run: Run) -> dict[str, Any] | None:
    """The fields of `summary.json`; None where it is not there, damaged, or of another state of the run."""
    raw = _small_file(run.summary_file)
    if raw is None:
        return None
    try:
        data = json.loads(raw)
        if data["version"] != _VERSION or data["of"] != _state(run):
            return None
        return {name: checked(data["summary"][name], hint) for name, hint in _KEPT.items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _keep(run: Run, fields: dict[str, Any], state: list[list[int]]) -> None:
    with suppress(OSError):  # another user's run, or a full disk: the record is read again
        data = json.dumps({"version": _VERSION, "of": state, "summary": fields}, allow_nan=False)
        if len(data) <= _MOST_BYTES:
            write_atomic(run.summary_file, data, lasting=False)


def _state(run: Run) -> list[list[int]]:
    """What a summary belongs to: size and time of the record and of the recipe."""
    return [[file.st_size, file.st_mtime_ns] for file in map(os.stat, (run.events_file, run.recipe_file))]


def _changed_at(run: Run) -> float:
    try:
        return run.events_file.stat().st_mtime
    except OSError:
        return 0.0


def _small_file(path: Path) -> bytes | None:
    """The content of a file of at most 64 KiB; None where there is none, or no plain file: a pipe would not end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    with os.fdopen(handle, "rb") as file, suppress(OSError):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            raw = file.read(_MOST_BYTES + 1)
            return raw if len(raw) <= _MOST_BYTES else None
    return None


# --- from the record ---------------------------------------------------------------------------------------------


def _read(run: Run) -> dict[str, Any]:
    """The fields of a summary from recipe and record. Raises OSError."""
    try:
        state = _state(run)  # before they are read: what changes meanwhile is noticed the next time
    except OSError:
        state = []
    fields: dict[str, Any] = {"problem": "", **_recipe_fields(run)}
    history = History()
    losses: list[float] = []
    try:
        with run.open_events() as file:
            history, losses = _scan(file)
    except FileNotFoundError:
        pass
    held_out = [event.loss for event in history.evaluations]
    if len(held_out) > 1 and (before_and_after := history.loss_before_and_after()):
        held_out = list(before_and_after)
    paid = cost(history)
    fields |= {
        "cost": paid.so_far if paid and math.isfinite(paid.so_far) else None,
        "currency": paid.currency if paid else "",
        "status": run.status(history),
        "step": history.step,
        "total_steps": history.total_steps,
        "held_out": [loss if math.isfinite(loss) else None for loss in held_out],
        "losses": losses,
        "seconds": history.seconds,
    }
    if state and fields["status"] != "live":
        _keep(run, fields, state)
    return {name: checked(fields[name], hint) for name, hint in _KEPT.items()}


def _recipe_fields(run: Run) -> dict[str, Any]:
    try:
        recipe = run.recipe()
    except TuituneError:
        return {"model": _UNREADABLE, "data": [], "method": ""}
    adapter = ("Q" if recipe.model.load_in_4bit else "") + ("DoRA" if recipe.lora.use_dora else "LoRA")
    paths = [recipe.data.path, *(source.path for source in recipe.data.also)]
    return {"model": recipe.model.name, "data": paths, "method": f"{recipe.method.name.upper()} {adapter}"}


def _scan(file: BinaryIO) -> tuple[History, list[float]]:
    """What lists need of a record: a history without most of its events, and the losses of some steps.

    Of each attempt the history has the last event, so that it tells how long the attempt took.
    """
    history = History()
    steps: list[int] = []  # where their lines begin
    goes_on = False
    place, unread = 0, b""
    while line := file.readline(_LONGEST_LINE):
        if line.startswith(_STEP):
            if goes_on and isinstance(event := from_json(line), Step):
                del steps[max(0, event.step - 1) :]  # which this attempt runs again
                goes_on = False
            steps.append(place)
            unread = line
        elif line.startswith(_NOT_NEEDED):
            unread = line
        elif (event := from_json(line)) is not None:
            if isinstance(event, Started):
                _add(history, unread)
                goes_on = bool(steps)
            history.add(event)
            unread = b""
        place += len(line)
    _add(history, unread)

    def step_at(place: int) -> Step | None:
        file.seek(place)
        event = from_json(file.readline(_LONGEST_LINE))
        return event if isinstance(event, Step) else None

    stride = max(1, -(-len(steps) // _SAMPLED_LOSSES))
    sampled = [step for place in dict.fromkeys([*steps[::stride], *steps[-1:]]) if (step := step_at(place))]
    if sampled:
        history.add(sampled[-1])
    losses = [step.loss for step in sampled if math.isfinite(step.loss)]
    return history, losses


def _add(history: History, line: bytes) -> None:
    if line and (event := from_json(line)) is not None:
        history.add(event)
