"""Robust rules and pre-aggregators in float64 NumPy, written directly from their definitions.

Deltas are the rows of a matrix [n, num_params]; f of them may be wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def median(deltas: Matrix) -> Vector:
    """The coordinate-wise median."""
    return np.median(deltas, axis=0)


def trimmed_mean(deltas: Matrix, trim: int) -> Vector:
    """Returns the mean of the sorted values without `trim` at each end."""
    return np.sort(deltas, axis=0)[trim : len(deltas) - trim].mean(axis=0)


def near_median(deltas: Matrix, num_nearest: int) -> Vector:
    """Returns the mean of the values nearest to the median. The first rows win ties."""
    found = np.empty(deltas.shape[1])
    for coordinate, values in enumerate(deltas.T):
        distances = np.abs(values - np.median(values))
        order = sorted(range(len(values)), key=lambda index: (distances[index], index))
        found[coordinate] = values[order[:num_nearest]].mean()
    return found


def meamed(deltas: Matrix, f: int) -> Vector:
    """Returns the mean of the n - f values nearest to the median."""
    return near_median(deltas, len(deltas) - f)


def square_distances(deltas: Matrix) -> Matrix:
    """Returns the squared distances of all pairs, from the differences of the rows."""
    return np.array([[((a - b) ** 2).sum() for b in deltas] for a in deltas])


def scores(deltas: Matrix, f: int) -> Vector:
    """Returns Krum's scores: sums of the squared distances to the nearest other rows."""
    distances = square_distances(deltas)
    found = []
    for index, row in enumerate(distances):
        others = sorted(np.delete(row, index))
        found.append(sum(others[: max(1, len(deltas) - f - 2)]))
    return np.array(found)


def ranked(deltas: Matrix, f: int) -> list[int]:
    """Returns the indices of the rows from the lowest score up; of equal scores, by index."""
    values = scores(deltas, f)
    return sorted(range(len(deltas)), key=lambda index: (values[index], index))


def krum(deltas: Matrix, f: int) -> Vector:
    """Returns the row with the lowest score."""
    return deltas[ranked(deltas, f)[0]]


def multi_krum(
    deltas: Matrix, f: int, select: int = 0, weights: Sequence[float] | None = None
) -> Vector:
    """Returns the mean of the rows with the lowest scores."""
    chosen = ranked(deltas, f)[: select or len(deltas) - f]
    given = None if weights is None else np.array(weights)[chosen]
    return np.average(deltas[chosen], axis=0, weights=given)


def bulyan_picks(deltas: Matrix, f: int) -> list[int]:
    """Returns the indices of the rows that repeated Krum chooses, in that order."""
    left = list(range(len(deltas)))
    return [left.pop(ranked(deltas[left], f)[0]) for _ in range(len(deltas) - 2 * f)]


def bulyan(deltas: Matrix, f: int) -> Vector:
    """Repeated Krum, then the mean of the values nearest to the median."""
    return near_median(deltas[sorted(bulyan_picks(deltas, f))], len(deltas) - 4 * f)


def mda(deltas: Matrix, f: int) -> Vector:
    """Returns the mean of the subset of smallest diameter; of several, the lexicographically
    first."""
    distances = square_distances(deltas)
    subsets = itertools.combinations(range(len(deltas)), len(deltas) - f)
    best = min(subsets, key=lambda subset: distances[np.ix_(subset, subset)].max())
    return deltas[list(best)].mean(axis=0)


def weiszfeld(
    deltas: Matrix,
    steps: int,
    *,
    weights: Sequence[float] | None = None,
    smoothing: float = 1e-6,
    start: Vector | None = None,
) -> Vector:
    """Geometric median: smoothed Weiszfeld steps from the weighted mean, or from `start`."""
    shares = np.ones(len(deltas)) if weights is None else np.array(weights, float)
    shares = shares / shares.sum()
    center = shares @ deltas if start is None else start
    for _ in range(steps):
        pulls = shares / np.maximum(smoothing, np.linalg.norm(deltas - center, axis=1))
        center = pulls @ deltas / pulls.sum()
    return center


def centered_clipping(deltas: Matrix, radius: float, center: Vector, steps: int = 1) -> Vector:
    """Moves the center by the mean of the clipped differences from it."""
    for _ in range(steps):
        moves = deltas - center
        norms = np.linalg.norm(moves, axis=1)
        factors = np.array([min(1.0, radius / norm) if norm else 1.0 for norm in norms])
        center = center + (moves * factors[:, np.newaxis]).mean(axis=0)
    return center


def dnc(deltas: Matrix, f: int) -> Vector:
    """DnC in one pass over all coordinates, by the singular value decomposition."""
    centered = deltas - deltas.mean(axis=0)
    top = np.linalg.svd(centered, full_matrices=False)[2][0]
    order = sorted(range(len(deltas)), key=lambda index: ((centered[index] @ top) ** 2, index))
    return deltas[sorted(order[: len(deltas) - f])].mean(axis=0)


def sign_majority(deltas: Matrix) -> Vector:
    """The sign of the sum of signs."""
    return np.sign(np.sign(deltas).sum(axis=0))


def trust_scores(deltas: Matrix, root: Vector) -> Vector:
    """FLTrust's scores: cosines with the root set's delta; negative cosines become 0."""
    norms = np.linalg.norm(deltas, axis=1) * np.linalg.norm(root)
    return np.array([max(0.0, each @ root / n) for each, n in zip(deltas, norms, strict=True)])


def fltrust(deltas: Matrix, root: Vector) -> Vector:
    """Returns the mean of the scaled deltas, weighted by their trust scores."""
    trust = trust_scores(deltas, root)
    scaled = deltas * (np.linalg.norm(root) / np.linalg.norm(deltas, axis=1))[:, np.newaxis]
    return trust @ scaled / trust.sum()


def foolsgold_factors(histories: Matrix) -> Vector | None:
    """FoolsGold's factors, as in the authors' code; None if all would be 0."""
    n = len(histories)
    cosines = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        size = np.linalg.norm(histories[i]) * np.linalg.norm(histories[j])
        cosines[i, j] = histories[i] @ histories[j] / size if size else 0.0
    most = cosines.max(axis=1)
    for i, j in itertools.permutations(range(n), 2):
        if most[i] < most[j]:
            cosines[i, j] *= most[i] / most[j]
    factors = np.clip(1.0 - cosines.max(axis=1), 0.0, 1.0)
    if factors.max() < 1e-12:  # equal up to rounding
        return None
    factors = factors / factors.max()
    factors[factors == 1.0] = 0.99
    with np.errstate(divide="ignore"):
        return np.clip(np.log(factors / (1.0 - factors)) + 0.5, 0.0, 1.0)


def foolsgold(deltas: Matrix, histories: Matrix) -> Vector:
    """Returns the mean of the deltas, weighted by FoolsGold's factors."""
    factors = foolsgold_factors(histories)
    factors = np.ones(len(deltas)) if factors is None else factors
    return factors @ deltas / factors.sum()


def bucketing(deltas: Matrix, size: int, order: Sequence[int]) -> Matrix:
    """Returns means of `size` rows that follow each other in `order`."""
    rows = deltas[list(order)]
    return np.array([rows[i : i + size].mean(axis=0) for i in range(0, len(rows), size)])


def nnm(deltas: Matrix, f: int) -> Matrix:
    """Returns, for each row, the mean of the n - f rows nearest to it."""
    distances = square_distances(deltas)
    mixed = []
    for index in range(len(deltas)):
        order = sorted(
            range(len(deltas)), key=lambda other: (other != index, distances[index, other], other)
        )
        mixed.append(deltas[order[: len(deltas) - f]].mean(axis=0))
    return np.array(mixed)


def arc(deltas: Matrix, f: int) -> Matrix:
    """Clips the longest rows to the norm of the longest row that is not clipped."""
    n = len(deltas)
    norms = np.linalg.norm(deltas, axis=1)
    bound = np.sort(norms)[::-1][math.floor(2 * f / n * (n - f))]
    return np.array(
        [d * (bound / norm) if norm > bound else d for d, norm in zip(deltas, norms, strict=True)]
    )
