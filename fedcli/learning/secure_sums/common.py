"""Functions that all aggregators with secure sums use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.masked_sums import MaskedSums, SumOptions, next_power

Result = tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]  # of Aggregator.aggregate


def sums_among(options: SumOptions, deltas: Deltas, **of_group: Any) -> MaskedSums:
    """Returns the sums of a round; `of_group` has the arguments of `MaskedSums` for a group."""
    assert deltas.round is not None
    weights, threads = deltas.stats["weight"], deltas.num_threads
    return MaskedSums(options, deltas.round, weights, num_threads=threads, **of_group)


def rows_of(deltas: Deltas) -> NDArray[np.float32]:
    """Returns the individual deltas [num_clients, num_params]; zeros if no client trained."""
    if deltas.rows is None:
        return np.zeros((len(deltas.stats), len(deltas.delta_sum)), np.float32)
    return deltas.rows


def largest_power(rows: NDArray[np.float32]) -> float:
    """Returns the smallest power of two that no magnitude in the rows exceeds."""
    return next_power(max((float(np.max(np.abs(row))) for row in rows), default=0.0))
