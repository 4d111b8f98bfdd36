"""Aggregators: from what a cohort sent back to one mean delta.

All of them stream. One that asks for all deltas, such as a median, would be a second protocol: the
engine would spill each delta to its row of a mapped [m, P] file, and the rule read slices of its
coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.lazy import load
from fedcli.learning.engines.contract import CohortResult
from fedcli.learning.engines.task import DeltaBounds
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value


class StreamingAggregator(Protocol):
    """Holds settings only; what it remembers between rounds is part of the server state.

    It sees the `CohortResult` alone, running sums and a record a client, so the engine forgets a
    delta once it is added.
    """

    def init(self) -> dict[str, Any]:
        """Returns the aggregator's part of the server state before the first round."""
        ...

    def bounds(self, state: Mapping[str, Any]) -> DeltaBounds | None:
        """Returns what the engine keeps the deltas of the coming round within; None: nothing."""
        ...

    def aggregate(
        self, state: Mapping[str, Any], cohort: CohortResult
    ) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
        """Returns the mean delta [num_params], the next state, and metrics in TFF's names."""
        ...


def build(name: str, options: Mapping[str, Value] | None = None) -> StreamingAggregator:
    """Returns the aggregator of the table called `name`.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(tables.AGGREGATORS, name, "aggregator")
    aggregator: StreamingAggregator = load(entry.code)(**opt.resolve(entry, options or {}))
    return aggregator
