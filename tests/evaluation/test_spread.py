from __future__ import annotations

import math

import numpy as np
import pytest

from fedcli.evaluation import spread


def stats(correct: list[int], examples: list[int], loss: list[float]) -> dict[str, np.ndarray]:
    return {
        "num_correct": np.array(correct),
        "num_examples": np.array(examples),
        "loss_sum": np.array(loss),
    }


def test_each_client_with_examples_counts_the_same() -> None:
    told = spread.over_clients(stats([1, 8, 0], [2, 8, 0], [4.0, 8.0, 0.0]))
    assert told["num_clients"] == 2
    accuracy, loss = told["sparse_categorical_accuracy"], told["loss"]
    assert (accuracy["mean"], accuracy["std"], accuracy["worst_decile"]) == (0.75, 0.25, 0.5)
    assert (loss["mean"], loss["p50"], loss["worst_decile"]) == (1.5, 1.5, 2.0)
    assert accuracy["jain_index"] == pytest.approx(1.5**2 / (2 * 1.25))


def test_worst_decile_is_a_tenth_of_the_clients_rounded_up() -> None:
    correct = list(range(11))
    told = spread.over_clients(stats(correct, [10] * 11, [1.0 * each for each in correct]))
    assert told["sparse_categorical_accuracy"]["worst_decile"] == pytest.approx(0.05)
    assert told["loss"]["worst_decile"] == pytest.approx(0.95)
    assert told["loss"]["p10"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "index"), [([2.0, 2.0, 2.0], 1.0), ([5.0, 0.0, 0.0, 0.0], 0.25), ([0.0, 0.0], 1.0)]
)
def test_jain_index(values: list[float], index: float) -> None:
    assert spread.jain_index(np.array(values)) == index


def test_worst_of_nothing_right_is_plain_zero() -> None:
    told = spread.over_clients(stats([0, 3], [4, 4], [1.0, 1.0]))
    assert str(told["sparse_categorical_accuracy"]["worst_decile"]) == "0.0"


def test_nobody_and_not_finite_are_nan() -> None:
    told = spread.over_clients(stats([], [], []))
    assert told["num_clients"] == 0
    assert math.isnan(told["sparse_categorical_accuracy"]["jain_index"])
    told = spread.over_clients(stats([1], [2], [math.inf]))
    assert math.isnan(told["loss"]["mean"])
    assert told["sparse_categorical_accuracy"]["mean"] == 0.5


@pytest.mark.parametrize("num_clients", [1, 2, 3, 10, 11, 97])
def test_percentiles_are_those_of_numpy(num_clients: int) -> None:
    losses = np.sin(np.arange(1.0, num_clients + 1)) + 2.0
    told = spread.over_clients(stats([0] * num_clients, [1] * num_clients, losses.tolist()))["loss"]
    assert [told[name] for name in ("p10", "p50", "p90")] == np.percentile(
        losses, [10, 50, 90]
    ).tolist()
