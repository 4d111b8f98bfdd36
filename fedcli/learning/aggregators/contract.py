"""Aggregators: from the deltas of a cohort to one mean delta.

An aggregator says beforehand what it needs of the deltas: their sum, a sum of deltas within bounds,
or all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.lazy import load
from fedcli.learning.engines.deltas import DeltaRequest, Deltas
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value


class Aggregator(Protocol):
    """Holds settings only; what it remembers between rounds is part of the server state."""

    def init(self) -> dict[str, Any]:
        """Returns the aggregator's part of the server state before the first round."""
        ...

    def request(self, state: Mapping[str, Any]) -> DeltaRequest:
        """Returns what it needs of the deltas of the coming round."""
        ...

    def aggregate(
        self, state: Mapping[str, Any], deltas: Deltas
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state, and metrics in TFF's names."""
        ...


def build(name: str, options: Mapping[str, Value] | None = None) -> Aggregator:
    """Returns the aggregator of the table called `name`.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(tables.AGGREGATORS, name, "aggregator")
    aggregator: Aggregator = load(entry.code)(**opt.resolve(entry, options or {}))
    return aggregator
