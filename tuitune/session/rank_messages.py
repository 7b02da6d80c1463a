"""What the session and the processes that train a run together tell each other: lines of JSON, through pipes."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuitune.recipe import Recipe
from tuitune.runs.events import Evaluation, Event, Plan, from_data, from_json, to_json
from tuitune.runs.folder import Run
from tuitune.session.protocol import decode, encode
from tuitune.train.control import Control
from tuitune.train.resume import Resumption
from tuitune.typed import checked, field_types


@dataclass(frozen=True)
class Start:
    """The first line to a process: what it trains, and as which of how many."""

    rank: int
    world: int
    has_own_card: bool
    """Whether each of them has a card of its own, by which the cards can be joined."""
    meeting: str
    """Where the processes find each other: a file, or HOST:PORT/NAME."""
    run: str
    recipe: dict[str, Any]
    resumed: dict[str, Any] | None
    places: list[str] = field(default_factory=list)
    """The host of each process by rank; empty where there is one host."""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: str) -> "Start":
        return cls.from_data(json.loads(line))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "Start":
        """Raises KeyError, TypeError, ValueError, OverflowError for what is no such line."""
        return cls(**{name: checked(data[name], hint) for name, hint in field_types(cls).items()})


def resumption_to_data(resumed: Resumption | None) -> dict[str, Any] | None:
    if resumed is None:
        return None
    return {
        "attempt": resumed.attempt,
        "checkpoint": str(resumed.checkpoint) if resumed.checkpoint else None,
        "plan": to_json(resumed.plan) if resumed.plan else None,
        "measured": [to_json(evaluation) for evaluation in resumed.measured],
    }


def resumption_from_data(data: dict[str, Any] | None) -> Resumption | None:
    if data is None:
        return None
    plan = from_json(data["plan"]) if data["plan"] else None
    evaluations = [from_json(line) for line in data["measured"]]
    return Resumption(
        data["attempt"],
        Path(data["checkpoint"]) if data["checkpoint"] else None,
        plan if isinstance(plan, Plan) else None,
        tuple(evaluation for evaluation in evaluations if isinstance(evaluation, Evaluation)),
    )


@dataclass(frozen=True)
class Orders:
    """A line to the first process: what the run is asked from now on."""

    stop: bool = False
    pause: bool = False
    save: bool = False
    recipe: dict[str, Any] | None = None

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: str) -> "Orders":
        data = json.loads(line)
        return cls(**{name: checked(data[name], hint) for name, hint in field_types(cls).items() if name in data})

    def pass_on(self, control: Control) -> None:
        if self.recipe is not None:
            control.recipe = Recipe.from_data(self.recipe)
        if self.save:
            control.save.set()
        if self.pause:
            control.pause.set()
        if self.stop:
            control.stop.set()


End = Literal["done", "out of memory", "unusable", "failed", "dead"]


@dataclass(frozen=True)
class Ended:
    """The last line of a process: how its work has ended; `text` is the sentence for the user where it failed.

    `dead` is what the session says of one that sent none.
    """

    how: End
    text: str = ""
    step: int = 0
    is_own_fault: bool = True
    """False where it was cut off from another process, which is the one to look at."""

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "Ended":
        """Raises KeyError, TypeError, ValueError, OverflowError for what is none."""
        return cls(**{name: checked(data[name], hint) for name, hint in field_types(cls).items()})


@dataclass(frozen=True)
class Saving:
    """Whether a checkpoint or the adapter is being written, which a signal to end waits for."""

    is_set: bool


Message = Event | Ended | Saving


class SavingFlag(threading.Event):
    """Tells the session whenever it is set or cleared."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__()
        self._send = send

    def set(self) -> None:
        super().set()
        self._send(Saving(True))

    def clear(self) -> None:
        super().clear()
        self._send(Saving(False))


def line_of(message: Message) -> bytes:
    if isinstance(message, Ended):
        return encode({"ended": asdict(message)})
    if isinstance(message, Saving):
        return encode({"saving": message.is_set})
    return to_json(message).encode() + b"\n"


def message_of(line: bytes) -> Message | None:
    """What a process has sent; None for a line that is none of these."""
    try:
        data = decode(line)
        if "saving" in data:
            return Saving(checked(data["saving"], bool))
        ended = data.get("ended")
        if ended is None:
            return from_data(data)
        return Ended.from_data(ended)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def run_of(start: Start) -> Run:
    return Run(Path(start.run))
