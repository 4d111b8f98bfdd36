"""LiRA's scores, and the halves of the clients in its shadow runs."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from fedcli.audits.likelihood_ratio import likelihood_ratios
from fedcli.audits.separation import confidence
from fedcli.audits.shadows import halves, shadow_seed

IN, OUT, OBSERVED = np.array([0.9, 0.95, 0.97]), np.array([0.4, 0.6, 0.55]), 0.9
SCORES = confidence(-np.log(np.concatenate([IN, OUT])))[:, np.newaxis]
HAS_CLIENT = np.array([True] * 3 + [False] * 3)[:, np.newaxis]
X = confidence(-np.log(np.array([OBSERVED])))


def test_ratio_of_a_small_example() -> None:
    found = likelihood_ratios(X, SCORES, HAS_CLIENT, is_offline=False, shares_variance=False)
    assert found == pytest.approx([17.891169], abs=1e-6)


def test_a_single_client_has_its_own_variance() -> None:
    own = likelihood_ratios(X, SCORES, HAS_CLIENT, is_offline=False, shares_variance=False)
    shared = likelihood_ratios(X, SCORES, HAS_CLIENT, is_offline=False, shares_variance=True)
    np.testing.assert_allclose(shared, own, rtol=1e-12)


def test_a_shared_variance_is_the_mean_square_of_each_side() -> None:
    scores = np.array([[1.0, 5.0], [3.0, 6.0], [0.0, 2.0], [4.0, 4.0]])
    has = np.array([[True, False], [True, True], [False, True], [False, False]])
    observed = np.array([2.0, 4.0])
    found = likelihood_ratios(observed, scores, has, is_offline=False, shares_variance=True)
    # With the client: 1, 3 | 6, 2 (means 2 | 4); without: 0, 4 | 5, 4 (means 2 | 4.5). A side's
    # variance is the mean of its four squared differences from these means.
    inside, outside = NormalDist(0, np.sqrt(10 / 4)), NormalDist(0, np.sqrt(8.5 / 4))
    expected = [
        np.log(inside.pdf(0)) - np.log(outside.pdf(0)),
        np.log(inside.pdf(0)) - np.log(outside.pdf(-0.5)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_offline_is_the_probability_of_a_lower_score_without_the_client() -> None:
    found = likelihood_ratios(X, SCORES, HAS_CLIENT, is_offline=True, shares_variance=False)
    out = SCORES[3:, 0]
    assert found[0] == pytest.approx(NormalDist(out.mean(), out.std()).cdf(X[0]), rel=1e-12)


def test_equal_scores_of_all_shadows_give_no_error() -> None:
    scores = np.ones((4, 1))
    has = np.array([[True], [True], [False], [False]])
    found = likelihood_ratios(np.ones(1), scores, has, is_offline=False, shares_variance=False)
    assert found == [0.0]


def test_each_client_is_in_half_of_the_shadows() -> None:
    chosen = halves(9, 20, seed=3)
    assert (chosen.sum(axis=0) == 4).all()
    assert len(np.unique(chosen, axis=1).T) > 10
    np.testing.assert_array_equal(chosen, halves(9, 20, seed=3))
    assert (chosen != halves(9, 20, seed=4)).any()


def test_seeds_of_shadows_differ_and_fit_all_samplers() -> None:
    seeds = {shadow_seed(seed, index) for seed in (0, 1) for index in range(50)}
    assert len(seeds) == 100
    assert max(seeds) < 2**31
