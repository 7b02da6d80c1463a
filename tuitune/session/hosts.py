"""Several hosts train one run: what they tell each other, and which of them still answers.

They meet at a TCPStore of torch.distributed at the first host, by which gloo and NCCL find each other too. What stands
in it is JSON, and is held against its types: the rendezvous of torch's own launcher would unpickle what anyone on the
network wrote there. Nobody is authenticated, so the network must be a private one.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import psutil

from tuitune import __version__
from tuitune.errors import UnusableInput, explain
from tuitune.language import N_, _
from tuitune.runs.events import Sample, from_data
from tuitune.session.rank_messages import Ended
from tuitune.text import one_line
from tuitune.train.control import Control
from tuitune.train.ranks import network_store
from tuitune.typed import checked, field_types

PRIVATE = N_(
    "Everyone on that network can join or disturb the run: nobody is authenticated, so it must be a private one."
)
BEAT_SECONDS = 0.5
LOST_SECONDS = 10.0
"""A host that has told nothing for so long is taken for lost."""
_ANSWER_SECONDS = timedelta(seconds=30)
_CONNECT_SECONDS = 3.0
_MOST_HOSTS = 1024
_RUN, _HOSTS = "run", "hosts"


@dataclass(frozen=True)
class HostTold:
    """What a host that has joined tells of itself."""

    beat: int = 0
    address: str = ""
    processes: int = 0
    have_cards: bool = False
    """Whether each of its processes has a card of its own."""
    libraries: str = ""
    has_left: bool = False
    round: int = 0
    """The round that `end` is of."""
    end: dict[str, Any] | None = None
    """How the work of its processes has ended, where it was not to its end."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """The machine as it last was: an event `sample` for each of its processes."""


@dataclass(frozen=True)
class RunTold:
    """What the first host tells of the run. With each round all processes begin anew."""

    beat: int = 0
    state: Literal["waiting", "training", "over"] = "waiting"
    round: int = 0
    first_ranks: dict[str, int] = field(default_factory=dict)
    """Of each host in the round the rank of its first process."""
    start: dict[str, Any] = field(default_factory=dict)
    """The `Start` of its processes, but for what differs between them."""
    refused: dict[str, str] = field(default_factory=dict)
    """Hosts that cannot take part, and why."""
    text: str = ""
    """How the run has ended."""
    has_failed: bool = False


ToldT = TypeVar("ToldT", HostTold, RunTold)


class Contact:
    """Tells and hears in a thread of its own: where the network is gone, a call may wait for minutes."""

    def __init__(self, store: Any, name: str, told: HostTold | RunTold, others: Callable[[Any], Sequence[str]]) -> None:
        """`name` is who tells here; `others` gives who is listened to."""
        self.heard: dict[str, bytes] = {}
        self._at: dict[str, float] = {}
        self._store = store
        self._name = name
        self._told = told
        self._others = others
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.is_broken = False
        threading.Thread(target=self._work, daemon=True).start()

    def tell(self, told: HostTold | RunTold) -> None:
        self._told = told
        self._wake.set()

    def silent_s(self, name: str) -> float:
        """Seconds since anything new came from there."""
        return time.monotonic() - self._at.get(name, 0.0)

    def is_lost(self, name: str) -> bool:
        return self.is_broken or self.silent_s(name) > LOST_SECONDS

    def close(self) -> None:
        self._closed.set()
        self._wake.set()

    def _work(self) -> None:
        beat = 0
        try:
            while not self._closed.is_set():
                self._wake.clear()
                beat += 1
                self._store.set(self._name, json.dumps(asdict(self._told) | {"beat": beat}))
                for name in self._others(self._store):
                    if self._store.check([name]) and (line := self._store.get(name)) != self.heard.get(name):
                        self._at[name] = time.monotonic()
                        self.heard[name] = line
                self._wake.wait(BEAT_SECONDS)
        except RuntimeError:  # torch's errors of a network are such
            self.is_broken = True


@dataclass(frozen=True)
class Member:
    """A host that takes part in a round."""

    name: str
    """In the store."""
    place: str
    """Its address, for the user."""
    processes: int
    first_rank: int


class Meeting:
    """The first host's side: waits for the others, has them begin, and hears of their ends. Raises UnusableInput."""

    def __init__(self, address: str, hosts: int) -> None:
        """Listens on `address` (HOST:PORT, one of this machine's own) alone."""
        self.address = address
        listening = listen(address)
        self.place, port = listening.getsockname()[:2]
        self.sockets = sockets_of(self.place)
        self._hosts = hosts
        self._store = network_store(self.place, port, _ANSWER_SECONDS, listening=listening.detach())
        self._told = RunTold()
        self._contact = Contact(self._store, _RUN, self._told, _joined)
        self.members: list[Member] = []
        self._samples_heard: dict[str, list[dict[str, Any]]] = {}

    @property
    def world(self) -> int:
        return self.members[-1].first_rank + self.members[-1].processes

    def gather(self, processes: int, have_cards: bool, control: Control) -> bool:
        """Wait for the other hosts, which bring their processes to these; False where the run is asked to stop."""
        own = HostTold(processes=processes, have_cards=have_cards, libraries=libraries())
        while not control.stop.is_set() and not control.now.is_set():
            fit: list[tuple[str, HostTold]] = []
            for name, told in self._there():
                if problem := _unfit(own, told):
                    if name not in self._told.refused:
                        self._tell(refused={**self._told.refused, name: problem})
                else:
                    fit.append((name, told))
            if len(fit) >= self._hosts - 1:
                self._take(own, fit[: self._hosts - 1])
                return True
            time.sleep(BEAT_SECONDS / 2)
        return False

    def begin(self, start: dict[str, Any]) -> None:
        """Have the processes of all members begin."""
        ranks = {member.name: member.first_rank for member in self.members}
        self._tell(state="training", first_ranks=ranks, start=start)

    @property
    def round(self) -> int:
        return self._told.round

    def places(self, processes: int) -> list[str]:
        """The host of each process by rank, `processes` of them on this one."""
        others = [member.place for member in self.members for _process in range(member.processes)]
        return [self.place] * processes + others

    def lost(self) -> Member | None:
        """A host of this round that has left or does not answer."""
        for member in self.members:
            if self._contact.is_lost(member.name) or self._heard(member.name).has_left:
                return member
        return None

    def ends(self) -> list[Ended]:
        """How the work of other hosts has ended in this round, where one of their processes has failed."""
        ends = []
        for member in self.members:
            told = self._heard(member.name)
            if told.round == self.round and told.end is not None:
                try:
                    end = Ended.from_data(told.end)
                except (KeyError, TypeError, ValueError, OverflowError):  # no host of ours tells such
                    continue
                text = _("On host {host}: {text}", host=member.place, text=one_line(end.text, max_length=1000))
                ends.append(Ended(end.how, text, end.step, end.is_own_fault))
        return ends

    def samples(self) -> list[Sample]:
        """The machines of the other hosts, where they have told of them since this was last asked; by our clock."""
        samples = []
        for member in self.members:
            told = self._heard(member.name).samples[: member.processes]
            if told != self._samples_heard.get(member.name):
                self._samples_heard[member.name] = told
                heard = [from_data(data) for data in told]
                samples += [
                    replace(sample, at=time.time(), host=member.place) for sample in heard if isinstance(sample, Sample)
                ]
        return samples

    def end_round(self) -> None:
        """Have all other hosts end their processes."""
        self._tell(state="waiting", round=self.round + 1, first_ranks={}, start={})

    def close(self, text: str, *, has_failed: bool = False) -> None:
        """Tell the others how the run has ended."""
        self._tell(state="over", text=text, has_failed=has_failed)
        deadline = time.monotonic() + 4 * BEAT_SECONDS
        while time.monotonic() < deadline and any(not told.has_left for _name, told in self._there()):
            time.sleep(0.1)
        self._contact.close()

    def _tell(self, **changes: Any) -> None:
        self._told = RunTold(**{**self._told.__dict__, **changes})
        self._contact.tell(self._told)

    def _there(self) -> list[tuple[str, HostTold]]:
        """The hosts that have joined and answer, in the order of their coming."""
        names = sorted(self._contact.heard, key=lambda name: int(name.rpartition("-")[2]))
        there = [(name, self._heard(name)) for name in names if not self._contact.is_lost(name)]
        return [(name, told) for name, told in there if told.processes > 0 and not told.has_left]

    def _heard(self, name: str) -> HostTold:
        return parsed(HostTold, self._contact.heard.get(name, b"")) or HostTold(has_left=True)

    def _take(self, own: HostTold, fit: Sequence[tuple[str, HostTold]]) -> None:
        rank, self.members = own.processes, []
        for name, told in fit:
            address = one_line(told.address, max_length=60)
            namesakes = sum(member.place.split(" ")[0] == address for member in self.members)
            place = f"{address} ({namesakes + 1})" if namesakes or address == self.place else address
            self.members.append(Member(name, place, told.processes, rank))
            rank += told.processes


class Joined:
    """Another host's side: what the run is, and this host's own word. Raises OSError where nobody is there."""

    def __init__(self, address: str, told: HostTold) -> None:
        host, port = host_and_port(address)
        with socket.create_connection((host, port), timeout=_CONNECT_SECONDS) as probe:
            self.place = str(probe.getsockname()[0])
        self.sockets = sockets_of(self.place)
        try:
            self._store = network_store(host, port, _ANSWER_SECONDS)
            self.number = self._store.add(_HOSTS, 1)
        except RuntimeError as error:
            raise OSError(one_line(error, max_length=120)) from None
        self.name = f"host-{self.number}"
        self._told = HostTold(**{**told.__dict__, "address": self.place})
        self._contact = Contact(self._store, self.name, self._told, lambda store: (_RUN,))
        self._began = time.monotonic()

    def tell(self, **changes: Any) -> None:
        self._told = HostTold(**{**self._told.__dict__, **changes})
        self._contact.tell(self._told)

    def run(self) -> RunTold | None:
        """What the run is; None until that is known."""
        return parsed(RunTold, self._contact.heard.get(_RUN, b""))

    @property
    def is_lost(self) -> bool:
        """Whether the first host is gone."""
        heard = _RUN in self._contact.heard or time.monotonic() - self._began > LOST_SECONDS
        return self._contact.is_broken or (heard and self._contact.is_lost(_RUN))

    def leave(self) -> None:
        self.tell(has_left=True)
        time.sleep(BEAT_SECONDS)
        self._contact.close()


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of HOST:PORT. Raises UnusableInput."""
    host, _colon, port = address.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or host in ("0.0.0.0", "::") or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UnusableInput(
            "{address} is not HOST:PORT, such as 10.0.0.1:29500.", address=one_line(address, max_length=80)
        )
    return host, int(port)


def listen(address: str) -> socket.socket:
    """A socket that listens on HOST:PORT, an address of this host's own. Raises UnusableInput."""
    host, port = host_and_port(address)
    try:
        family, *_kind, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((where[0], port), family=family)
    except OSError as error:
        raise UnusableInput(
            "This host cannot listen on {address} ({reason}): give an address of its own in the network of "
            "the hosts, and a port that nothing uses.",
            address=one_line(address),
            reason=one_line(explain(error)),
        ) from None


def sockets_of(address: str) -> dict[str, str]:
    """What must stand in a process's environment, so that it listens on the network of this address alone."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(own.address.partition("%")[0] == address for own in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    raise UnusableInput(
        "{address} is no address of this host: `ip addr` lists them.", address=one_line(address, max_length=80)
    )


def libraries() -> str:
    """What must be the same on all hosts."""
    import torch

    return f"tuitune {__version__} and torch {torch.__version__}"


def parsed(kind: type[ToldT], line: bytes) -> ToldT | None:
    """What a host has told; None for what is not of that kind."""
    try:
        data = json.loads(line)
        return kind(**{name: checked(data[name], hint) for name, hint in field_types(kind).items()})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _joined(store: Any) -> list[str]:
    return [f"host-{number}" for number in range(1, 1 + min(_MOST_HOSTS, store.add(_HOSTS, 0)))]


def _unfit(own: HostTold, told: HostTold) -> str:
    """Why a host cannot take part; empty where it can."""
    theirs = one_line(told.libraries, max_length=120)
    if theirs != own.libraries:
        return _(
            "this host has {theirs}, and the first one has {first}: install the same on both.",
            theirs=theirs,
            first=own.libraries,
        )
    if told.have_cards != own.have_cards:
        return _(
            "either each process of every host has a GPU of its own, or none has: this host is not as the first one."
        )
    return ""
