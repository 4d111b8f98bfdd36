"""Aggregators that treat each coordinate of the deltas separately: the median.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, https://arxiv.org/abs/1803.01498. If fewer than half of the clients
of a round send wrong deltas, each coordinate of the median lies within the range of the correct
ones.

Client weights are ignored, because a client could move the median by claiming a large weight. A
delta counts if it is finite and its client has an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import ALL_ROWS, DeltaRequest, Deltas


def middle_of_rows(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the median of each row: the middle value, or the mean of the two middle ones.

    Args:
        values: [num_rows, num_values], at least one value per row and no NaN. The function reorders
            the values of each row.

    Returns:
        [num_rows]; float64 if there are two middle values. The result does not depend on the order
        of the values of a row, to the bit.
    """
    values += 0.0  # -0 becomes 0; as they are equal, the order would decide which is the median
    last = values.shape[1] // 2
    if values.shape[1] % 2:
        values.partition(last, axis=1)
        return values[:, last]
    values.partition((last - 1, last), axis=1)
    return (values[:, last - 1].astype(np.float64) + values[:, last]) / 2.0


@dataclass(frozen=True)
class Median:
    """The coordinate-wise median of the deltas."""

    def init(self) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the single deltas."""
        return ALL_ROWS

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the median delta [num_params], the state, and no metrics."""
        return deltas.by_coordinate(middle_of_rows), dict(state), {}
