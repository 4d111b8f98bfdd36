"""The weighted mean of a cohort's model deltas (TFF aggregators/mean.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.learning.engines.contract import CohortResult


def weighted_mean(cohort: CohortResult) -> NDArray[np.float32]:
    """Returns the sum of weight * delta over the sum of weights, float32 [num_params].

    Divided once and rounded once to float32; all weights zero gives NaN, which the finalizer
    rejects.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (cohort.delta_sum / cohort.weight_sum).astype(np.float32)


@dataclass(frozen=True)
class Mean:
    """Sum of weight * delta over sum of weights; both sums are the engine's, in float64."""

    def init(self) -> dict[str, Any]:
        """Returns its part of the server state: nothing."""
        return {}

    def bounds(self, state: Mapping[str, Any]) -> None:
        """Returns None: a delta may be of any size."""

    def aggregate(
        self, state: Mapping[str, Any], cohort: CohortResult
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state and the metrics."""
        return weighted_mean(cohort), dict(state), {"mean_value": {}, "mean_weight": {}}
