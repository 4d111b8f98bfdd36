"""Passes the updates of one round through the stages to the aggregator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.learning.engines.contract import occurrences_of
from fedcli.learning.engines.deltas import DeltaBounds, DeltaRequest, Deltas, RoundContext
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models.layout import ParamLayout

_ROWS_AT_A_TIME = 64  # rows that one call sums; a multiple of the engine's block of clients


class Passage:
    """Takes the updates of one round through the stages.

    Attributes:
        state: The state of the stages: before the round, and after it once updates have passed.
        metrics: The metrics of the stages by their names; empty until updates have passed.
    """

    def __init__(
        self,
        stages: Sequence[UpdateStage],
        state: Mapping[str, Any],
        layout: ParamLayout,
        *,
        seed: int,
        round_num: int,
        num_absent: int = 0,
    ) -> None:
        """Starts a round; `state` is the part of the server state that belongs to the stages."""
        self.state = dict(state)
        self.metrics: dict[str, Any] = {}
        self._stages = stages
        self._layout = layout
        self._seed = seed
        self._round_num = round_num
        self._num_absent = num_absent
        self._seen: list[str] = []

    def request(self, wanted: DeltaRequest) -> DeltaRequest:
        """Returns what to request from the engine, given the aggregator's request."""
        if not self._stages:
            return wanted
        return DeltaRequest(all_rows=True, are_writable=True)

    def noting(self, clients: Iterable[BatchedDataset]) -> Iterable[BatchedDataset]:
        """Returns the same clients, and records their ids, at once or while they are read."""
        if isinstance(clients, ClientBatches):
            self._seen = list(clients.client_ids)
            return clients
        if isinstance(clients, tuple):
            self._seen = [each.client.client_id for each in clients]
            return clients
        return _Noted(clients, self._seen)

    def take(self, deltas: Deltas, wanted: DeltaRequest) -> Deltas:
        """Returns the deltas for the aggregator, after all stages.

        Args:
            deltas: The engine's answer to `request(wanted)`.
            wanted: The aggregator's request.
        """
        round_ = RoundContext(
            *(self._seed, self._round_num, tuple(self._seen), occurrences_of(self._seen)),
            num_absent=self._num_absent,
        )
        if not self._stages or deltas.rows is None:
            return replace(deltas, round=round_, bounds=wanted.bounds)
        updates = RoundUpdates(round_, self._layout, deltas.stats.copy(), deltas.rows)
        for stage in self._stages:
            self._run(stage, updates)
        _reject_non_finite(updates)
        if wanted.bounds is not None:
            _bound(updates, wanted.bounds)
        delta_sum = ordered_sum(updates.rows, updates.stats["weight"])
        updates.rows.flags.writeable = False
        return replace(
            deltas,
            delta_sum=delta_sum,
            weight_sum=float(np.sum(updates.stats["weight"])),
            stats=updates.stats,
            rows=updates.rows if wanted.all_rows else None,
            round=round_,
            bounds=wanted.bounds,
        )

    def _run(self, stage: UpdateStage, updates: RoundUpdates) -> None:
        """Runs a stage with its part of the state."""
        prefix = f"{stage.name}."
        before = {
            name.removeprefix(prefix): part
            for name, part in self.state.items()
            if name.startswith(prefix)
        }
        after, self.metrics[stage.name] = stage.run(before, updates)
        self.state.update({f"{prefix}{name}": part for name, part in after.items()})


def initial_state(stages: Iterable[UpdateStage], num_params: int) -> dict[str, Any]:
    """Returns the state of some stages before the first round."""
    return {
        f"{stage.name}.{name}": part
        for stage in stages
        for name, part in stage.init(num_params).items()
    }


class _Noted:
    """Clients whose ids are recorded in each pass over them."""

    def __init__(self, clients: Iterable[BatchedDataset], seen: list[str]) -> None:
        self._clients = clients
        self._seen = seen

    def __iter__(self) -> Iterator[BatchedDataset]:
        self._seen.clear()
        for each in self._clients:
            self._seen.append(each.client.client_id)
            yield each


def _reject_non_finite(updates: RoundUpdates) -> None:
    """Drops the updates that a stage has made non-finite."""
    for index, row in enumerate(updates.rows):
        if not np.isfinite(row).all():
            updates.reject(index)


def _bound(updates: RoundUpdates, bounds: DeltaBounds) -> None:
    """Measures the updates and clips the rows to the bounds, as an engine does."""
    for row, stat in zip(updates.rows, updates.stats, strict=True):
        size = float(np.max(np.abs(row), initial=0.0))
        is_zeroed = size > bounds.max_abs
        norm = 0.0 if is_zeroed else math.sqrt(float(np.sum(np.square(row, dtype=np.float64))))
        stat["max_abs"], stat["norm"] = size, norm
        if is_zeroed:
            row[:] = 0.0
        elif norm > bounds.norm:  # multiplied in float64, rounded once
            np.multiply(row, bounds.norm / norm, out=row, casting="same_kind", dtype=np.float64)


def ordered_sum(rows: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the weighted sum of the rows, in float64 and in the engine's order."""
    total = native.WeightedSum(rows.shape[1])
    for first in range(0, len(rows), _ROWS_AT_A_TIME):
        chosen = slice(first, first + _ROWS_AT_A_TIME)
        total.add(list(rows[chosen]), weights[chosen].tolist())
    return total.total()[0]
