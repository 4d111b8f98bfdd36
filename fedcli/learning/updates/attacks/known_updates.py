"""Statistics of the updates that attackers know, computed in slices of the coordinates.

All sums are in float64 and in a fixed order: coordinates by slices, updates in cohort order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import MatrixRows
from fedcli.learning.updates.attacks.stage import AttackView


def mean(view: AttackView) -> NDArray[np.float64]:
    """Returns the mean of the known updates, float64 [num_params]. At least one is known."""
    result = np.empty(view.num_params)
    for chosen, values in view.slices():
        result[chosen] = values.mean(axis=0)
    return result


def mean_and_std(view: AttackView) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and the standard deviation of the known updates by coordinate.

    Both are float64 [num_params]. The deviation divides by n - 1; it is 0 if only one update is
    known.
    """
    means, deviations = np.empty(view.num_params), np.zeros(view.num_params)
    for chosen, values in view.slices():
        means[chosen] = values.mean(axis=0)
        if len(values) > 1:
            deviations[chosen] = values.std(axis=0, ddof=1)
    return means, deviations


def deviation(view: AttackView, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean of the known updates, and the direction in which an attack moves from it.

    Both are float64 [num_params].

    Args:
        view: The round.
        kind: `std`, the standard deviation of each coordinate; `unit`, the mean divided by its
            norm; or `sign`, the signs of the mean.
    """
    if kind == "std":
        return mean_and_std(view)
    center = mean(view)
    if kind == "sign":
        return center, np.sign(center)
    norm = float(np.sqrt(np.sum(np.square(center))))
    return center, center / norm if norm else center


def squared_distances(view: AttackView) -> NDArray[np.float64]:
    """Returns the squared distances between the known updates, float64 [known, known]."""
    return MatrixRows(view.updates.rows, view.known, num_threads=1).square_distances()


def norms(view: AttackView) -> NDArray[np.float64]:
    """Returns the L2 norms of the known updates, float64 [known]."""
    total = np.zeros(len(view.known))
    for _, values in view.slices():
        total += np.einsum("ij,ij->i", values, values)
    norms_of_all: NDArray[np.float64] = np.sqrt(total)
    return norms_of_all


class DistancesFromLine:
    """Squared distances from the point `center - gamma * direction` to the known updates.

    |x - h|^2 = |center - h|^2 - 2 gamma <direction, center - h> + gamma^2 |direction|^2
    """

    def __init__(
        self,
        view: AttackView,
        center: NDArray[np.float64],
        direction: NDArray[np.float64],
    ) -> None:
        """Reads the known updates once; both vectors are [num_params]."""
        self._constant = np.zeros(len(view.known))
        self._linear = np.zeros(len(view.known))
        self._square = float(np.sum(np.square(direction)))
        for chosen, values in view.slices():
            differences = center[chosen] - values
            self._constant += np.einsum("ij,ij->i", differences, differences)
            self._linear += np.einsum("ij,j->i", differences, direction[chosen])

    def at(self, gamma: float) -> NDArray[np.float64]:
        """Returns the squared distances [known]."""
        squares = self._constant - 2.0 * gamma * self._linear + gamma * gamma * self._square
        return np.maximum(squares, 0.0)
