"""Bounds on how well runs with a client can be told from runs without it, and on epsilon."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Privacy(NamedTuple):
    """The (epsilon, delta) of differential privacy that a run reports."""

    epsilon: float
    delta: float


def largest_advantage(privacy: Privacy) -> float:
    """Returns the largest advantage that (epsilon, delta)-differential privacy allows.

    It is (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), from TPR <= e^epsilon FPR + delta and the
    same inequality for the opposite guess.
    """
    growth = math.exp(-privacy.epsilon)
    return min(1.0, (1.0 - growth + 2.0 * privacy.delta * growth) / (1.0 + growth))


def clopper_pearson(num_hits: int, num_trials: int, risk: float = 0.025) -> tuple[float, float]:
    """Returns a lower and an upper bound on a probability.

    Each is wrong with probability at most `risk`. (Clopper and Pearson, "The use of confidence or
    fiducial limits illustrated in the case of the binomial", 1934.)

    Args:
        num_hits: Number of successes, 0 to `num_trials`.
        num_trials: Number of trials, at least 1.
        risk: The largest probability that the lower bound is wrong, and the same for the upper
            bound; above 0 and below 1.
    """
    lower = 0.0 if num_hits == 0 else _root(num_hits, num_trials, risk, from_above=True)
    upper = 1.0 if num_hits == num_trials else _root(num_hits, num_trials, risk, from_above=False)
    return lower, upper


def _root(num_hits: int, num_trials: int, risk: float, *, from_above: bool) -> float:
    """The p at which P(X >= num_hits) = risk if `from_above`, else P(X <= num_hits) = risk.

    X is the number of hits, binomial with probability p. The p is found by bisection.
    """
    counts = np.arange(num_hits, num_trials + 1) if from_above else np.arange(num_hits + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_trials + 1)))])
    left = num_trials - counts
    ways = log_factorials[-1] - log_factorials[counts] - log_factorials[left]

    def tail(p: float) -> float:
        return float(np.sum(np.exp(ways + counts * math.log(p) + left * math.log1p(-p))))

    low, high = 0.0, 1.0
    for _ in range(60):  # to the last bit of a double in [0.5, 1]
        middle = (low + high) / 2.0
        if (tail(middle) < risk) == from_above:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def least_epsilon(
    members: tuple[int, int], others: tuple[int, int], delta: float, risk: float = 0.025
) -> float:
    """Returns a lower bound on the epsilon of a mechanism whose outputs were distinguished.

    The bound is ln((TPR - delta) / FPR), but at least 0. Here TPR is a lower bound on the true
    positive rate, and FPR an upper bound on the false positive rate. The result exceeds the true
    epsilon with probability at most 2 * `risk`.

    Args:
        members: Number of runs with the client that were recognised, and of all runs with it.
        others: Number of runs without the client that were mistaken for runs with it, and of all
            runs without it.
        delta: The delta of the mechanism.
        risk: See `clopper_pearson`.
    """
    true, false = clopper_pearson(*members, risk)[0], clopper_pearson(*others, risk)[1]
    return max(0.0, math.log((true - delta) / false)) if true > delta else 0.0
