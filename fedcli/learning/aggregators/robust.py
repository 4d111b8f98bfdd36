"""The base class of robust rules: the number of wrong deltas, and skipped rounds.

An option says how many deltas of a round may be wrong, as a number or as a share of the deltas that
count. To tolerate them, a rule needs a minimum number of deltas. If the configured cohort is too
small, a run does not begin. If too few deltas of a round count, the round is skipped: the
aggregator returns NaN, so weights and optimizer stay as they are, and the state counts the skipped
round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import plural
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.engines.deltas import ALL_ROWS, DeltaRequest, Deltas
from fedcli.settings.shares import rounded_down

SomeRule = TypeVar("SomeRule", bound="RobustRule")


def count_of(number_or_share: float, num_clients: int) -> int:
    """Returns a whole number of clients; a value below 0.5 is a share, rounded down."""
    if number_or_share < 0.5:
        return rounded_down(number_or_share, num_clients)
    return int(number_or_share)


@dataclass(frozen=True)
class RobustRule:
    """An `Aggregator` that tolerates some wrong deltas.

    Attributes:
        num_byzantine: The number of deltas that may be wrong (f in papers); below 0.5 a share of
            the deltas that count.
    """

    OPTION: ClassVar[str] = "num_byzantine"  # the name of the option

    num_byzantine: float = 0.0

    def least_clients(self, num_byzantine: int) -> int:
        """Returns the smallest number of deltas among which `num_byzantine` may be wrong."""
        return 2 * num_byzantine + 1

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> tuple[NDArray[np.floating] | None, dict[str, Any], dict[str, Any]]:
        """Returns the combined delta or None, the changes of the state, and the metrics.

        If the delta is None, the round is skipped.
        """
        raise NotImplementedError

    def problem(self, num_clients: int) -> str | None:
        """Returns why the deltas of `num_clients` clients cannot be combined, or None."""
        num_bad = count_of(self.num_byzantine, num_clients)
        needed = self.least_clients(num_bad)
        if num_clients >= needed:
            return None
        return (
            f"with {plural(num_bad, 'wrong delta')} it needs at least {needed:,} deltas in a "
            f"round, not {num_clients:,}; choose more clients or a smaller {self.OPTION}"
        )

    def for_cohort(self: SomeRule, num_clients: int) -> SomeRule:
        """Returns the rule with the number of wrong deltas among `num_clients`, not a share."""
        return replace(self, num_byzantine=float(count_of(self.num_byzantine, num_clients)))

    def init(self) -> dict[str, Any]:
        """Returns the state before the first round: no round is skipped."""
        return {"num_skipped": 0}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas."""
        return ALL_ROWS

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the combined delta [num_params], the next state, and the metrics."""
        counted = CountedDeltas.of(deltas)
        if counted is None or self.problem(counted.num) is not None:
            return skipped(state, deltas)
        num_bad = count_of(self.num_byzantine, counted.num)
        combined, changes, metrics = self.combine(counted, num_bad, state)
        if combined is None:
            return skipped(state, deltas)
        with np.errstate(over="ignore"):
            mean_delta = combined.astype(np.float32, copy=False)
        return mean_delta, {**state, **changes}, {"skipped": 0, **metrics}


def skipped(
    state: Mapping[str, Any], deltas: Deltas
) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
    """Returns the result of `aggregate` for a skipped round."""
    num_skipped = state["num_skipped"] + 1
    num_counted = int(np.count_nonzero(deltas.stats["weight"] > 0.0))
    metrics = {"skipped": 1, "num_skipped": num_skipped, "num_counted": num_counted}
    nothing = np.full(len(deltas.delta_sum), np.nan, np.float32)
    return nothing, {**state, "num_skipped": num_skipped}, metrics
