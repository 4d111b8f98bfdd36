"""Rules that choose deltas by their distances from each other.

Krum and Multi-Krum: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with
Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, https://arxiv.org/abs/1703.02757.
Bulyan: El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in
Byzantium", ICML 2018, https://arxiv.org/abs/1802.07927. Minimum-diameter averaging: Rousseeuw,
"Multivariate Estimation with High Breakdown Point", 1985; El Mhamdi et al. 2018.

If scores are equal, the client that comes first in the cohort is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import least_diameter
from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule, count_of

Combined = tuple[NDArray[np.float64] | None, dict[str, Any], dict[str, Any]]

MAX_SUBSETS = 1_000_000  # the most subsets that minimum-diameter averaging may compare


def krum_scores(distances: NDArray[np.float64], num_byzantine: int) -> NDArray[np.float64]:
    """Returns the sum of each delta's squared distances to its n - f - 2 nearest others.

    Args:
        distances: Squared distances of all pairs, float64 [n, n].
        num_byzantine: f. If n - f - 2 is below 1, one distance is summed; none if n is 1.
    """
    num = len(distances)
    num_neighbours = min(max(1, num - num_byzantine - 2), num - 1)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)  # a delta is not its own neighbour
    others.sort(axis=1)
    scores: NDArray[np.float64] = others[:, :num_neighbours].sum(axis=1)
    return scores


@dataclass(frozen=True)
class Krum(RobustRule):
    """The delta with the lowest score."""

    def least_clients(self, num_byzantine: int) -> int:
        """Returns 2 f + 3."""
        return 2 * num_byzantine + 3

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        scores = krum_scores(counted.rows.square_distances(), num_byzantine)
        chosen = np.array([np.argmin(scores)])
        return counted.mean_of(chosen), {}, counted.kept(chosen)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the deltas with the lowest scores.

    Attributes:
        select: The number of deltas, at most n - f; 0 selects n - f.
        weighted: Whether the mean is weighted by the clients' weights.
    """

    select: int = 0
    weighted: bool = False

    def problem(self, num_clients: int) -> str | None:
        """See `RobustRule.problem`; `select` may also be too large."""
        most = num_clients - count_of(self.num_byzantine, num_clients)
        if self.select > most:
            return (
                f"select {self.select} is more than the {most} of {num_clients} deltas that are "
                "assumed correct; choose more clients or a smaller select"
            )
        return super().problem(num_clients)

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        scores = krum_scores(counted.rows.square_distances(), num_byzantine)
        num_chosen = self.select or counted.num - num_byzantine
        chosen = np.argsort(scores, kind="stable")[:num_chosen]
        if not self.weighted:
            return counted.mean_of(chosen), {}, counted.kept(chosen)
        factors = np.zeros(counted.num)
        factors[chosen] = counted.weights[chosen] / counted.weights[chosen].sum()
        combined = counted.from_rows(counted.rows.weighted_sum(factors))
        return combined, {}, counted.kept(chosen)


@dataclass(frozen=True)
class Bulyan(RobustRule):
    """Repeated Krum, then in each coordinate the mean of the values nearest to the median.

    n - 2 f deltas are chosen one after another, each by its score among the deltas that are left.
    In each coordinate, the n - 4 f chosen values nearest to the median are averaged.
    """

    def least_clients(self, num_byzantine: int) -> int:
        """Returns 4 f + 3."""
        return 4 * num_byzantine + 3

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        distances = counted.rows.square_distances()
        left = list(range(counted.num))
        chosen: list[int] = []
        for _ in range(counted.num - 2 * num_byzantine):
            scores = krum_scores(distances[np.ix_(left, left)], num_byzantine)
            chosen.append(left.pop(int(np.argmin(scores))))
        some = counted.some(np.array(sorted(chosen)))
        nearest = some.rows.mean_near_median(counted.num - 4 * num_byzantine)
        return counted.from_rows(nearest), {}, counted.kept(chosen)


@dataclass(frozen=True)
class MinimumDiameter(RobustRule):
    """The mean of the n - f deltas with the smallest diameter (largest distance between two)."""

    def problem(self, num_clients: int) -> str | None:
        """See `RobustRule.problem`; there may also be too many subsets to compare."""
        num_bad = count_of(self.num_byzantine, num_clients)
        num_subsets = math.comb(num_clients, num_bad)
        if num_subsets > MAX_SUBSETS:
            return (
                f"leaving out {num_bad} of {num_clients} deltas gives more than {MAX_SUBSETS:,} "
                "subsets to compare; choose fewer clients or a smaller num_byzantine"
            )
        return super().problem(num_clients)

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        distances = counted.rows.square_distances()
        chosen = least_diameter(distances, counted.num - num_byzantine)
        return counted.mean_of(chosen), {}, counted.kept(chosen)
