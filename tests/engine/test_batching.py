"""Rows into batches, with padding and without."""

import pytest

from tuitune.train.batching import ALIGNED, Padded, PaddingFree

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8, 9, 10, 11, 12], "labels": [8, 9, -100, 11, 12]},
]


def test_padding_fills_up_what_is_neither_seen_nor_trained() -> None:
    batch = Padded(pad_token_id=3)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100], [8, 9, -100, 11, 12]]


def test_end_to_end_rows_keep_their_own_positions_and_first_tokens_are_not_predicted_across_rows() -> None:
    batch = PaddingFree(pad_token_id=3)(ROWS)
    assert batch["input_ids"][0, :8].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert batch["position_ids"][0, :8].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch["labels"][0, :8].tolist() == [-100, 6, 7, -100, 9, -100, 11, 12]


def test_filling_is_a_row_of_its_own_up_to_a_round_length() -> None:
    batch = PaddingFree(pad_token_id=3)(ROWS)
    assert batch["input_ids"].shape == (1, ALIGNED)
    assert batch["packed_seq_lengths"].tolist() == [3, 5, ALIGNED - 8]
    assert set(batch["labels"][0, 8:].tolist()) == {-100}
    whole = [{"input_ids": [5] * ALIGNED, "labels": [5] * ALIGNED}]
    assert PaddingFree(pad_token_id=3)(whole)["packed_seq_lengths"].tolist() == [ALIGNED, ALIGNED]


@pytest.mark.parametrize("collate", [Padded(3), PaddingFree(3)])
def test_numpy_rows_give_what_lists_give(collate: Padded | PaddingFree) -> None:
    np = pytest.importorskip("numpy")
    arrays = [{name: np.array(values, dtype=np.int32) for name, values in row.items()} for row in ROWS]
    for name, tensor in collate(ROWS).items():
        assert tensor.equal(collate(arrays)[name])


def test_both_ways_give_the_same_loss() -> None:
    """On a real model: transformers keeps rows apart by their positions."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from tests.conftest import DEMO

    model = AutoModelForCausalLM.from_pretrained(DEMO / "demo_model", dtype=torch.float32).eval()
    rows = [
        {"input_ids": [start + i for i in range(n)], "labels": [start + i for i in range(n)]}
        for start, n in ((9, 30), (70, 17))
    ]
    losses = []
    for collate in (Padded(3), PaddingFree(3)):
        batch = collate(rows)
        batch.pop("packed_seq_lengths", None)
        with torch.no_grad():
            losses.append(float(model(**batch, use_cache=False).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
