"""Rules that need several secure sums, or one sum of something other than the updates.

Rules that move a center v step by step broadcast it before each step, and need one sum for each
step. D_k is the update of client k, and b_k is its weight divided by |D_k - v|. The geometric
median needs the sums of b_k (D_k - v) and of b_k (Pillutla et al., whose rule was designed for
secure sums). Centered clipping needs the sum of the clipped D_k - v. The majority of signs needs
the sum of the signs. If a sum fails because too few clients report, the round is skipped: the
mean is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.centers import CenteredClipping, GeometricMedian
from fedcli.learning.aggregators.contract import first_state, problem_of
from fedcli.learning.aggregators.order_statistics import SignMajority
from fedcli.learning.aggregators.robust import skipped
from fedcli.learning.engines.deltas import DeltaRequest, Deltas
from fedcli.learning.masked_sums import MaskedSums, SumOptions
from fedcli.learning.secure_sums.common import (
    Result,
    largest_power,
    rows_of,
    sums_among,
)

_FLOAT = 4  # bytes
SteppingRule = GeometricMedian | CenteredClipping | SignMajority
Stepped = tuple[NDArray[np.float64], dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class SecureSteps:
    """A rule that needs several secure sums, or one sum of something other than the updates.

    Attributes:
        inner: The rule.
        options: The options of the sums.
    """

    selected_by: ClassVar[str] = "--secure-sum"

    inner: SteppingRule
    options: SumOptions = SumOptions()

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the rule's state, and the number of skipped rounds."""
        return {"num_skipped": 0, **first_state(self.inner, num_params)}

    def init(self) -> dict[str, Any]:
        """Returns the state for a model without parameters."""
        return self.init_for(0)

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas, from which clients compute what they send."""
        return self.inner.request(state)

    def problem(self, num_clients: int) -> str | None:
        """Returns the rule's problem with `num_clients` deltas, or None."""
        return problem_of(self.inner, num_clients)

    def aggregate(self, state: Mapping[str, Any], deltas: Deltas) -> Result:
        """Returns the rule's result; a round is skipped if a sum fails or too few deltas count.

        Raises:
            ConfigError: See `MaskedSums.weighted`.
        """
        sums = sums_among(self.options, deltas)
        steps = _STEPS[type(self.inner)](self.inner, sums, deltas, state)
        num_counted = int(np.count_nonzero(deltas.stats["weight"] > 0.0))
        if steps is None or self.problem(num_counted) is not None:
            nothing, after, metrics = skipped(state, deltas)
            return nothing, after, {**metrics, "secure_sum": sums.metrics}
        combined, changes, metrics = steps
        down = metrics.pop("broadcasts", 0) * _FLOAT * len(combined)
        secure_sum = {**sums.metrics, "extra_bytes_down": down}
        with np.errstate(over="ignore"):
            mean = combined.astype(np.float32)
        return mean, {**state, **changes}, {"skipped": 0, **metrics, "secure_sum": secure_sum}


def _geometric_median(
    rule: GeometricMedian, sums: MaskedSums, deltas: Deltas, state: Mapping[str, Any]
) -> Stepped | None:
    """Weiszfeld's steps from the mean: clients compute their own distance to the center."""
    rows, client_weights = rows_of(deltas), deltas.stats["weight"]
    weights = client_weights if rule.weighted else np.minimum(client_weights, 1.0)
    start = sums.weighted(rows, weights.tolist(), largest_power(rows))
    if start is None:
        return None
    center, distances = start[0] / start[1], np.zeros(len(rows))
    for _ in range(rule.iterations):
        center = _as_sent(center)
        distances = _distances(rows, center)
        factors = weights / np.maximum(rule.smoothing, distances)
        moved = sums.mean_difference(rows, center, factors, distances)
        assert moved is not None  # the first sum succeeded
        center = center + moved
    return center, {}, {"broadcasts": rule.iterations}


def _centered_clipping(
    rule: CenteredClipping, sums: MaskedSums, deltas: Deltas, state: Mapping[str, Any]
) -> Stepped | None:
    """Clients clip their own difference from the center."""
    rows, center = rows_of(deltas), np.array(state["center"])
    for _ in range(rule.iterations):
        center = _as_sent(center)
        distances = _distances(rows, center)
        factors = rule.radius / np.maximum(distances, rule.radius)
        total = sums.sum_of_differences(rows, center, factors, rule.radius)
        if total is None:
            return None
        center = center + total / sums.num_reports
    return center, {"center": center}, {"broadcasts": rule.iterations}


def _sign_majority(
    rule: SignMajority, sums: MaskedSums, deltas: Deltas, state: Mapping[str, Any]
) -> Stepped | None:
    votes = sums.votes(rows_of(deltas))
    return None if votes is None else (np.sign(votes), {}, {})


_STEPS: Mapping[type, Callable[..., Stepped | None]] = {
    GeometricMedian: _geometric_median,
    CenteredClipping: _centered_clipping,
    SignMajority: _sign_majority,
}


def _distances(rows: NDArray[np.float32], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance of each row to the center, which each client computes for itself."""
    squares = [float(np.sum(np.square(row - center))) for row in rows]
    return np.sqrt(np.array(squares, np.float64))


def _as_sent(center: NDArray[np.float64]) -> NDArray[np.float64]:
    """The center as clients receive it, in float32."""
    return center.astype(np.float32).astype(np.float64)
