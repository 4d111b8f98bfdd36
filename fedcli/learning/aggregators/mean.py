"""The weighted mean of a cohort's model deltas (TFF aggregators/mean.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import SUM, DeltaRequest, Deltas


@dataclass(frozen=True)
class Mean:
    """sum(weight * delta) / sum(weight); the engine computes both sums in float64."""

    averages_coordinates: ClassVar[bool] = True

    def init(self) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the sum alone."""
        return SUM

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state and the metrics."""
        return deltas.weighted_mean(), dict(state), {"mean_value": {}, "mean_weight": {}}
