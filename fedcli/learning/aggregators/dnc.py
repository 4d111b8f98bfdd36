"""Divide and conquer: deltas that stand out along the direction of largest variance are dropped.

Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
Defenses for Federated Learning", NDSS 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.native import MatrixRows
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule


@dataclass(frozen=True)
class DivideAndConquer(RobustRule):
    """The mean of the deltas that no pass drops.

    A pass takes some coordinates at random, finds the direction in which the deltas vary most, and
    drops the f deltas that deviate most from the mean along this direction.

    Attributes:
        iterations: Number of passes.
        coordinates: Largest number of coordinates of a pass.
    """

    iterations: int = 1
    coordinates: int = 10_000

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64] | None, dict[str, Any], dict[str, Any]]:
        """Returns the mean; None if the passes drop all deltas."""
        is_kept = np.ones(counted.num, bool)
        for number in range(self.iterations):
            deviations = _deviations(self._sampled(counted, number))
            dropped = np.argsort(deviations, kind="stable")[counted.num - num_byzantine :]
            is_kept[dropped] = False
        kept = np.flatnonzero(is_kept)
        if not len(kept):
            return None, {}, {}
        return counted.mean_of(kept), {}, counted.kept(kept)

    def _sampled(self, counted: CountedDeltas, number: int) -> NDArray[np.float32]:
        """Returns the rows at the coordinates of a pass, float32 [num, num_coordinates]."""
        if counted.num_params <= self.coordinates:
            return np.ascontiguousarray(counted.matrix[counted.places])
        context = counted.deltas.round
        seed, round_num = (context.seed, context.round_num) if context else (0, 0)
        key = stream_key(seed, Purpose.COORDINATES, round_num=round_num, occurrence=number)
        chosen = np.sort(Stream(key).permutation(counted.num_params)[: self.coordinates])
        return np.ascontiguousarray(counted.matrix[np.ix_(counted.places, chosen)])


def _deviations(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the squared deviation of each row from the mean along the top singular direction.

    The matrix of inner products of the centered rows follows from their distances. With its top
    eigenvector u and eigenvalue l, row i deviates by u_i * sqrt(l).
    """
    distances = MatrixRows(rows, np.arange(len(rows)), 1).square_distances()
    centered = distances - distances.mean(axis=0) - distances.mean(axis=1)[:, np.newaxis]
    values, vectors = np.linalg.eigh(-0.5 * (centered + distances.mean()))
    deviations: NDArray[np.float64] = max(values[-1], 0.0) * np.square(vectors[:, -1])
    return deviations
