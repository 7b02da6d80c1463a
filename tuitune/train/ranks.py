"""The processes that train one run together, one for each card, and what they agree on.

Each of them is a run on one card to every library: none sees the others. They are joined here alone, by process groups
that are this module's own. On one host they find each other through a file and talk over the loopback interface; those
of several hosts meet at a store on the first one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tuitune.recipe import Recipe
from tuitune.train.control import Control

_LOOPBACK = "lo"
SOCKETS = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
"""What must stand in the environment of a rank whose run is on one host, so that it listens on no network."""

# One rank replies to sample prompts or writes a checkpoint while the others wait; one that dies is noticed at once.
_PATIENCE = timedelta(days=30)
_STORE_PATIENCE = timedelta(minutes=5)


class Ranks:
    """This process among the `world` that train a run, `rank` counting from 0; alone by default.

    Every method that waits for the others must be called by all of them, in the same order. Where one of them has
    died, it raises RuntimeError.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, gloo: Any = None, nccl: Any = None, places: Sequence[str] = ()
    ) -> None:
        """`gloo` joins the processes, `nccl` their cards where they have any; `places` as in `Start`."""
        self.rank = rank
        self.world = world
        self.places = places
        self._gloo = gloo
        self._nccl = nccl

    @property
    def is_first(self) -> bool:
        """Whether this is the process that tells what happens, and writes."""
        return self.rank == 0

    @property
    def span_hosts(self) -> bool:
        return len(set(self.places)) > 1

    @property
    def writes_here(self) -> bool:
        """Whether this is the process of its host that writes what all of that host read."""
        return self.places.index(self.places[self.rank]) == self.rank if self.places else self.is_first

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process has it set."""
        return tuple(value > 0 for value in self.highest(*map(float, flags)))

    def first_says(self, *flags: bool) -> tuple[bool, ...]:
        """The flags of the first process."""
        return self.any(*(flag and self.is_first for flag in flags))

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.any()

    def totals(self, *numbers: float) -> tuple[float, ...]:
        return self._reduced(numbers, "SUM")

    def highest(self, *numbers: float) -> tuple[float, ...]:
        return self._reduced(numbers, "MAX")

    def lowest(self, *numbers: float) -> tuple[float, ...]:
        return self._reduced(numbers, "MIN")

    def share(self, value: Any) -> Any:
        """The first process's value, which must be plain JSON data; the values of the others do not matter."""
        if self.world == 1:
            return value
        return json.loads(self.share_bytes(json.dumps(value).encode()))

    def share_bytes(self, own: bytes) -> bytes:
        """The bytes of the first process."""
        if self.world == 1:
            return own
        (size,) = self.highest(float(len(own) if self.is_first else 0))
        return self._broadcast(own, int(size), 0)

    def pooled(self, value: Any) -> list[Any]:
        """The values of all processes by rank, which must be plain JSON data."""
        if self.world == 1:
            return [value]
        own = json.dumps(value).encode()
        sizes = self.gathered(len(own))
        return [json.loads(self._broadcast(own, size, rank)) for rank, size in enumerate(sizes)]

    def totals_by_name(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums of all processes' numbers; the first one must have every name, and what another lacks is 0."""
        names: list[str] = self.share(list(numbers))
        return dict(zip(names, self.totals(*(float(numbers.get(name, 0.0)) for name in names)), strict=True))

    def unlike_the_first(self, text: str) -> list[int]:
        """The ranks of the processes whose text is not that of the first one."""
        differs = text != self.share(text)
        return [rank for rank, flag in enumerate(self.gathered(differs)) if flag]

    def gathered(self, number: int) -> tuple[int, ...]:
        """The number of each process, by rank."""
        return tuple(map(int, self.totals(*(number if rank == self.rank else 0 for rank in range(self.world)))))

    def add_up(self, tensor: Any) -> None:
        """Set a tensor, on this process's device, to the sum over all processes; the host does not wait for a GPU."""
        if self.world > 1:
            group = self._nccl or self._gloo
            group.allreduce([tensor], _reduce_options("SUM")).wait()

    def gather(self, whole: Any, part: Any) -> Any:
        """Begin to set `whole` (n) to the parts (n / world) of all processes, by rank, on this process's device.

        What is returned has a `wait`, after which what this process computes reads them; the host waits for no GPU.
        """
        if part.device.type == "cuda" and self._nccl is None:  # several processes on one card
            on_host = whole.new_empty(len(whole), device="cpu")
            self._gloo._allgather_base(on_host, part.cpu()).wait()
            return _Arrived(whole.copy_(on_host))
        return (self._nccl or self._gloo)._allgather_base(whole, part)

    def _broadcast(self, own: bytes, size: int, rank: int) -> bytes:
        """The `size` bytes of the process with that rank."""
        import torch

        data = torch.zeros(size, dtype=torch.uint8)
        if rank == self.rank and own:
            data.copy_(torch.frombuffer(bytearray(own), dtype=torch.uint8))
        self._gloo.broadcast([data], _broadcast_options(rank)).wait()
        return bytes(data.numpy())

    def _reduced(self, numbers: Sequence[float], operation: str) -> tuple[float, ...]:
        if self.world == 1:
            return tuple(numbers)
        import torch

        values = torch.tensor(numbers or (0.0,), dtype=torch.float64)
        self._gloo.allreduce([values], _reduce_options(operation)).wait()
        return tuple(values[: len(numbers)].tolist())


class _Arrived:
    """Work that is done."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def wait(self) -> None: ...


ALONE = Ranks()


def join(rank: int, world: int, meeting: str, *, has_own_card: bool, places: Sequence[str] = ()) -> Ranks:
    """Wait for the other processes, which are given the same `meeting`.

    That is a file in a folder that only the user can enter, or HOST:PORT/NAME of a store that is there. What names the
    network to listen on, as SOCKETS do, must stand in the environment.
    """
    import torch.distributed as dist

    if places:
        address, _, name = meeting.partition("/")
        host, _, port = address.rpartition(":")
        store = dist.PrefixStore(name, network_store(host, int(port), _STORE_PATIENCE))
    else:
        store = dist.FileStore(meeting, world)
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("processes", store), rank, world, _PATIENCE)
    nccl = None
    if has_own_card:
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("cards", store), rank, world)
    return Ranks(rank, world, gloo, nccl, places)


def network_store(host: str, port: int, patience: timedelta, *, listening: int | None = None) -> Any:
    """The store of a run on several hosts; with the descriptor of a socket that is `listening`, it is begun there."""
    import torch.distributed as dist

    return dist.TCPStore(
        host, port, None, listening is not None, patience, wait_for_workers=False, master_listen_fd=listening
    )


def _reduce_options(operation: str) -> Any:
    import torch.distributed as dist

    options = dist.AllreduceOptions()
    options.reduceOp = getattr(dist.ReduceOp, operation)
    return options


def _broadcast_options(rank: int) -> Any:
    import torch.distributed as dist

    options = dist.BroadcastOptions()
    options.rootRank = rank
    options.rootTensor = 0
    return options


@dataclass
class SharedControl(Control):
    """What the run is asked, as all processes know it; the first one gets the `requests` and shares them in `agree`."""

    ranks: Ranks = ALONE
    requests: Control = field(default_factory=Control)
    """What this process alone was asked."""

    def agree(self) -> None:
        requests = self.requests
        stop, pause, save, changed = self.ranks.any(
            requests.stop.is_set(), requests.pause.is_set(), requests.save.is_set(), requests.recipe is not None
        )
        if pause:
            self.pause.set()
        if stop:
            self.stop.set()
        if save:
            requests.save.clear()
            self.save.set()
        if changed:
            recipe, requests.recipe = requests.recipe, None
            self.recipe = Recipe.from_data(self.ranks.share(recipe.model_dump(mode="json") if recipe else None))

    def is_asked_to_stop(self) -> bool:
        return self.requests.stop.is_set()
