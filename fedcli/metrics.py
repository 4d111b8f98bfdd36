"""From the stats of clients to metric values: sums are merged, then finalised once.

Sums form a commutative monoid (zero is the identity), so clients, rounds and splits merge alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One row a client: loss_sum float64, num_correct, num_examples, num_batches int64; what the
# engine returns, or a mapping of such columns.
ClientStats = NDArray[Any] | Mapping[str, NDArray[Any]]
# Sums of those columns over clients, and perhaps rounds.
Sums = dict[str, int | float]
# Turns the unfinalised stats of clients into metrics by name.
MetricsAggregator = Callable[[ClientStats], dict[str, Any]]

ZERO: Mapping[str, int | float] = {
    "loss_sum": 0.0,
    "num_correct": 0,
    "num_examples": 0,
    "num_batches": 0,
}


def sum_stats(stats: ClientStats) -> Sums:
    """Returns each column of `stats` summed over its clients, in their order."""
    return {name: stats[name].sum().item() for name in ZERO}


def add(left: Mapping[str, int | float], right: Mapping[str, int | float]) -> Sums:
    """Returns the two sums merged."""
    return {name: left[name] + right[name] for name in ZERO}


def as_stats(sums: Mapping[str, int | float]) -> dict[str, NDArray[Any]]:
    """Returns sums as the stats of one client, for a `MetricsAggregator`."""
    return {name: np.array([sums[name]], dtype=type(zero)) for name, zero in ZERO.items()}


def finalize(sums: Mapping[str, int | float]) -> dict[str, Any]:
    """Returns the four metrics, in TFF's names and order; a mean over no example is NaN."""
    num_examples = sums["num_examples"]
    return {
        "sparse_categorical_accuracy": _mean(sums["num_correct"], num_examples),
        "loss": _mean(sums["loss_sum"], num_examples),
        "num_examples": num_examples,
        "num_batches": sums["num_batches"],
    }


def sum_then_finalize(stats: ClientStats) -> dict[str, Any]:
    """Returns the metrics of all examples of all clients: a client counts by its examples.

    Args:
        stats: One row a client.
    """
    return finalize(sum_stats(stats))


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested metrics under names joined by slashes, as TFF's CSV has them."""
    values: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{name}/"))
        else:
            values[prefix + name] = value
    return values


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")
