"""Renyi divergences of one round, which add up over rounds, and their conversion to epsilon.

Mironov, "Renyi Differential Privacy", CSF 2017, https://arxiv.org/abs/1702.07476. Conversion:
Canonne, Kamath and Steinke, NeurIPS 2020, https://arxiv.org/abs/2004.00010.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The orders of dp-accounting and Opacus, and large ones for little noise or few rounds.
ORDERS: Floats = np.array([*(x / 10 for x in range(11, 110)), *range(11, 64), 128, 256, 512, 1024])

_ORDERS_LESS_1 = ORDERS - 1.0
_PER_ORDER = np.log1p(-1.0 / ORDERS) - np.log(ORDERS) / _ORDERS_LESS_1

_REACH = 14.0  # standard deviations, on both sides, that a quadrature covers
_MAX_DIFFERENCES = 256  # the largest order for which the tighter bound of `fixed_size` is computed


def epsilon(spent: Floats, delta: float) -> float:
    """Returns the least epsilon over all orders, at least 0.

    Args:
        spent: The Renyi divergence at each of ORDERS, summed over rounds.
        delta: Above 0 and below 1.
    """
    candidates = spent + _PER_ORDER - math.log(delta) / _ORDERS_LESS_1
    return max(0.0, float(candidates.min()))


def gaussian(noise_multiplier: float) -> Floats:
    """Returns the divergence at each order a if all clients take part: a / (2 z^2)."""
    return ORDERS / (2.0 * noise_multiplier**2)


def poisson(rate: float, noise_multiplier: float) -> Floats:
    """Returns the divergence at each order if each client takes part with probability `rate`.

    Mironov, Talwar and Zhang 2019, https://arxiv.org/abs/1908.10530: a sum at whole orders a; at
    other orders, a quadrature of E[(1 - q + q e^((2x - 1) / (2 z^2)))^a] for x ~ N(0, z^2).
    """
    if rate == 1.0:
        return gaussian(noise_multiplier)
    return np.array(
        [
            (_whole if order == int(order) else _between)(order, rate, noise_multiplier)
            / (order - 1.0)
            for order in ORDERS.tolist()
        ]
    )


def _whole(order: float, rate: float, z: float) -> float:
    k = np.arange(int(order) + 1)
    logs = _log_binomials(int(order)) + (order - k) * math.log1p(-rate) + k * math.log(rate)
    return _log_sum(logs + (k * k - k) / (2.0 * z * z))


def _between(order: float, rate: float, z: float) -> float:
    # The integrand is smooth within pi z^2 of the real axis, so this step's error is negligible.
    step = min(z / 8.0, z * z / 2.0)
    x = np.arange(-_REACH * z, order + _REACH * z, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2.0 * x - 1.0) / (2.0 * z * z))
    density = -x * x / (2.0 * z * z) - math.log(z * math.sqrt(2.0 * math.pi))
    return _log_sum(order * ratio + density) + math.log(step)


def fixed_size(rate: float, noise_multiplier: float) -> Floats:
    """Returns a bound on the divergence when one client is replaced, for cohorts of a fixed size.

    The bounds are those of Wang, Balle and Kasiviswanathan 2019, https://arxiv.org/abs/1808.00087.
    At whole orders theorem 9 is used, with the differences (P / Q - 1)^l of its proof, as in
    dp-accounting; between whole orders, corollary 10.

    Args:
        rate: Cohort size divided by population, below 1.
        noise_multiplier: Standard deviation of the noise divided by the sensitivity of the sum,
            which is twice the clipping norm.
    """
    at_whole: dict[int, float] = {1: 0.0}
    powers = range(2, _MAX_DIFFERENCES + 2, 2)
    differences = np.array([_log_difference(power, noise_multiplier) for power in powers])

    def log_moment(order: int) -> float:
        if order not in at_whole:
            at_whole[order] = _fixed_size_moment(order, rate, noise_multiplier, differences)
        return at_whole[order]

    bounds = []
    for order in ORDERS.tolist():
        low = math.floor(order)
        share = order - low
        moment = (
            log_moment(low)
            if not share
            else ((1.0 - share) * log_moment(low) + share * log_moment(low + 1))
        )
        bounds.append(moment / (order - 1.0))
    return np.array(bounds)


def _fixed_size_moment(order: int, rate: float, z: float, differences: Floats) -> float:
    """Returns (order - 1) times the bound at a whole order of at least 2.

    `differences` has ln E[(P / Q - 1)^l] for l = 2, 4, ..., `_MAX_DIFFERENCES`.
    """
    j = np.arange(2, order + 1)
    moments = j * (j - 1.0) / (2.0 * z * z)  # ln E[(P / Q)^j]
    logs = math.log(2.0) + moments
    square = 1.0 / (z * z)
    logs[0] = min(math.log(4.0) + math.log(math.expm1(square)), math.log(2.0) + square)
    if order <= _MAX_DIFFERENCES:
        # The value for an odd l lies between those of its neighbours.
        pairs = 0.5 * (differences[j // 2 - 1] + differences[(j + 1) // 2 - 1])
        logs[1:] = np.minimum(logs[1:], math.log(4.0) + pairs[1:])
    logs += j * math.log(rate) + _log_binomials(order)[2:]
    return float(np.logaddexp(0.0, _log_sum(logs)))


def _log_difference(power: int, z: float) -> float:
    """Returns ln E[(P(x) / Q(x) - 1)^power] for x ~ Q = N(0, z^2), P = N(1, z^2); power is even."""
    step = z / 10.0
    x = np.arange(-_REACH * z, power + _REACH * z, step)
    exponent = (2.0 * x - 1.0) / (2.0 * z * z)
    with np.errstate(divide="ignore"):  # P / Q is 1 at x = 1/2
        size = np.maximum(exponent, 0.0) + np.log(-np.expm1(-np.abs(exponent)))
    density = -x * x / (2.0 * z * z) - math.log(z * math.sqrt(2.0 * math.pi))
    return _log_sum(power * size + density) + math.log(step)


def _log_binomials(n: int) -> Floats:
    """Returns the logarithms of the binomial coefficients C(n, k) for k from 0 to n."""
    factorials = np.array([math.lgamma(k + 1.0) for k in range(n + 1)])
    logs: Floats = factorials[-1] - factorials - factorials[::-1]
    return logs


def _log_sum(logs: Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))
