"""The weighted mean of a cohort's model deltas (TFF aggregators/mean.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.backend import CohortResult


@dataclass(frozen=True)
class Mean:
    """Sum of weight * delta over sum of weights; both sums are the engine's, in float64."""

    def init(self) -> dict[str, Any]:
        """Returns its part of the server state: nothing."""
        return {}

    def aggregate(
        self, state: Mapping[str, Any], cohort: CohortResult
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state and the metrics.

        Divided once and rounded once to float32; all weights zero gives NaN, which the finalizer
        rejects.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_delta = (cohort.delta_sum / cohort.weight_sum).astype(np.float32)
        return mean_delta, dict(state), {"mean_value": {}, "mean_weight": {}}
