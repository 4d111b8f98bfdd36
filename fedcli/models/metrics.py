"""Computes metrics: the statistics of clients are summed, and the sums are finalised once.

Sums of clients, rounds and splits are merged by addition, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import FedcliError, PartError, shown_repr
from fedcli.lazy import refuse_others
from fedcli.settings.vocabulary import MEASURES

__all__ = [
    "ClientStats",
    "MetricsAggregator",
    "Sums",
    "add",
    "as_stats",
    "finalize",
    "flatten",
    "sum_stats",
    "sum_then_finalize",
]
if not TYPE_CHECKING:  # type checkers must still find wrong names
    __getattr__ = refuse_others(__name__, __all__)


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__


# A table with one row per client, as an engine returns it, or a mapping from names to columns. The
# columns are loss_sum float64; num_correct, num_examples and num_batches int64; and the sums of a
# model's own metrics (`OwnMetrics`).
ClientStats = NDArray[Any] | Mapping[str, NDArray[Any]]
# Sums of these columns over clients, and over rounds if there are several. The sums of a model's
# own metrics are arrays.
Sums = dict[str, Any]
# Computes metrics by name from the unfinalised stats of clients.
MetricsAggregator = Callable[[ClientStats], dict[str, Any]]

ZERO: Mapping[str, int | float] = {
    "loss_sum": 0.0,
    "num_correct": 0,
    "num_examples": 0,
    "num_batches": 0,
}
_COUNTS = ("num_correct", "num_examples", "num_batches")

_CONTRACT = (
    "give a function of one argument, the ClientStats (columns loss_sum, num_correct, num_examples "
    "and num_batches, one row per client), that returns a dict of metrics by name"
)
_SUM_TOLERANCE = 1e-3  # largest distance from 1 of a sum of float32 (or narrower) probabilities
_OWN = "own/"  # prefix of the columns of a model's own metrics
# Names of the built-in metrics.
BUILT_IN = (
    *("sparse_categorical_accuracy", "loss", "num_examples", "num_batches"),
    "num_non_finite_clients",
)
# Names that a user's metrics cannot have: `BUILT_IN`, and the tables' names of such metrics.
RESERVED = (*BUILT_IN, *MEASURES)


@dataclass(frozen=True)
class OwnMetric:
    """A metric that a model defines.

    Attributes:
        name: Its name in output and logs.
        column: Name of the column with its unfinalised values in stats and sums, float64 [num_sums]
            per client.
        num_sums: Number of these values.
        finalizer: Computes a number from these values, summed over clients.
    """

    name: str
    column: str
    num_sums: int
    finalizer: Callable[[list[Any]], Any]


@dataclass(frozen=True)
class OwnMetrics:
    """The metrics that a model defines, in its order."""

    rows: tuple[OwnMetric, ...] = ()

    @staticmethod
    def of(
        num_sums: Mapping[str, int], finalizers: Mapping[str, Callable[[list[Any]], Any]]
    ) -> OwnMetrics:
        """Returns the metrics.

        A metric with a name of a built-in metric (`RESERVED`) is shown as model_NAME.
        """
        shown = {name: f"model_{name}" if name in RESERVED else name for name in num_sums}
        return OwnMetrics(
            tuple(
                OwnMetric(shown[name], _OWN + name, num_sums[name], finalizers[name])
                for name in num_sums
            )
        )

    @property
    def names(self) -> list[str]:
        """The names under which they are shown."""
        return [row.name for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """The names of their columns in stats."""
        return [row.column for row in self.rows]

    def zero(self) -> Sums:
        """Returns zero sums, for the model's own metrics and for the built-in ones."""
        return {**ZERO, **{row.column: np.zeros(row.num_sums) for row in self.rows}}

    def finalize(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the value of each metric.

        It is NaN if the finalizer fails because there are no examples.

        Raises:
            FedcliError: A finalizer fails.
        """
        return {row.name: _finalized(row, sums) for row in self.rows}


def sum_stats(stats: ClientStats) -> Sums:
    """Returns each column of `stats` summed over its clients, in their order."""
    names = stats.keys() if isinstance(stats, Mapping) else stats.dtype.names or ()
    sums: Sums = {"loss_sum": np.add.reduce(stats["loss_sum"]).item()}
    # Python adds the counts of a usual cohort in less time than a call of NumPy takes to start.
    sums.update((name, sum(stats[name].tolist())) for name in _COUNTS)
    sums.update((name, np.add.reduce(stats[name])) for name in names if name.startswith(_OWN))
    return sums


def add(left: Mapping[str, Any], right: Mapping[str, Any]) -> Sums:
    """Returns the sum of two sums."""
    return {name: left[name] + right[name] for name in left}


def as_stats(sums: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Returns sums as the stats of one client, for a `MetricsAggregator`."""
    return {name: np.asarray(value)[np.newaxis] for name, value in sums.items()}


def finalize(sums: Mapping[str, int | float]) -> dict[str, Any]:
    """Returns the four built-in metrics, in TFF's order and with its names.

    A mean over no example is NaN.
    """
    num_examples = sums["num_examples"]
    return {
        "sparse_categorical_accuracy": _mean(sums["num_correct"], num_examples),
        "loss": _mean(sums["loss_sum"], num_examples),
        "num_examples": num_examples,
        "num_batches": sums["num_batches"],
    }


def sum_then_finalize(stats: ClientStats) -> dict[str, Any]:
    """Returns the metrics of all examples of all clients: clients are weighted by their examples.

    Args:
        stats: One row per client; see `ClientStats`.
    """
    return finalize(sum_stats(stats))


def check_aggregator(aggregator: MetricsAggregator) -> None:
    """Checks that a metrics aggregator can be called with the clients' statistics alone.

    Raises:
        PartError: It cannot.
    """
    if aggregator is sum_then_finalize:
        return
    from inspect import signature  # lazy: few processes have another aggregator

    try:
        signature(aggregator).bind(())
    except (TypeError, ValueError) as err:
        raise PartError(f"metrics_aggregator {shown_repr(aggregator)}: {err}; {_CONTRACT}") from err


def aggregated(aggregator: MetricsAggregator, stats: ClientStats) -> Mapping[str, Any]:
    """Returns what a metrics aggregator computes from the statistics.

    Raises:
        PartError: It does not return a dict.
    """
    values: object = aggregator(stats)
    if not isinstance(values, Mapping):
        raise PartError(f"metrics_aggregator returned {shown_repr(values)}; {_CONTRACT}")
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested metrics under names joined by slashes, as in TFF's CSV."""
    values: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            values.update(flatten(value, f"{prefix}{name}/"))
        else:
            values[prefix + name] = value
    return values


def _finalized(row: OwnMetric, sums: Mapping[str, Any]) -> Any:
    try:
        return row.finalizer([np.float64(each) for each in sums[row.column]])
    except FedcliError:
        if sums.get("num_examples", 1):
            raise
        return float("nan")


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")


def are_probabilities(scores: NDArray[np.floating]) -> bool:
    """Returns whether each finite row could be the result of a softmax.

    Args:
        scores: Floats [n, K].
    """
    finite = scores[np.isfinite(scores).all(axis=1)]
    sums = finite.sum(axis=1, dtype=np.float64)
    return bool((finite >= 0).all() and (np.abs(sums - 1) < _SUM_TOLERANCE).all())


def predicted_classes(scores: NDArray[Any]) -> NDArray[np.int32]:
    """Returns the class of the greatest score in each row; of equal scores, the first.

    Args:
        scores: Floats [n, K], logits or probabilities.

    Returns:
        int32 [n]; -1, which is no label, where a score is NaN or the greatest score is infinite.
    """
    classes = scores.argmax(axis=1).astype(np.int32)
    greatest = scores.max(axis=1)  # NaN in a row with a NaN
    return np.where(np.isfinite(greatest), classes, np.int32(-1))
