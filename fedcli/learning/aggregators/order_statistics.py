"""Rules that treat each coordinate of the deltas separately.

The median and the trimmed mean: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed
Learning: Towards Optimal Statistical Rates", ICML 2018, https://arxiv.org/abs/1803.01498. If fewer
than half of the clients of a round send wrong deltas, each coordinate of the median lies within the
range of the correct ones. The mean around the median: Xie, Koyejo and Gupta, "Generalized
Byzantine-tolerant SGD", 2018, https://arxiv.org/abs/1802.10116. The majority of signs: Bernstein,
Zhao, Azizzadenesheli and Anandkumar, "signSGD with Majority Vote is Communication Efficient and
Fault Tolerant", ICLR 2019, https://arxiv.org/abs/1810.05291.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.robust import RobustRule
from fedcli.learning.engines.deltas import ALL_ROWS, DeltaRequest, Deltas

Combined = tuple[NDArray[np.floating] | None, dict[str, Any], dict[str, Any]]


class _ByCoordinate:
    """An aggregator without a state that takes any number of deltas."""

    def init(self) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Requests the individual deltas."""
        return ALL_ROWS

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the combined delta [num_params], the state, and no metrics."""
        counted = CountedDeltas.of(deltas)
        if counted is None:
            return np.full(len(deltas.delta_sum), np.nan, np.float32), dict(state), {}
        with np.errstate(over="ignore"):
            return self.combine(counted).astype(np.float32, copy=False), dict(state), {}

    def combine(self, counted: CountedDeltas) -> NDArray[np.floating]:
        """Returns the combined delta [num_params], in float64 or rounded to float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class Median(_ByCoordinate):
    """The median of each coordinate; of an even number of values, the mean of the middle two."""

    averages_coordinates: ClassVar[bool] = True

    def combine(self, counted: CountedDeltas) -> NDArray[np.floating]:
        """See the class."""
        return _trimmed_mean(counted, (counted.num - 1) // 2)


@dataclass(frozen=True)
class SignMajority(_ByCoordinate):
    """The sign of most deltas in each coordinate, 0 on a tie.

    The server learning rate is therefore the size of the step in each coordinate.
    """

    def combine(self, counted: CountedDeltas) -> NDArray[np.floating]:
        """See the class."""
        return np.sign(counted.rows.sign_votes(counted.origin)).astype(np.float64)


@dataclass(frozen=True)
class TrimmedMean(RobustRule):
    """The mean of each coordinate without its f smallest and f largest values."""

    averages_coordinates: ClassVar[bool] = True

    OPTION: ClassVar[str] = "trim"

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        return _trimmed_mean(counted, num_byzantine), {}, {}


def _trimmed_mean(counted: CountedDeltas, trim: int) -> NDArray[np.floating]:
    if counted.are_rows:
        return counted.rows.rounded_trimmed_mean(trim)
    return counted.from_rows(counted.rows.trimmed_mean(trim))


def trimmed_mean(trim: float) -> TrimmedMean:
    """Returns the trimmed mean that drops a number or share of the values at each end."""
    return TrimmedMean(trim)


@dataclass(frozen=True)
class MeanAroundMedian(RobustRule):
    """The mean of the n - f values of each coordinate that are nearest to its median."""

    averages_coordinates: ClassVar[bool] = True

    def combine(
        self, counted: CountedDeltas, num_byzantine: int, state: Mapping[str, Any]
    ) -> Combined:
        """See the class."""
        num_nearest = counted.num - num_byzantine
        if counted.are_rows:
            return counted.rows.rounded_mean_near_median(num_nearest), {}, {}
        return counted.from_rows(counted.rows.mean_near_median(num_nearest)), {}, {}
