"""Typed events: what happened in a run, one JSON line each, in the order it happened, with a checksum."""

import json
import math
import time
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from tuitune.language import Sentence, reworded, said
from tuitune.typed import checked, field_types

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def _event(cls: type[T]) -> type[T]:
    """A dataclass that the type checker holds frozen: Python would take as long for that as for all the rest."""
    return dataclass(slots=True, kw_only=True)(cls)


@_event
class Event:
    """Something that happened at `at` (seconds since the epoch)."""

    kind: ClassVar[str] = ""
    at: float = field(default_factory=time.time)


@_event
class Started(Event):
    """A session began (`attempt` 1) or resumed (2, …) the run."""

    kind: ClassVar[str] = "started"
    run: str
    attempt: int
    pid: int


@_event
class Price(Event):
    """What an hour of the machine costs in this attempt, as the user says; `currency` is the user's own label."""

    kind: ClassVar[str] = "price"
    per_hour: float
    currency: str


@_event
class Phase(Event):
    """The run entered a phase, or got further in it: `done` of `total` units, where they can be counted."""

    kind: ClassVar[str] = "phase"
    name: Literal["importing", "data", "model", "adapter", "before", "training", "saving", "after"]
    text: str
    done: int | None = None
    total: int | None = None


@_event
class Plan(Event):
    """What will be trained, known once data and model are loaded."""

    kind: ClassVar[str] = "plan"
    backend: str
    device: str
    rows: int
    eval_rows: int
    dropped_rows: int
    tokens: int
    trained_tokens: int
    trainable_parameters: int
    total_parameters: int
    total_steps: int
    thinking: bool = False
    """Whether the data brings thinking of its own before replies."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter; empty in records that do not tell."""
    batches: str = ""
    """How rows are put into batches: `end to end` or `padded`."""
    attention: str = ""
    """The attention kernels that ran, in words for the user."""
    cards: tuple[int, ...] = ()
    """Indices of the cards that train together, in the order of their ranks; empty where one process trains."""
    hosts: tuple[str, ...] = ()
    """The host of each of `cards`, the first one's first; empty where there is one host."""
    method: str = "sft"
    """What is learned from; records that do not tell are of replies to imitate."""
    data_digest: str = ""
    model_digest: str = ""
    """By which an attempt that goes on knows that data and base model are what they were; empty where unknown."""
    isolation: dict[str, float] = field(default_factory=dict)
    """What `tuitune.train.isolation` measured before the first step: rows of a batch against the same rows alone."""


@_event
class Step(Event):
    """One optimizer step. `loss` is the mean over the step's trained tokens; `tokens` counts non-padding input."""

    kind: ClassVar[str] = "step"
    attempt: int
    step: int
    total_steps: int
    epoch: float
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    elapsed_s: float | None = None
    """Seconds since its attempt began to train, by a clock that is never set."""
    card_seconds: tuple[float, ...] = ()
    """Where several cards train: how long each computed until it waited for the others, in the order of their ranks."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The method's own figures (rewards/margins, reward …), by the names its trainer logs."""


@_event
class Evaluation(Event):
    """Mean loss over the held-out rows after `step` optimizer steps (0: before training)."""

    kind: ClassVar[str] = "evaluation"
    attempt: int
    step: int
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    """The method's own figures over the held-out rows, named as in a step's."""


@_event
class Reply(Event):
    """What the model answered to a sample prompt after `step` optimizer steps (0: before training)."""

    kind: ClassVar[str] = "reply"
    step: int
    prompt: str
    reply: str


@_event
class Completions(Event):
    """The best or the worst of the answers that a step learns from, with its value by each reward."""

    kind: ClassVar[str] = "completions"
    step: int
    rank: Literal["best", "worst"]
    prompt: str
    reply: str
    reward: float
    values: dict[str, float] = field(default_factory=dict)


@_event
class Sample(Event):
    """The machine at one moment: the card where there is one, this process, and the disk that the run is written to."""

    kind: ClassVar[str] = "sample"
    process_bytes: int
    host_used_bytes: int
    host_total_bytes: int
    disk_free_bytes: int | None = None
    cpu_percent: float | None = None
    gpu_index: int | None = None
    gpu_used_bytes: int | None = None
    gpu_total_bytes: int | None = None
    gpu_process_bytes: int | None = None
    gpu_percent: float | None = None
    gpu_celsius: float | None = None
    gpu_watts: float | None = None
    gpu_others_bytes: int | None = None
    """GPU memory that other processes hold; None where NVML does not tell whose it is."""
    gpu_slowed_by: tuple[str, ...] = ()
    """What holds the card's clock down: `heat`, `power limit`, `power brake`."""
    gpu_clock_share: float | None = None
    """The clock as a share of the card's highest, where something holds it down."""
    host: str = ""
    """The machine's name where it is another host than the first one, which keeps the run."""


@_event
class Checkpoint(Event):
    """A checkpoint is whole on disk; `path` is relative to the run folder."""

    kind: ClassVar[str] = "checkpoint"
    attempt: int
    step: int
    path: str


@_event
class Notice(Event):
    """Something the user should know that does not stop the run."""

    kind: ClassVar[str] = "notice"
    text: str


@_event
class Output(Event):
    """A line that a library printed."""

    kind: ClassVar[str] = "output"
    text: str


@_event
class Failed(Event):
    """The run ended with an error; `message` is the sentence to show."""

    kind: ClassVar[str] = "failed"
    message: str


@_event
class Finished(Event):
    """The run ended by itself (`done`) or because it was asked to: for good (`stopped`), or for a while (`paused`).

    `adapter` is relative to the run folder, None where nothing was trained before the stop; it holds the weights after
    `adapter_step` steps (None: after all).
    """

    kind: ClassVar[str] = "finished"
    status: Literal["done", "stopped", "paused"]
    step: int
    seconds: float
    adapter: str | None
    adapter_step: int | None = None


_KINDS: dict[str, type[Event]] = {
    event_class.kind: event_class
    for event_class in (
        Started,
        Price,
        Phase,
        Plan,
        Step,
        Evaluation,
        Reply,
        Completions,
        Sample,
        Checkpoint,
        Notice,
        Output,
        Failed,
        Finished,
    )
}
_LAST_SECOND = 253_402_300_799.0  # of the year 9999, beyond which no clock can show a time


def finite(value: Any) -> Any:
    """The value as JSON can hold it: None for a float that is NaN or infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


_CHECKSUM = b', "crc32": "'


def to_json(event: Event) -> str:
    """One line of JSON without the newline; numbers that JSON cannot hold (NaN, infinities) become null.

    Sentences stand in it in English, and in `said` by their fields' names what they were made of.
    """
    data = {"event": event.kind, **{name: getattr(event, name) for name in field_types(type(event))}}
    if sentences := {name: said(value) for name, value in data.items() if isinstance(value, Sentence)}:
        data |= {name: value.english for name, value in data.items() if isinstance(value, Sentence)}
        data["said"] = sentences
    return json.dumps({name: finite(value) for name, value in data.items()}, ensure_ascii=True, allow_nan=False)


def to_line(event: Event) -> bytes:
    """The event as a line of a record: its JSON, whose last field is the CRC-32 of all that stands before it."""
    content = to_json(event)[:-1].encode()
    return b'%b%b%08x"}\n' % (content, _CHECKSUM, zlib.crc32(content))


def from_json(line: str | bytes) -> Event | None:
    """The event in a line; None for an event this version does not know or a line that is damaged or cut short."""
    try:
        if isinstance(line, bytes) and _differs_from_its_checksum(line):
            return None
        data = json.loads(line)
        return from_data(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None


def is_damaged(line: bytes) -> bool:
    """Whether a line of a record is not what was written: it has another checksum, or is no JSON object.

    Lines without a checksum, as older versions wrote them, are taken as they are.
    """
    if not line.strip() or not line.endswith(b"\n"):  # the end of a torn line, and one that is being written
        return False
    if _differs_from_its_checksum(line):
        return True
    if _checksum_place(line) is not None:
        return False
    try:
        return not isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return True


def _differs_from_its_checksum(line: bytes) -> bool:
    place = _checksum_place(line)
    return place is not None and line[place + len(_CHECKSUM) :].rstrip() != b'%08x"}' % zlib.crc32(line[:place])


def _checksum_place(line: bytes) -> int | None:
    """Where the checksum's field begins, if there is one."""
    place = len(line.rstrip()) - len(_CHECKSUM) - len('01234567"}')
    return place if place > 0 and line.startswith(_CHECKSUM, place) else None


def from_data(data: dict[str, Any]) -> Event | None:
    """The event in decoded JSON, every field of its declared type; None where one is not, or an unknown event.

    Unknown fields are ignored, so that a newer run folder can be read. A loss of null is NaN, which `to_json` wrote so.
    """
    kind = data.get("event")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return None
    try:
        fields = {
            name: math.nan if name == "loss" and finite(data[name]) is None else checked(data[name], hint)
            for name, hint in field_types(cls).items()
            if name in data
        }
        for name, made_of in _dictionary(data.get("said")).items():
            if isinstance(text := fields.get(name), str):
                fields[name] = reworded(text, made_of)
        event = cls(**fields)
    except (TypeError, ValueError, OverflowError):
        return None
    return event if 0 <= event.at <= _LAST_SECOND else None


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
