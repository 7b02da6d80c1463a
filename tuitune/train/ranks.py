"""The processes that train one run together, one for each card, and what they agree on.

Each of them is a run on one card to every library: none sees the others. They are joined here alone, by process groups
that are this module's own, over the loopback interface and found through a file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tuitune.recipe import Recipe
from tuitune.train.control import Control

_LOOPBACK = "lo"
SOCKETS = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
"""What must stand in a rank's environment, so that it listens on no network."""

# One rank replies to sample prompts or writes a checkpoint while the others wait; one that dies is noticed at once.
_PATIENCE = timedelta(days=30)


class Ranks:
    """This process among the `world` that train a run, `rank` counting from 0; alone by default.

    Every method that waits for the others must be called by all of them, in the same order. Where one of them has
    died, it raises RuntimeError.
    """

    def __init__(self, rank: int = 0, world: int = 1, gloo: Any = None, nccl: Any = None) -> None:
        """`gloo` joins the processes, `nccl` their cards where they have any."""
        self.rank = rank
        self.world = world
        self._gloo = gloo
        self._nccl = nccl

    @property
    def is_first(self) -> bool:
        """Whether this is the process that tells what happens, and writes."""
        return self.rank == 0

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
        import torch

        text = json.dumps(value).encode() if self.is_first else b""
        (size,) = self.highest(float(len(text)))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._gloo.broadcast([data], _broadcast_options()).wait()
        return json.loads(data.numpy().tobytes())

    def gathered(self, number: int) -> tuple[int, ...]:
        """The number of each process, by rank."""
        return tuple(map(int, self.totals(*(number if rank == self.rank else 0 for rank in range(self.world)))))

    def add_up(self, tensor: Any) -> None:
        """Set a tensor, on this process's device, to the sum over all processes; the host does not wait for a GPU."""
        if self.world > 1:
            group = self._nccl or self._gloo
            group.allreduce([tensor], _reduce_options("SUM")).wait()

    def _reduced(self, numbers: Sequence[float], operation: str) -> tuple[float, ...]:
        if self.world == 1:
            return tuple(numbers)
        import torch

        values = torch.tensor(numbers or (0.0,), dtype=torch.float64)
        self._gloo.allreduce([values], _reduce_options(operation)).wait()
        return tuple(values[: len(numbers)].tolist())


ALONE = Ranks()


def join(rank: int, world: int, meeting: Path, *, has_own_card: bool) -> Ranks:
    """Wait for the other processes, which are given the same file `meeting`, in a folder that only the user can enter.

    SOCKETS must stand in the environment.
    """
    import torch.distributed as dist

    store = dist.FileStore(str(meeting), world)
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("processes", store), rank, world, _PATIENCE)
    nccl = None
    if has_own_card:
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("cards", store), rank, world)
    return Ranks(rank, world, gloo, nccl)


def _reduce_options(operation: str) -> Any:
    import torch.distributed as dist

    options = dist.AllreduceOptions()
    options.reduceOp = getattr(dist.ReduceOp, operation)
    return options


def _broadcast_options() -> Any:
    import torch.distributed as dist

    options = dist.BroadcastOptions()
    options.rootRank = 0
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
