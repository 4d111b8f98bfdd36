"""One secure sum for an aggregator that needs only the weighted sum of the deltas.

A client with weight p and update x sends (p / W) x and p, where W is the smallest power of two that
no weight exceeds, so p / W is exact. If the sum fails because too few clients report, the
round is skipped: the mean is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.bounded import AdaptiveRobust
from fedcli.learning.aggregators.contract import Aggregator, first_state, problem_of
from fedcli.learning.aggregators.private import PrivateMean
from fedcli.learning.engines.deltas import DeltaRequest, Deltas, mapped_rows
from fedcli.learning.masked_sums import MaskedSums, SumOptions
from fedcli.learning.secure_sums.common import (
    Result,
    largest_power,
    rows_of,
    sums_among,
)
from fedcli.learning.updates.compression import RandomCoordinates, SharedSteps, num_chosen

WeightedSum = tuple[NDArray[np.float64], int]


class SumCode(Protocol):
    """How clients encode their updates, compressed or not, so that a secure sum can add them."""

    def weighted(
        self, sums: MaskedSums, deltas: Deltas, bound: float, weights: list[float]
    ) -> WeightedSum | None:
        """Returns the sums of weight * update and of weight; None if too few clients report."""
        ...

    def num_values(self, num_params: int) -> int:
        """Returns the number of coordinates that a client sends."""
        ...


@dataclass(frozen=True)
class AllCoordinates:
    """Updates that are not compressed."""

    def weighted(
        self, sums: MaskedSums, deltas: Deltas, bound: float, weights: list[float]
    ) -> WeightedSum | None:
        """See `SumCode`."""
        return sums.weighted(rows_of(deltas), weights, bound)

    def num_values(self, num_params: int) -> int:
        """See `SumCode`."""
        return num_params


@dataclass(frozen=True)
class SomeCoordinates:
    """Updates that are zero except at certain coordinates, the same for all clients of a round."""

    coordinates: RandomCoordinates

    def weighted(
        self, sums: MaskedSums, deltas: Deltas, bound: float, weights: list[float]
    ) -> WeightedSum | None:
        """See `SumCode`."""
        assert deltas.round is not None
        chosen = self.coordinates.of(deltas.round, len(deltas.delta_sum))
        partial = sums.weighted(np.ascontiguousarray(rows_of(deltas)[:, chosen]), weights, bound)
        if partial is None:
            return None
        total = np.zeros(len(deltas.delta_sum))
        total[chosen] = partial[0]
        return total, partial[1]

    def num_values(self, num_params: int) -> int:
        """See `SumCode`."""
        return num_chosen(self.coordinates.fraction, num_params)


@dataclass(frozen=True)
class Multiples:
    """Updates whose coordinates are multiples of one step."""

    steps: SharedSteps

    def weighted(
        self, sums: MaskedSums, deltas: Deltas, bound: float, weights: list[float]
    ) -> WeightedSum | None:
        """See `SumCode`."""
        rows = rows_of(deltas)
        codes = mapped_rows(*rows.shape)
        for code, row in zip(codes, rows, strict=True):
            self.steps.code(row, code)
        partial = sums.coded(codes, weights, self.steps.low, self.steps.high)
        return None if partial is None else (partial[0] * self.steps.step, partial[1])

    def num_values(self, num_params: int) -> int:
        """See `SumCode`."""
        return num_params


@dataclass(frozen=True)
class SecureSum:
    """Gives another aggregator the secure sum of the updates in place of the plain sum.

    Attributes:
        inner: The other aggregator, which needs only the sum.
        options: The options of the sum. If they have no bound, the inner aggregator's bounds are
            used; if it has none, a bound that clips nothing.
        code: Which numbers clients send for their updates.
    """

    selected_by: ClassVar[str] = "--secure-sum"

    inner: Aggregator
    options: SumOptions = SumOptions()
    code: SumCode = AllCoordinates()

    def init_for(self, num_params: int) -> dict[str, Any]:
        """Returns the inner aggregator's state."""
        return first_state(self.inner, num_params)

    def init(self) -> dict[str, Any]:
        """Returns the inner aggregator's state for a model without parameters."""
        return self.init_for(0)

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Returns the inner aggregator's request, and requests the individual deltas as well."""
        return self.inner.request(state)._replace(all_rows=True)

    def problem(self, num_clients: int) -> str | None:
        """Returns the inner aggregator's problem with `num_clients` deltas, or None."""
        return problem_of(self.inner, num_clients)

    def aggregate(self, state: Mapping[str, Any], deltas: Deltas) -> Result:
        """Returns the inner aggregator's result for the secure sum; NaN if the sum fails.

        Raises:
            ConfigError: A weight does not fit in the bits, or is not whole.
        """
        sums = sums_among(self.options, deltas)
        weights = deltas.stats["weight"].tolist()
        bound = self._bound(deltas)
        total = self.code.weighted(sums, deltas, bound, weights)
        sums.add_counts(_num_counts(self.inner))
        if total is None:
            nothing = np.full(len(deltas.delta_sum), np.nan, np.float32)
            return nothing, dict(state), {"secure_sum": sums.metrics}
        secure = replace(
            deltas,
            delta_sum=total[0],
            weight_sum=float(total[1]),
            rows=None,
            rounding_norm=sums.rounding * math.sqrt(self.code.num_values(len(total[0]))),
        )
        mean, next_state, of_inner = self.inner.aggregate(state, secure)
        metrics = {
            **sums.metrics,
            "bound": bound,
            "largest_error": sums.num_reports * sums.rounding / max(total[1], 1),
        }
        return mean, next_state, {**of_inner, "secure_sum": metrics}

    def _bound(self, deltas: Deltas) -> float:
        """The bound on coordinates in this round."""
        if self.options.bound is not None:
            return self.options.bound
        bounds = deltas.bounds
        known = np.inf if bounds is None else min(bounds.norm, bounds.max_abs)
        return float(known) if np.isfinite(known) else largest_power(rows_of(deltas))


def _num_counts(inner: Aggregator) -> int:
    """The number of counts of clients that an aggregator's adaptive bounds need."""
    if isinstance(inner, AdaptiveRobust):
        return 2
    return int(isinstance(inner, PrivateMean) and inner.adaptive is not None)
