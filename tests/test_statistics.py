from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.statistics import Bin, SizeSummary, count_labels, size_histogram, summarize_sizes


def test_count_labels() -> None:
    clients = [("a", [0, 2, 2]), ("b", []), ("c", [1])]
    pairs = ((name, np.array(labels, np.int32)) for name, labels in clients)
    counts = count_labels("train", pairs, 4)
    assert counts.client_ids == ["a", "b", "c"]
    assert counts.label_counts.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert counts.sizes.tolist() == [3, 0, 1]
    assert counts.num_examples == 4


def test_no_client_at_all() -> None:
    counts = count_labels("test", [], 10)
    assert counts.label_counts.shape == (0, 10)
    assert counts.num_examples == 0


def test_by_size_is_largest_first_and_stable() -> None:
    sizes = {"a": 1, "b": 3, "c": 3, "d": 2}
    pairs = ((name, np.zeros(size, np.int32)) for name, size in sizes.items())
    ordered = count_labels("train", pairs, 2).by_size()
    assert ordered.client_ids == ["b", "c", "d", "a"]
    assert ordered.sizes.tolist() == [3, 3, 2, 1]


def test_summarize_sizes() -> None:
    assert summarize_sizes(np.array([4, 1, 1, 2])) == SizeSummary(1, 1.5, 2.0, 4)


def test_size_histogram() -> None:
    assert size_histogram(np.array([17, 40, 59, 118])) == [
        Bin(0, 19, 1),
        Bin(20, 39, 0),
        Bin(40, 59, 2),
        Bin(60, 79, 0),
        Bin(80, 99, 0),
        Bin(100, 119, 1),
    ]
    assert size_histogram(np.array([7])) == [Bin(7, 7, 1)]


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 30))
def test_histogram_holds_every_client_in_few_bins(sizes: list[int], max_bins: int) -> None:
    bins = size_histogram(np.array(sizes), max_bins)
    assert len(bins) <= max(max_bins, 1)
    assert sum(each.num_clients for each in bins) == len(sizes)
    for each in bins:
        assert each.num_clients == sum(each.low <= size <= each.high for size in sizes)


@pytest.mark.parametrize("max_bins", [1, 2])
def test_histogram_of_few_bins_still_ends(max_bins: int) -> None:
    assert len(size_histogram(np.array([0, 999]), max_bins)) <= max_bins
