"""How long a step takes on several cards and hosts: arithmetic, held against what was measured and simulated."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tuitune.plan.estimate import estimate
from tuitune.plan.scaling import (
    ETHERNET,
    MEASURED,
    NVLINK,
    Step,
    exchange_s,
    fetch_s,
    first_host_that_does_not_pay,
    imbalance,
    scaled,
)
from tuitune.recipe import Recipe

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LENGTHS = (np.clip(np.random.default_rng(0).lognormal(5.45, 0.75, 6000), 24, 2000).astype(int) + 10).tolist()
ONE_B = Step(1_247_086_592, 11_272_192, 16, 64, float(np.mean(LENGTHS)))


@pytest.mark.parametrize(("shape", "measured"), [("1b", MEASURED[0]), ("8b", MEASURED[1])])
def test_its_constants_are_what_was_measured_on_one_card(shape: str, measured: tuple[float, float]) -> None:
    one_card = json.loads((RESULTS / "gpu_cards_speed.json").read_text())[shape]["1"]
    assert measured[1] == pytest.approx(4 * measured[0] * one_card["tokens_per_second"], rel=0.01)


def test_a_small_step_takes_what_it_was_measured_to_take() -> None:
    ways = json.loads((RESULTS / "gpu_speed_queued.json").read_text())["1b"]["ways"]
    way = ways["own choice, 4-bit, 8 rows a step"]
    small = replace(ONE_B, rows=8, tokens_a_row=way["tokens_per_step"] / 8)
    assert scaled(small, 1).step_s == pytest.approx(way["seconds_per_step"], rel=0.02)


def test_a_ring_sends_its_bytes_by_the_book() -> None:
    assert exchange_s(1_000_000, 1) == 0
    assert exchange_s(int(200e9), 2) == pytest.approx(1 + 2 * NVLINK[1])
    assert exchange_s(int(200e9), 4) == pytest.approx(1.5 + 6 * NVLINK[1])
    more = exchange_s(int(11e9), 1, 2, "100 Gbit/s")
    assert more == pytest.approx(1 + 2 * ETHERNET["100 Gbit/s"][1])


def test_the_fullest_card_is_as_far_from_the_mean_as_normal_draws_are() -> None:
    """The expected largest of two and of four normal draws lies 0.564 and 1.029 deviations above the mean."""
    deviation = float(np.std(LENGTHS) / np.mean(LENGTHS)) / 64**0.5
    assert imbalance(LENGTHS, 128, 2) == pytest.approx(0.564 * deviation, rel=0.08)
    assert imbalance(LENGTHS, 256, 4) == pytest.approx(1.029 * deviation, rel=0.08)
    assert imbalance([300] * 100, 8, 8) == 0


def test_two_cards_are_as_fast_as_two_were_measured_to_be() -> None:
    """Two H200 joined by NVLink, rows dealt at random, no graphs: 1.74 and 1.88 times one card."""
    for rows, measured in ((64, 1.74), (128, 1.88)):
        step = Step(ONE_B.parameters, ONE_B.adapter_parameters, 16, rows, ONE_B.tokens_a_row, graphs=False)
        speedup = scaled(step, 2, imbalance=imbalance(LENGTHS, rows, 2)).speedup
        assert speedup == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("shape", "parameters", "adapter", "layers"), [
    ("1b", 1_247_086_592, 11_272_192, 16), ("8b", 8_072_204_288, 41_943_040, 32)
])  # fmt: skip
def test_two_cards_that_queue_their_passes_are_as_fast_as_they_were_measured_to_be(
    shape: str, parameters: int, adapter: int, layers: int
) -> None:
    """64 rows a card, dealt by their tokens; the measured runs of one card and two drew different rows."""
    measured = json.loads((RESULTS / "gpu_cards_speed.json").read_text())[shape]["2"]["times_one_card"]
    step = Step(parameters, adapter, layers, 128, ONE_B.tokens_a_row)
    assert scaled(step, 2).speedup == pytest.approx(measured, rel=0.03)


def test_weights_that_are_shared_cost_nothing_until_fetching_them_takes_longer_than_computing() -> None:
    """70 billion parameters in 4-bit on four cards: 27 GB twice a pass, 0.27 s, beside what its tokens take."""
    seventy = Step(70_600_000_000, 200_000_000, 80, 64, 300.0, graphs=False)
    shared = replace(seventy, shared_bytes=int(36e9), rows_a_pass=16)
    assert fetch_s(shared.shared_bytes, 4) == pytest.approx(2 * 27e9 / 200e9)
    assert scaled(shared, 4).step_s < 1.01 * scaled(seventy, 4).step_s
    rows_alone = scaled(replace(shared, rows_a_pass=1), 4).step_s
    assert rows_alone == pytest.approx(16 * fetch_s(shared.shared_bytes, 4), rel=0.2)
    assert rows_alone > 1.2 * scaled(seventy, 4).step_s


def test_a_small_step_gains_less_and_never_more_than_its_rows() -> None:
    small = Step(ONE_B.parameters, ONE_B.adapter_parameters, 16, 4, ONE_B.tokens_a_row)
    assert scaled(small, 8).speedup < scaled(ONE_B, 8).speedup < 8
    assert scaled(small, 8).speedup <= scaled(small, 4).speedup


def test_slower_links_stop_paying_sooner() -> None:
    large = Step(8_030_000_000, 42_000_000, 32, 512, 310.0)
    first = [first_host_that_does_not_pay(large, 8, link) or 99 for link in ETHERNET]
    assert first == sorted(first) and first[0] < first[-1]


def test_estimate_tells_of_cards_and_hosts(demo_recipe: Recipe) -> None:
    assert not estimate(demo_recipe).scaling
    two = estimate(demo_recipe, gpus=2)
    assert [way.gpus for way in two.scaling] == [2]
    assert "2 cards: " in two.as_text()
    hosts = estimate(demo_recipe, gpus=8, hosts=2)
    assert [way.link for way in hosts.scaling] == list(ETHERNET)
    assert hosts.as_dict()["scaling"][0]["hosts"] == 2
