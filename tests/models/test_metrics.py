from __future__ import annotations

import math

import numpy as np

from fedcli.models import metrics

STATS = {
    "loss_sum": np.array([3.0, 0.0, 1.5]),
    "num_correct": np.array([2, 0, 4]),
    "num_examples": np.array([4, 0, 5]),
    "num_batches": np.array([2, 0, 1]),
}


def test_clients_count_by_their_examples() -> None:
    assert metrics.sum_then_finalize(STATS) == {
        "sparse_categorical_accuracy": 6 / 9,
        "loss": 0.5,
        "num_examples": 9,
        "num_batches": 3,
    }


def test_names_stand_in_tff_s_order_and_values_are_plain_numbers() -> None:
    result = metrics.sum_then_finalize(STATS)
    assert list(result) == ["sparse_categorical_accuracy", "loss", "num_examples", "num_batches"]
    assert [type(value) for value in result.values()] == [float, float, int, int]


def test_a_mean_over_no_clients_is_nan() -> None:
    result = metrics.finalize(metrics.ZERO)
    assert math.isnan(result["loss"])
    assert math.isnan(result["sparse_categorical_accuracy"])
    assert (result["num_examples"], result["num_batches"]) == (0, 0)


def test_sums_are_a_commutative_monoid() -> None:
    one = metrics.sum_stats(STATS)
    two = {"loss_sum": 0.25, "num_correct": 1, "num_examples": 2, "num_batches": 1}
    assert metrics.add(one, metrics.ZERO) == one
    assert metrics.add(one, two) == metrics.add(two, one)


def test_sums_become_the_stats_of_one_client() -> None:
    sums = metrics.sum_stats(STATS)
    stats = metrics.as_stats(sums)
    assert metrics.sum_stats(stats) == sums
    assert stats["loss_sum"].dtype == np.float64
    assert stats["num_examples"].dtype == np.int64
