"""Tests whether paired differences are zero on average: the sign-flip test; Holm's adjustment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key

MAX_EXACT = 16  # largest number of pairs whose 2^n sign patterns are all counted
_NUM_DRAWS = 100_000
_BLOCK = 1000  # draws at a time
# Sums that differ by less than this share of the sum of absolute differences count as equal.
_ROUNDING = 1e-12


def sign_flip_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of the sign-flip (paired permutation) test.

    Under the null hypothesis, the members of each pair are exchangeable, so each difference has
    either sign with equal probability. p is the share of all sign patterns whose sum is at least as
    far from 0 as the observed sum (Fisher 1935, The Design of Experiments). Above MAX_EXACT pairs,
    it is estimated from 100,000 random patterns and the observed one.

    Args:
        differences: The difference of each pair; at least one, all finite.
    """
    values = np.asarray(differences, np.float64)
    observed = abs(float(values.sum())) - _ROUNDING * float(np.abs(values).sum())
    if len(values) > MAX_EXACT:
        return _drawn_p(values, observed)
    sums = values[:1]  # the first sign is fixed: flipping all signs keeps the absolute sum
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= observed))


def smallest_p(num_pairs: int) -> float:
    """Returns the smallest p-value that `sign_flip_p` can return for `num_pairs` pairs."""
    return 2.0 ** (1 - num_pairs) if num_pairs <= MAX_EXACT else 1.0 / (_NUM_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for several tests, in the order of `p_values`.

    Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _drawn_p(values: np.ndarray[tuple[int], np.dtype[np.float64]], observed: float) -> float:
    stream = Stream(stream_key(0, Purpose.SIGN_FLIP))
    num_as_far = 1
    for _ in range(_NUM_DRAWS // _BLOCK):
        signs = np.where(stream.uniform(_BLOCK * len(values)) < 0.5, -1.0, 1.0)
        sums = signs.reshape(_BLOCK, len(values)) @ values
        num_as_far += int(np.sum(np.abs(sums) >= observed))
    return num_as_far / (_NUM_DRAWS + 1)
