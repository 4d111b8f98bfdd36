"""The exact epsilon of Gaussian noise without sampling.

Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018,
https://arxiv.org/abs/1805.06530, theorem 8.
"""

from __future__ import annotations

import math

_LARGE = 20.0  # from here on the series of `_mills` is exact to rounding


def epsilon(sensitivity: float, delta: float) -> float:
    """Returns the smallest epsilon for which N(0, 1) noise is (epsilon, delta)-private.

    Several releases with sensitivities s_1, s_2, ... are equivalent to one release with sensitivity
    sqrt(s_1^2 + s_2^2 + ...), even if each release depends on the earlier ones.

    Args:
        sensitivity: The most by which one client changes the release (L2 norm), at least 0.
        delta: The probability with which the guarantee may fail, above 0 and below 1.
    """
    if sensitivity == 0.0 or _delta(0.0, sensitivity) <= delta:
        return 0.0
    low = 0.0
    high = 0.5 * sensitivity**2 + sensitivity * math.sqrt(-2.0 * math.log(delta))
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return high
        if _delta(middle, sensitivity) <= delta:
            high = middle
        else:
            low = middle


def _delta(epsilon: float, sensitivity: float) -> float:
    """Returns Phi(s / 2 - eps / s) - exp(eps) Phi(-s / 2 - eps / s)."""
    near, far = 0.5 * sensitivity - epsilon / sensitivity, 0.5 * sensitivity + epsilon / sensitivity
    density = math.exp(-0.5 * near * near) / math.sqrt(2.0 * math.pi)
    # exp(epsilon) Phi(-far) is density * mills(far), because far^2 - near^2 = 2 epsilon.
    return 0.5 * math.erfc(-near / math.sqrt(2.0)) - density * _mills(far)


def _mills(x: float) -> float:
    """Returns Mills' ratio of a standard normal, its upper tail / its density, for x >= 0."""
    if x < _LARGE:
        tail = 0.5 * math.erfc(x / math.sqrt(2.0))
        return tail * math.sqrt(2.0 * math.pi) * math.exp(0.5 * x * x)
    term = total = 1.0 / x
    for k in range(1, 20):
        term *= -(2 * k - 1) / (x * x)
        total += term
    return total
