"""The few sizes that passes are filled up to, so that each can be captured once and replayed as a CUDA graph."""

from itertools import combinations

import numpy as np
import pytest

from tests.conftest import DEMO
from tuitune.recipe import Recipe
from tuitune.train.batching import ALIGNED, IGNORED, PaddingFree, find_trained
from tuitune.train.sizes import WASTE, captures_pay, drawn_passes, pass_sizes, sizes_for

LENGTHS = np.clip(np.random.default_rng(0).lognormal(5.45, 0.75, 6000), 24, 2000).astype(int).tolist()


def filled(needed: np.ndarray, sizes: tuple[int, ...]) -> int:
    return sum(next(size for size in sizes if size >= tokens) for tokens in needed)


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_a_few_sizes_waste_little(rows: int) -> None:
    sizes = pass_sizes(LENGTHS, rows)
    needed = np.sort(drawn_passes(LENGTHS, rows) + 1)
    needed = needed[needed <= sizes[-1]]
    assert len(needed) >= 0.98 * 2000
    assert filled(needed, sizes) <= (1 + WASTE) * needed.sum()
    assert len(sizes) <= 16 and all(size % ALIGNED == 0 for size in sizes)
    assert list(sizes) == sorted(set(sizes))


def test_no_other_sizes_of_that_number_waste_less() -> None:
    needed = np.array([60, 100, 130, 190, 200, 250, 260, 300, 330, 500, 510, 640] * 3)
    sizes = sizes_for(needed, waste=0.25)
    kept = np.sort(needed)[: int(0.99 * len(needed))]
    multiples = range(ALIGNED, sizes[-1], ALIGNED)
    assert filled(kept, sizes) <= 1.25 * kept.sum()
    for others in combinations(multiples, len(sizes) - 1):
        assert filled(kept, sizes) <= filled(kept, (*others, sizes[-1]))


def test_rows_of_one_length_need_one_size() -> None:
    assert pass_sizes([100] * 50, 4) == (448,)


def test_captures_pay_only_within_the_run() -> None:
    assert captures_pay(passes=1000, sizes=12, eager_s=0.085, replay_s=0.035, capture_s=0.3)
    assert not captures_pay(passes=60, sizes=12, eager_s=0.085, replay_s=0.035, capture_s=0.3)  # 2.4 s against 3.6 s
    assert not captures_pay(passes=10, sizes=12, eager_s=0.085, replay_s=0.035, capture_s=0.0)
    assert not captures_pay(passes=1000, sizes=1, eager_s=0.222, replay_s=0.227, capture_s=0.1)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_places_of_trained_tokens_are_filled_up_without_taking_one_twice(coarse: bool) -> None:
    labels = np.full(2048, IGNORED)
    labels[500:900] = 7
    places = find_trained(labels, coarse=coarse)
    assert set(range(499, 899)) <= set(places.tolist())
    assert len(set(places.tolist())) == len(places) == (512 if coarse else 448)
    assert places.max() <= 2046
    assert len(find_trained(np.full(64, 7), coarse=coarse)) == 63
    assert len(find_trained(np.full(640, IGNORED), coarse=coarse)) == (2 * ALIGNED if coarse else ALIGNED)


def test_filled_up_rows_have_the_same_loss_and_so_have_their_trained_places_alone() -> None:
    """On a real model: transformers keeps rows apart by their positions."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO / "demo_model", dtype=torch.float32).eval()
    rows = [
        {"input_ids": list(range(start, start + n)), "labels": [IGNORED] * 5 + list(range(start + 5, start + n))}
        for start, n in ((9, 30), (70, 17))
    ]
    batch, filled_up = PaddingFree(3)(rows), PaddingFree(3, sizes=(128, 256), trained_places=True)(rows)
    places = filled_up.pop("trained_places")[0]
    assert filled_up["input_ids"].shape == (1, 128)
    assert filled_up["packed_seq_lengths"].tolist() == [30, 17, 81]
    with torch.no_grad():
        expected, whole = (
            model(**{k: v for k, v in inputs.items() if k != "packed_seq_lengths"}, use_cache=False)
            for inputs in (batch, filled_up)
        )
    chosen = torch.nn.functional.cross_entropy(whole.logits[0, places], filled_up["labels"][0, places + 1])
    assert float(whole.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    assert float(chosen) == pytest.approx(float(expected.loss), rel=1e-6)


def test_nothing_is_captured_on_a_cpu(demo_recipe: Recipe) -> None:
    from tuitune import backends
    from tuitune.train.graphs import can_capture

    loaded = backends.load(demo_recipe, tell=pytest.fail)
    loaded.backend.attach(loaded)
    assert not can_capture(loaded)
    assert not loaded.trained_head and loaded.pass_sizes == ()
