"""How well scores separate members from other clients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.audits.separation import confidence, mean_scores, separation

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def test_values_of_a_small_example() -> None:
    """The AUC is 12/16; losses of three of four members and one of four others are at most 0.35."""
    found = separation(-np.array([0.1, 0.2, 0.35, 0.9]), -np.array([0.15, 0.5, 1.1, 2.0]))
    assert found.auc == 0.75
    assert found.advantage == 0.5
    assert found.tpr == (0.25, 0.25)  # only the loss 0.1 is below all others
    assert found.to_json()["tpr_at_fpr_0.001"] == 0.25


@given(SCORES, SCORES)
def test_equals_counting_all_pairs_and_thresholds(
    members: list[float], others: list[float]
) -> None:
    found = separation(np.array(members), np.array(others))
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert found.auc == pytest.approx(np.mean(pairs), abs=1e-12)
    rates = [(0.0, 0.0)]
    for threshold in {*members, *others}:
        tpr = np.mean([each >= threshold for each in members])
        fpr = np.mean([each >= threshold for each in others])
        rates.append((float(tpr), float(fpr)))
    assert found.advantage == pytest.approx(max(tpr - fpr for tpr, fpr in rates), abs=1e-12)
    assert found.tpr[1] == pytest.approx(max(t for t, f in rates if f <= 0.01), abs=1e-12)


def test_infinite_scores_are_the_smallest() -> None:
    found = separation(np.array([-np.inf, 1.0]), np.array([-np.inf, -np.inf]))
    assert found.auc == 0.75
    assert found.advantage == 0.5


def test_low_rates_need_many_others() -> None:
    others = np.arange(1000, dtype=np.float64)
    members: NDArray[np.float64] = others + 0.5
    found = separation(members, others)
    # Above the thresholds are 1 and 10 of the 1,000 others, and 2 and 11 of the members.
    assert found.tpr == (0.002, 0.011)


def test_confidence_is_the_log_of_the_odds() -> None:
    p = np.array([1e-12, 0.3, 0.5, 0.9, 1 - 1e-9])
    expected = [math.log(each) - math.log1p(-each) for each in p.tolist()]
    np.testing.assert_allclose(confidence(-np.log(p)), expected, rtol=1e-7, atol=1e-12)
    assert confidence(np.array([0.0, np.inf])).tolist() == [100.0, -100.0]


def test_the_score_of_a_client_is_the_mean_of_its_examples() -> None:
    scores = mean_scores([np.array([math.log(2.0)]), -np.log([0.9, 0.5])])
    np.testing.assert_allclose(scores, [0.0, math.log(9.0) / 2], atol=1e-15)
