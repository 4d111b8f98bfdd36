"""Aggregators against what they say, computed slowly from the clients' own deltas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.datasets.batches import from_arrays
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.models.zoo import softmax_regression

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (4, 4), 3
SIZES = (30, 1, 50, 20, 45, 8)

Client = tuple[NDArray[np.float32], NDArray[np.int32]]


def _client(size: int, seed: int) -> Client:
    """Clients differ in brightness, so that their deltas differ in length."""
    random = np.random.default_rng(seed)
    pixels = 20 * (seed + 1) * random.random((size, *SHAPE), dtype=np.float32)
    return pixels, random.integers(0, NUM_CLASSES, size, dtype=np.int32)


def _process(aggregator: Aggregator, weighting: str = "num-examples") -> learning.LearningProcess:
    algorithm = algorithms.build(
        "fedavg",
        optimizers.sgd(0.5),
        optimizers.sgd(1.0),
        weighting=weighting,
        aggregator=aggregator,
    )
    return learning.build_process(algorithm, softmax_regression(SHAPE, NUM_CLASSES))


def _next_params(process: learning.LearningProcess, params: Any, cohort: list[Client]) -> Any:
    state = replace(process.initialize(), global_model_weights=params)
    return process.next(state, cohort).state.global_model_weights


def _deltas(params: NDArray[np.float32], cohort: list[Client]) -> list[NDArray[np.float64]]:
    """Each client's delta, by training it alone."""
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
    # Both are at or below the zeroing estimate of 10.
    assert state.aggregator["zeroing"] == pytest.approx(10 * math.exp(-math.log(10) * 0.02))


def test_no_client_leaves_the_estimates_alone() -> None:
    process = _process(aggregators.build("tff-robust"))
    state = process.next(process.initialize(), []).state
    assert state.aggregator == {"zeroing": 10.0, "clipping": 1.0}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan, "x"])
def test_a_norm_that_bounds_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="norm-bound option max_norm"):
        aggregators.build("norm-bound", {"max_norm": bad})
