"""The interface of stages, which change the individual updates of a cohort before aggregation.

The updates of a round pass two stages: an attack replaces the updates of the attackers, then
compression encodes and decodes each update. After the stages, updates that are not finite are
dropped, the others are clipped as the aggregator requests, and the aggregator combines them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import Helpers
from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import RoundContext
from fedcli.models.layout import ParamLayout


@dataclass(frozen=True, eq=False)
class RoundUpdates:
    """The individual updates of a cohort, which a stage changes in place.

    Attributes:
        round: The round and its clients.
        layout: The model's tensors.
        stats: One record per client, in cohort order, with the fields of `Deltas.stats`. An update
            counts if its `weight` is above 0: it is finite and comes from at least one example.
        rows: The updates (final minus initial parameters, unbounded and unweighted), float32
            [num_clients, num_params], in memory or in a mapped temporary file. Updates that do not
            count are zeros. A stage that reads all updates does so in slices, because the file may
            be larger than memory.
        helpers: Runs calls of the core that share their work among threads.
        sent_bytes: The number of bytes that each client sends, by cohort position; a stage that
            encodes updates adds them with `note_sent`.
    """

    round: RoundContext
    layout: ParamLayout
    stats: NDArray[np.void]
    rows: NDArray[np.float32]
    helpers: Helpers = field(default_factory=Helpers)
    sent_bytes: dict[int, int] = field(default_factory=dict)

    def note_sent(self, index: int, num_bytes: int) -> None:
        """Adds the size of a payload of the client at a cohort position."""
        self.sent_bytes[index] = self.sent_bytes.get(index, 0) + num_bytes

    def reject(self, index: int) -> None:
        """Rejects the update of the client at a cohort position: it becomes zeros of weight 0."""
        self.rows[index] = 0.0
        self.stats["is_finite"][index] = 0
        self.stats["weight"][index] = 0.0


class UpdateStage(Protocol):
    """Changes the individual updates of a cohort.

    It holds settings only. Its state between rounds is part of the server state: arrays, ints,
    floats and `ClientStates` by name, which keep their shapes and types from round to round.
    """

    @property
    def name(self) -> str:
        """The name of the stage in the server state and in the metrics, such as `attack`."""
        ...

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns the state before the first round."""
        ...

    def run(
        self, state: Mapping[str, Any], updates: RoundUpdates
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Changes the updates in place; returns the next state, and metrics as JSON values."""
        ...
