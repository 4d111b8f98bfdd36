"""Lower bounds on epsilon, and the advantage that an epsilon allows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcli.audits.bounds import Privacy, clopper_pearson, largest_advantage, least_epsilon
from fedcli.audits.canary import bound
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key


@pytest.mark.parametrize(
    ("hits", "false_alarms", "epsilon"),
    [((60, 100), (5, 100), 1.483065), ((100, 100), (0, 100), 3.281336)],
)
def test_lower_bounds_of_small_examples(
    hits: tuple[int, int], false_alarms: tuple[int, int], epsilon: float
) -> None:
    assert least_epsilon(hits, false_alarms, 1e-5) == pytest.approx(epsilon, abs=1e-6)


def test_no_bound_where_runs_cannot_be_distinguished() -> None:
    assert least_epsilon((5, 100), (60, 100), 0.0) == 0.0
    assert least_epsilon((0, 10), (0, 10), 0.0) == 0.0
    assert least_epsilon((10, 10), (0, 10), 0.9) == 0.0  # delta exceeds the TPR's bound


def test_bounds_on_a_probability_solve_the_binomial_tail() -> None:
    for hits, trials in [(0, 1), (1, 1), (3, 10), (10, 10), (57, 400)]:
        lower, upper = clopper_pearson(hits, trials)
        ways = [math.comb(trials, k) for k in range(trials + 1)]
        if hits:
            above = sum(
                ways[k] * lower**k * (1 - lower) ** (trials - k) for k in range(hits, trials + 1)
            )
            assert above == pytest.approx(0.025, rel=1e-9)
        if hits < trials:
            below = sum(ways[k] * upper**k * (1 - upper) ** (trials - k) for k in range(hits + 1))
            assert below == pytest.approx(0.025, rel=1e-9)
    assert clopper_pearson(0, 7)[0] == 0.0
    assert clopper_pearson(7, 7)[1] == 1.0


@pytest.mark.parametrize(("epsilon", "advantage"), [(0, 0), (1, 0.462117), (2, 0.761594)])
def test_largest_advantage(epsilon: float, advantage: float) -> None:
    assert largest_advantage(Privacy(epsilon, 0.0)) == pytest.approx(advantage, abs=1e-6)
    assert largest_advantage(Privacy(epsilon, 1e-3)) > advantage
    assert largest_advantage(Privacy(1000.0, 1e-3)) == 1.0


@pytest.mark.parametrize(("noise", "proves_fault"), [(1.0, False), (0.5, True)])
def test_a_bound_finds_halved_noise(noise: float, proves_fault: bool) -> None:
    """The claimed epsilon is that of noise multiplier 1: 4.377178 at delta 1e-5 (see golden.py)."""
    stream = Stream(stream_key(7, Purpose.AUDIT))
    num_runs = 80_000
    without = noise * stream.normal(num_runs)
    with_canary = 1.0 + noise * stream.normal(num_runs)
    found = bound("w0", with_canary, without, Privacy(4.377178, 1e-5))
    assert found.proves_fault == proves_fault
    assert 2.0 < found.epsilon < found.largest


def test_equal_scores_prove_nothing() -> None:
    found = bound("w0", np.zeros(8), np.zeros(8), None)
    assert found.epsilon == 0.0
    assert not found.proves_fault
    assert found.to_json()["reported_epsilon"] is None
