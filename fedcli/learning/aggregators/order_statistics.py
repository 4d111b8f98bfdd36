"""Aggregators that look at every coordinate of all deltas by itself: the median.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, https://arxiv.org/abs/1803.01498. As long as fewer than half of the
clients of a round send wrong deltas, each coordinate of the median lies within what the others
sent.

All deltas count the same, whatever the client weights: a weight that a client says would be a way
to move the median. A delta counts if it is finite and its client has an example.
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
        values: [num_rows, num_values], at least one value and no NaN; its rows are rearranged.

    Returns:
        [num_rows]; means are float64. The order of the values of a row changes no bit.
    """
    values += 0.0  # -0 is 0: which of the two comes first would depend on the order
    last = values.shape[1] // 2
    if values.shape[1] % 2:
        values.partition(last, axis=1)
        return values[:, last]
    values.partition((last - 1, last), axis=1)
    return (values[:, last - 1].astype(np.float64) + values[:, last]) / 2.0


@dataclass(frozen=True)
class Median:
    """The median of the deltas, coordinate by coordinate."""

    def init(self) -> dict[str, Any]:
        """Returns its part of the server state: nothing."""
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Returns all deltas."""
        return ALL_ROWS

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the median delta [num_params], the state, and no metrics."""
        return deltas.by_coordinate(middle_of_rows), dict(state), {}
