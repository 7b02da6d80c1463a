"""The audit's histogram counts every row once, in buckets that end where max_length cuts."""

from itertools import pairwise

import numpy
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import DEMO
from tuitune.audit.scan import audit, histogram
from tuitune.recipe import Recipe


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=300), st.integers(8, 8192))
def test_every_row_is_in_one_bucket_and_max_length_is_an_edge(lengths: list[int], max_length: int) -> None:
    buckets = histogram(numpy.sort(lengths), max_length)
    edges = [longest for longest, _ in buckets]
    assert len(edges) <= 8 and edges == sorted(set(edges)) and edges[-1] == max(lengths)
    assert [sum(lower < length <= upper for length in lengths) for lower, upper in pairwise([0, *edges])] == [
        count for _, count in buckets
    ]
    assert max_length in edges or max_length >= max(lengths)


def test_a_few_long_rows_do_not_flatten_the_rest() -> None:
    buckets = histogram(numpy.array([*range(1, 701), 30_000]), 2048 * 16)
    assert buckets[-1] == (30_000, 7)
    assert all(90 <= count <= 110 for _, count in buckets[:-1]) and len(buckets) == 8


def test_of_the_demo_data_by_the_real_tokenizer() -> None:
    recipe = Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False},
            "data": {"path": str(DEMO / "pirate.jsonl"), "max_length": 64},
        }
    )
    report = audit(recipe)
    assert sum(count for _, count in report.length_histogram) == report.rows
    assert sum(count for longest, count in report.length_histogram if longest > 64) == report.truncated > 0
    assert histogram(numpy.array([]), 64) == []
