"""How long a step takes on several cards and hosts, computed from what one H200 was measured to do.

    python -m tuitune.plan.scaling [--parameters 8.03e9] [--adapter 42e6] [--layers 32] [--tokens 310] [--rows 64]

prints the table of docs/scaling.md for any model: cards in one host, then hosts over Ethernet of three speeds.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tuitune.language import N_, _, plural

# Parameters of the base, and FLOP/s that a large step of it reaches: 4 FLOP a parameter and token, as frozen weights
# get no gradient. From one card's 64 rows in benchmarks/results/gpu_cards_speed.json.
MEASURED = ((1.247e9, 4.55e14), (8.03e9, 5.19e14))
# Of a step that is bound by launching kernels, per layer: `own choice … 8 rows a step` of gpu_speed_1b.json, 16 layers.
LAUNCH_S_A_LAYER = 0.0049
# What a small step that is captured as CUDA graphs takes longer: `own choice … 8 rows a step` of gpu_speed_queued.json.
GRAPH_STEP_S = 0.008
WORTH_ITS_CARDS = 0.6
"""Of the cards' time, the share that must go into computing for them to be worth it."""
GRADIENT_BYTES = 4  # a parameter of the adapter: fp32

# Bytes a second that an all-reduce moves in each direction, and seconds that each of its rounds waits.
NVLINK = (200e9, 20e-6)
ETHERNET = {"10 Gbit/s": (1.1e9, 60e-6), "25 Gbit/s": (2.8e9, 50e-6), "100 Gbit/s": (11e9, 30e-6)}


GAINS_LITTLE = N_("so small a step gains little")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step consists of, whatever the number of cards: rows a step stay those of the recipe."""

    parameters: int
    """Of the base model."""
    adapter_parameters: int
    layers: int
    rows: int
    """Rows a step, over all passes and cards."""
    tokens_a_row: float
    graphs: bool = True
    """Whether small passes are replayed as CUDA graphs."""
    shared_bytes: int = 0
    """Of the frozen weights that cards share, if they do: each pass fetches them twice, forward and backward."""
    rows_a_pass: int = 1


@dataclass(frozen=True, slots=True)
class Scaled:
    """A step on `gpus` cards in each of `hosts` hosts."""

    gpus: int
    hosts: int
    link: str
    """What the hosts are connected by; empty for one host."""
    step_s: float
    gradients_s: float
    """Of the step, what exchanging gradients takes: as if none of it went on beside the backward pass."""
    speedup: float
    """Over one card."""

    @property
    def efficiency(self) -> float:
        """Share of the cards' time that the speed-up pays for."""
        return self.speedup / (self.gpus * self.hosts)

    @property
    def gains_little(self) -> bool:
        """Whether much of the cards' time would be spent on what no number of cards shortens."""
        return self.efficiency < WORTH_ITS_CARDS

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        cards = plural("{count} card", "{count} cards", self.gpus)
        if self.hosts > 1:
            where = _("{hosts} hosts with {cards} each, {link}", hosts=self.hosts, cards=cards, link=self.link)
        else:
            where = cards
        text = _(
            "{where}: {speedup:.2f}× one card ({share:.0%} of each), {seconds:.3f} s a step, {ms:.1f} ms of it for "
            "gradients",
            where=where,
            speedup=self.speedup,
            share=self.efficiency,
            seconds=self.step_s,
            ms=1e3 * self.gradients_s,
        )
        return _("{text}; {remark}", text=text, remark=_(GAINS_LITTLE)) if self.gains_little else text


def scaled(step: Step, gpus: int, hosts: int = 1, link: str = "", *, imbalance: float = 0.0) -> Scaled:
    """The step on `gpus` cards in each of `hosts` hosts joined by `link`, a key of ETHERNET.

    `imbalance` is by how much the fullest card's tokens exceed the mean, as a share. Where there are fewer rows than
    cards, the others have nothing to do.
    """
    cards = gpus * hosts
    used_cards = min(cards, step.rows)
    alone_s = _computing_s(step, step.rows)
    computing_s = _computing_s(step, step.rows / used_cards * (1 + imbalance))
    fetching_s = math.ceil(step.rows / used_cards / step.rows_a_pass) * fetch_s(step.shared_bytes, gpus)
    computing_s = _beside(computing_s, fetching_s)  # the next layer's weights come while this one computes
    gradients_s = exchange_s(GRADIENT_BYTES * step.adapter_parameters, gpus, hosts, link)
    together_s = computing_s + gradients_s
    return Scaled(gpus, hosts, link if hosts > 1 else "", together_s, gradients_s, alone_s / together_s)


def exchange_s(size_bytes: int, gpus: int, hosts: int = 1, link: str = "") -> float:
    """Seconds to sum `size_bytes` over all cards: within each host over NVLink, then around a ring of the hosts.

    A ring of n sends 2 · (n - 1) / n of the bytes through each of its links, in 2 · (n - 1) rounds.
    """
    seconds = _ring_s(size_bytes, gpus, *NVLINK)
    if hosts > 1:
        seconds += _ring_s(size_bytes, hosts, *ETHERNET[link])
    return seconds


def _ring_s(size_bytes: int, members: int, bytes_a_second: float, wait_s: float) -> float:
    return 2 * (members - 1) / members * size_bytes / bytes_a_second + 2 * (members - 1) * wait_s


def fetch_s(shared_bytes: int, gpus: int) -> float:
    """Seconds in which each of `gpus` cards fetches what it lacks of the weights they share, twice, over NVLink."""
    bytes_a_second, _wait_s = NVLINK
    return 2 * shared_bytes * (gpus - 1) / gpus / bytes_a_second


def _beside(first_s: float, second_s: float) -> float:
    """Seconds of two things that go on beside each other, which is the longer of both.

    Where both are alike each delays the other a little, which a norm of high order tells better than the larger alone.
    """
    return float((first_s**4 + second_s**4) ** 0.25)


def _computing_s(step: Step, rows: float) -> float:
    """Seconds for `rows` rows on one card, launching kernels beside computing."""
    work = 4 * step.parameters * rows * step.tokens_a_row / _flops(step.parameters)
    if step.graphs:
        return work + GRAPH_STEP_S
    return _beside(work, LAUNCH_S_A_LAYER * step.layers)


def _flops(parameters: int) -> float:
    """FLOP/s of a large step, between and below the measured sizes by their logarithm, above them as the largest."""
    (small, slow), (large, fast) = MEASURED
    share = (math.log(max(parameters, 1)) - math.log(small)) / (math.log(large) - math.log(small))
    return slow + (fast - slow) * min(1.0, max(-1.0, share))


def imbalance(lengths: Sequence[int], rows: int, cards: int, draws: int = 4000) -> float:
    """By how much the fullest of `cards` cards exceeds the mean where `rows` rows are dealt to them at random.

    By simulation over these `lengths` (tokens). Dealing rows by their lengths brings it near 0.
    """
    import numpy as np

    size = (draws, cards, max(1, rows // cards))
    drawn_lengths = np.random.default_rng(0).choice(np.asarray(lengths), size=size)
    sums = drawn_lengths.sum(axis=2)
    return float((sums.max(axis=1) / sums.mean(axis=1)).mean() - 1)


def first_host_that_does_not_pay(step: Step, gpus: int, link: str) -> int | None:
    """The number of hosts that adds less than half of a host's worth over one fewer; None where up to 16 pay."""
    host_speedup = scaled(step, gpus).speedup
    last_speedup = host_speedup
    for hosts in range(2, 17):
        speedup = scaled(step, gpus, hosts, link).speedup
        if speedup - last_speedup < host_speedup / 2:
            return hosts
        last_speedup = speedup
    return None


def table(step: Step, rows_a_card: int | None = None) -> list[Scaled]:
    """One to eight cards in one host, then two to eight hosts of eight cards over each kind of Ethernet.

    With `rows_a_card` the rows a step grow with the cards.
    """

    def way(gpus: int, hosts: int = 1, link: str = "") -> Scaled:
        rows = rows_a_card * gpus * hosts if rows_a_card else step.rows
        return scaled(replace(step, rows=rows), gpus, hosts, link)

    within = [way(gpus) for gpus in (1, 2, 4, 8)]
    return within + [way(8, hosts, link) for link in ETHERNET for hosts in (2, 4, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=8.03e9)
    parser.add_argument("--adapter", type=float, default=42e6)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=float, default=310, help=_("tokens a row"))
    parser.add_argument("--rows", type=int, default=64, help=_("rows a step"))
    parser.add_argument("--a-card", action="store_true", help=_("--rows are of each card, not of a step"))
    parser.add_argument("--no-graphs", action="store_true")
    chosen = parser.parse_args()
    step = Step(
        int(chosen.parameters), int(chosen.adapter), chosen.layers, chosen.rows, chosen.tokens, not chosen.no_graphs
    )
    for way in table(step, rows_a_card=chosen.rows if chosen.a_card else None):
        print(way.as_text())
    for link in ETHERNET:
        hosts = first_host_that_does_not_pay(step, 8, link)
        print(f"{link}: {'up to 16 hosts pay' if hosts is None else f'host {hosts} adds less than half of its worth'}")


if __name__ == "__main__":
    main()
