"""Rules that move a center step by step: the geometric median and centered clipping.

Geometric median: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE
Transactions on Signal Processing 2022, https://arxiv.org/abs/1912.13445, which smooths Weiszfeld's
method. The paper starts at the weighted mean, but here the default start is the coordinate median:
a delta that is far away can move the mean so far that four steps do not undo the shift.

Centered clipping: Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust
Optimization", ICML 2021, https://arxiv.org/abs/2012.10333. The center starts at the result of the
last round that was not skipped; in the first round it starts at 0.

Each step reads the deltas once: the distances for the next step come from the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule

Combined = tuple[NDArray[np.float64] | None, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class GeometricMedian(RobustRule):
    """The point with the smallest weighted sum of distances to the deltas, by Weiszfeld's method.

    Attributes:
        smoothing: The lower bound of distances (nu); smaller distances are replaced by it.
        iterations: Number of steps.
        weighted: Whether deltas are weighted by the clients' weights; otherwise all weights are 1.
        start: `median`, the coordinate median, or `mean`, the weighted mean.
    """

    smoothing: float = 1e-6
    iterations: int = 4
    weighted: bool = False
    start: str = "median"

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        rows = counted.rows
        weights = counted.weights if self.weighted else np.ones(counted.num)
        weights = weights / weights.sum()
        smoothing = self.smoothing / counted.deltas.scale  # a bound on distances of rows
        if self.start == "median":
            center, distances = rows.median_and_distances()
        else:
            center = np.empty(counted.num_params)
            distances = rows.move(center, 0.0, weights)
        for _ in range(self.iterations):
            factors = weights / np.maximum(smoothing, distances)
            distances = rows.move(center, 0.0, factors / factors.sum())
        objective = float(weights @ distances) * counted.deltas.scale
        return counted.from_rows(center), {}, {"mean_distance": objective}


@dataclass(frozen=True)
class CenteredClipping(RobustRule):
    """The center plus the mean of the clipped differences between the deltas and the center.

    Attributes:
        radius: The norm to which differences are clipped (tau).
        iterations: Number of steps of the center in a round (L).
    """

    radius: float = 10.0
    iterations: int = 1

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the state before the first round: a center [num_params] of zeros."""
        return {**self.init(), "center": np.zeros(num_params)}

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        rows, radius = counted.rows, self.radius / counted.deltas.scale
        center = np.array(counted.to_rows(state["center"]))
        distances = rows.distances_to(center)
        num_clipped = 0
        for _ in range(self.iterations):
            num_clipped = int(np.count_nonzero(distances > radius))
            factors = radius / np.maximum(distances, radius) / counted.num
            distances = rows.move(center, 1.0 - float(factors.sum()), factors)
        combined = counted.from_rows(center)
        return combined, {"center": combined}, {"clipped_count": num_clipped}
