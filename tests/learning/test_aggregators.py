"""Aggregators against their documented rules, computed slowly from each client's delta."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core.native import MatrixRows
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.models.zoo import softmax_regression
from fedcli.settings import tables
from tests.kit.clients import Arrays, draw

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (4, 4), 3
SIZES = (30, 1, 50, 20, 45, 8)


def _client(size: int, seed: int) -> Arrays:
    """Returns a client. Clients differ in brightness, so that the norms of their deltas differ."""
    pixels, labels = draw(size, seed, SHAPE, NUM_CLASSES)
    return 20 * (seed + 1) * pixels, labels


def _process(aggregator: Aggregator, weighting: str = "num-examples") -> learning.LearningProcess:
    algorithm = algorithms.build(
        "fedavg",
        optimizers.sgd(0.5),
        optimizers.sgd(1.0),
        weighting=weighting,
        aggregator=aggregator,
    )
    return learning.build_process(algorithm, softmax_regression(SHAPE, NUM_CLASSES))


def _next_params(process: learning.LearningProcess, params: Any, cohort: list[Arrays]) -> Any:
    state = replace(process.initialize(), global_model_weights=params)
    return process.next(state, cohort).state.global_model_weights


def _deltas(params: NDArray[np.float32], cohort: list[Arrays]) -> list[NDArray[np.float64]]:
    """Returns each client's delta, from training it alone."""
    mean = _process(aggregators.build("mean"))
    return [
        _next_params(mean, params, [pair]).astype(np.float64) - params.astype(np.float64)
        for pair in cohort
    ]


def test_tff_robust_zeroes_clips_and_follows_quantiles() -> None:
    cohort = [_client(size, seed) for seed, size in enumerate(SIZES)]
    process = _process(aggregators.build("tff-robust"))
    state = process.initialize()
    zeroing, clipping = 10.0, 1.0
    num_zeroed = num_clipped = 0
    for _ in range(12):
        params = state.global_model_weights
        result = process.next(state, cohort)
        state = result.state
        deltas = _deltas(params, cohort)
        sizes = np.array([np.abs(delta).max() for delta in deltas])
        is_zeroed = sizes > 2 * zeroing + 1
        norms = np.where(is_zeroed, 0.0, [np.linalg.norm(delta) for delta in deltas])
        factors = np.where(is_zeroed, 0.0, np.minimum(1.0, clipping / np.maximum(norms, clipping)))
        terms = zip(SIZES, factors, deltas, strict=True)
        total = sum(size * factor * delta for size, factor, delta in terms)
        expected = total / sum(SIZES)
        moved = state.global_model_weights.astype(np.float64) - params
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-5)
        found = result.metrics["aggregator"]
        assert found["zeroing_norm"] == pytest.approx(2 * zeroing + 1, rel=1e-9)
        assert found["zeroed_count"] == is_zeroed.sum()
        assert found["zeroing"]["clipping_norm"] == pytest.approx(clipping, rel=1e-9)
        assert found["zeroing"]["clipped_count"] == (norms > clipping).sum()
        assert found["zeroing"]["clipping"] == {"mean_value": {}, "mean_weight": {}}
        num_zeroed += int(is_zeroed.sum())
        num_clipped += int((norms > clipping).sum())
        zeroing *= math.exp(-math.log(10) * (np.mean(sizes <= zeroing) - 0.98))
        clipping *= math.exp(-0.2 * (np.mean(norms <= clipping) - 0.8))
    assert num_zeroed > 0, "the case must zero some"
    assert num_clipped > 0, "the case must clip some"


def test_norm_bound_scales_long_deltas_down_and_leaves_short_ones() -> None:
    cohort = [_client(size, seed) for seed, size in enumerate(SIZES)]
    params = np.zeros(len(_process(aggregators.build("mean")).initialize().global_model_weights))
    deltas = _deltas(params.astype(np.float32), cohort)
    norms = [float(np.linalg.norm(delta)) for delta in deltas]
    bound = sorted(norms)[2] * 1.001
    process = _process(aggregators.build("norm-bound", {"max_norm": bound}), "uniform")
    result = process.next(process.initialize(), cohort)
    bounded = [delta * min(1.0, bound / norm) for delta, norm in zip(deltas, norms, strict=True)]
    np.testing.assert_allclose(
        result.state.global_model_weights, np.mean(bounded, axis=0), rtol=1e-4, atol=1e-6
    )
    metrics = result.metrics["aggregator"]
    assert metrics["clipped_count"] == len(SIZES) - 3
    assert metrics["clipping_norm"] == bound


def test_a_large_bound_changes_no_byte() -> None:
    cohort = [_client(size, seed) for seed, size in enumerate(SIZES)]
    outcomes = [
        _process(aggregator).next(_process(aggregator).initialize(), cohort).state
        for aggregator in (
            aggregators.build("mean"),
            aggregators.build("norm-bound", {"max_norm": 1e30}),
        )
    ]
    first, second = (state.global_model_weights.tobytes() for state in outcomes)
    assert first == second


def test_a_dropped_client_counts_as_a_delta_of_zeros() -> None:
    pixels, labels = _client(10, 0)
    bad = from_arrays(np.full_like(pixels, 1e38), labels).client.preprocess(epochs=3)
    process = _process(aggregators.build("tff-robust"))
    result = process.next(process.initialize(), [bad, (pixels, labels)])
    assert result.metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    state = result.state
    # Neither delta exceeds the zeroing estimate of 10, so the estimate falls.
    assert state.aggregator["zeroing"] == pytest.approx(10 * math.exp(-math.log(10) * 0.02))


def test_an_empty_cohort_keeps_the_estimates() -> None:
    process = _process(aggregators.build("tff-robust"))
    state = process.next(process.initialize(), ()).state
    assert state.aggregator == {"zeroing": 10.0, "clipping": 1.0}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan, "x"])
def test_a_norm_without_effect_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="norm-bound option max_norm"):
        aggregators.build("norm-bound", {"max_norm": bad})


# ---- The median ----------------------------------------------------------------------------------


def _named(cohort: list[Arrays]) -> list[BatchedDataset]:
    """Names the clients, so that each shuffles in the same way at any place in the cohort."""
    return [
        from_arrays(*pair, client_id=f"client {index}").client.preprocess(batch_size=20)
        for index, pair in enumerate(cohort)
    ]


@pytest.mark.parametrize("num_clients", [1, 2, 5, 6])
@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
def test_the_median_is_that_of_each_coordinate_in_float64(num_clients: int, weighting: str) -> None:
    cohort = [_client(size, seed) for seed, size in enumerate(SIZES[:num_clients])]
    process = _process(aggregators.build("median"), weighting)
    state = process.initialize()
    for _ in range(2):
        params = state.global_model_weights
        output = process.next(state, cohort)
        state = output.state
        expected = np.median(_deltas(params, cohort), axis=0)
        moved = state.global_model_weights.astype(np.float64) - params
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-5)
        assert output.metrics["aggregator"] == {}
        assert np.abs(moved).max() > 0.1


def test_the_order_of_clients_changes_no_byte_of_the_median() -> None:
    clients = _named([_client(size, seed) for seed, size in enumerate(SIZES)])
    found = set()
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 0, 5, 4, 1, 3]):
        process = _process(aggregators.build("median"))
        state = process.initialize()
        for _ in range(3):
            state = process.next(state, [clients[index] for index in order]).state
        found.add(state.global_model_weights.tobytes())
    assert len(found) == 1


def _median_of(values: NDArray[np.float32]) -> NDArray[np.float64]:
    matrix = np.ascontiguousarray(values[:, np.newaxis])
    return MatrixRows(matrix, np.arange(len(values)), 1).trimmed_mean((len(values) - 1) // 2)


def test_signs_of_zero_and_ties_do_not_depend_on_the_order() -> None:
    values = np.array([-0.0, 0.0, 1.0, -0.0, -1.0], np.float32)
    for count in (3, 4, 5):
        orders = itertools.permutations(values[:count])
        found = {_median_of(np.array(order)).tobytes() for order in orders}
        assert len(found) == 1


def test_means_of_two_middle_values_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    assert _median_of(np.array([largest, largest])) == [largest]


def test_clients_without_examples_or_a_finite_delta_are_not_in_the_median() -> None:
    good = [_client(size, seed) for seed, size in enumerate((30, 50, 20))]
    pixels, labels = _client(10, 0)
    bad = from_arrays(np.full_like(pixels, 1e38), labels).client.preprocess(epochs=3)
    empty = pixels[:0], labels[:0]
    process = _process(aggregators.build("median"))
    alone = process.next(process.initialize(), good)
    among = process.next(process.initialize(), [good[0], bad, empty, good[1], empty, good[2]])
    assert alone.metrics["client_work"]["train"]["num_non_finite_clients"] == 0
    assert among.metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert among.num_empty_clients == 2
    np.testing.assert_array_equal(
        among.state.global_model_weights, alone.state.global_model_weights
    )


@pytest.mark.parametrize("cohort", [(), [(np.zeros((0, *SHAPE), np.float32), np.zeros(0, int))]])
def test_a_median_of_no_client_changes_nothing(cohort: Sequence[Arrays]) -> None:
    process = _process(aggregators.build("median"))
    state = process.initialize()
    output = process.next(state, cohort)
    assert output.metrics["finalizer"] == {"update_non_finite": 1}
    np.testing.assert_array_equal(output.state.global_model_weights, state.global_model_weights)


def test_a_minority_cannot_move_the_median_out_of_what_the_others_sent() -> None:
    honest = [_client(size, seed) for seed, size in enumerate(SIZES)]
    liars = [(-1000.0 * pixels, 2 - labels) for pixels, labels in honest[:5]]
    median = _process(aggregators.build("median"))
    params = median.initialize().global_model_weights
    deltas = np.array(_deltas(params, honest))
    low, high = deltas.min(axis=0) - 1e-5, deltas.max(axis=0) + 1e-5
    moved = _next_params(median, params, honest + liars) - params
    assert ((low <= moved) & (moved <= high)).all()
    mean = _next_params(_process(aggregators.build("mean")), params, honest + liars) - params
    assert not ((low <= mean) & (mean <= high)).all(), "the case must move a mean"


def _built(name: str, aggregator: str) -> learning.LearningProcess:
    entry = tables.ALGORITHMS[name]
    server = optimizers.build(
        entry.server_optimizer or "sgd", entry.server_lr, entry.server_options
    )
    algorithm = algorithms.build(
        name,
        optimizers.sgd(0.1) if entry.has_local_steps else None,
        server,
        weighting=entry.weightings[0],
        aggregator=aggregators.build(aggregator),
    )
    model = softmax_regression(SHAPE, NUM_CLASSES)
    return learning.build_process(algorithm, model, num_clients=len(SIZES))


@pytest.mark.parametrize("name", tables.ALGORITHMS)
def test_every_algorithm_works_with_the_median(name: str) -> None:
    """If all clients are equal, each delta equals their mean and their median."""
    client = from_arrays(*_client(30, 0), client_id="one").client.preprocess(batch_size=10)
    found = []
    for aggregator in ("mean", "median"):
        process = _built(name, aggregator)
        state = process.initialize()
        for _ in range(3):
            state = process.next(state, [replace(client)] * 3).state
        evaluated = [state.weights_for("one"), state.global_model_weights]
        assert np.isfinite(evaluated).all()
        found.append(evaluated)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert np.abs(found[0][0]).max() > 0.01


def test_fednova_divides_each_delta_before_the_median() -> None:
    clients = _named([_client(size, seed) for seed, size in enumerate((70, 20, 45))])
    process, averaged = _built("fednova", "median"), _built("fedavg", "mean")
    state = process.initialize()
    params = state.global_model_weights
    moved = process.next(state, clients).state.global_model_weights - params
    each = [
        averaged.next(averaged.initialize(), [one]).state.global_model_weights for one in clients
    ]
    steps, shares = np.array([4.0, 1.0, 3.0]), np.array([70, 20, 45]) / 135
    divided = (np.array(each, np.float64) - params) / steps[:, np.newaxis]
    expected = (shares @ steps) * np.median(divided, axis=0)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


def test_feddyn_shifts_each_delta_and_evaluates_the_median() -> None:
    clients = _named([_client(size, seed) for seed, size in enumerate((70, 20, 45))])
    process, averaged = _built("feddyn", "median"), _built("fedprox", "mean")
    state = process.initialize()
    state = process.next(state, clients).state
    alone = [averaged.next(averaged.initialize(), [one]).state for one in clients]
    deltas = np.array([each.global_model_weights for each in alone], np.float64)
    middle = np.median(deltas, axis=0)
    np.testing.assert_allclose(state.evaluated_weights, middle, rtol=1e-4, atol=1e-6)
    mean_gradient = state.client_work["bend"]
    np.testing.assert_allclose(
        mean_gradient, -0.01 * deltas.sum(axis=0) / len(SIZES), rtol=1e-4, atol=1e-7
    )
    expected = middle - mean_gradient / 0.01
    np.testing.assert_allclose(state.global_model_weights, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_mime_takes_no_gradients_for_deltas(aggregator: str) -> None:
    """If no gradient is finite, no client trains, and the gradients are not mistaken for deltas."""
    pixels, labels = _client(6, 0)
    process = _built("mime", aggregator)
    params = np.linspace(-9.0, 9.0, 51).astype(np.float32)
    state = replace(process.initialize(), global_model_weights=params)
    output = process.next(state, [(np.full_like(pixels, 1e38), labels)] * 3)
    assert output.metrics["client_work"]["train"]["num_non_finite_clients"] == 3
    assert output.metrics["finalizer"] == {"update_non_finite": 1}
    np.testing.assert_array_equal(output.state.global_model_weights, params)
