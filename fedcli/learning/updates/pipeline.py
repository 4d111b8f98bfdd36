"""Runs the stages on the updates of one round, before the aggregator combines them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.learning.engines.contract import occurrences_of
from fedcli.learning.engines.deltas import (
    IN_MEMORY_BYTES,
    DeltaBounds,
    DeltaRequest,
    Deltas,
    RoundContext,
)
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models.layout import ParamLayout


class UpdatePipeline:
    """Runs the stages on the updates of one round.

    Attributes:
        state: The state of the stages; `run` replaces it by the state after the round.
        metrics: The metrics of the stages by their names; empty before `run`.
        payloads: The bytes of each client's encoded update, int64 [num_clients], 0 if it was not
            sent; None if no stage encodes updates.
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
        self.payloads: NDArray[np.int64] | None = None
        self._stages = stages
        self._layout = layout
        self._seed = seed
        self._round_num = round_num
        self._num_absent = num_absent
        self._client_ids: list[str] = []

    def request(self, aggregator_request: DeltaRequest) -> DeltaRequest:
        """Returns the request to the engine: the aggregator's, or all rows if there are stages."""
        if not self._stages:
            return aggregator_request
        return DeltaRequest(all_rows=True, are_writable=True, needs_sum=False)

    def recording_ids(self, clients: Iterable[BatchedDataset]) -> Iterable[BatchedDataset]:
        """Returns the same clients, and records their ids, now or while they are read."""
        if isinstance(clients, ClientBatches):
            self._client_ids = list(clients.client_ids)
            return clients
        if isinstance(clients, tuple):
            self._client_ids = [each.client.client_id for each in clients]
            return clients
        return _Recorded(clients, self._client_ids)

    def run(self, deltas: Deltas, aggregator_request: DeltaRequest) -> Deltas:
        """Returns the deltas for the aggregator, after all stages.

        Args:
            deltas: The deltas that the engine returned for `request(aggregator_request)`.
            aggregator_request: The aggregator's request.
        """
        round_ = RoundContext(
            *(
                self._seed,
                self._round_num,
                tuple(self._client_ids),
                occurrences_of(self._client_ids),
            ),
            num_absent=self._num_absent,
        )
        if not self._stages or deltas.rows is None:
            return replace(deltas, round=round_, bounds=aggregator_request.bounds)
        helpers = deltas.helpers or native.Helpers()
        updates = RoundUpdates(round_, self._layout, deltas.stats.copy(), deltas.rows, helpers)

        def change_and_sum() -> NDArray[np.float64]:
            for stage in self._stages:
                self._run_stage(stage, updates)
            bounds = aggregator_request.bounds
            return helpers.run(lambda: _bounded_sum(updates, bounds, deltas.num_threads))

        # If the updates are small, one call runs all stages, because each call of `helpers.run`
        # waits for two threads to wake up. An interrupt takes effect only after the call.
        is_small = updates.rows.nbytes <= IN_MEMORY_BYTES
        delta_sum = helpers.run(change_and_sum) if is_small else change_and_sum()
        if "compress" in self.metrics:
            sent = [updates.sent_bytes.get(index, 0) for index in range(len(updates.rows))]
            self.payloads = np.array(sent, np.int64)
        updates.rows.flags.writeable = False
        return replace(
            deltas,
            delta_sum=delta_sum,
            weight_sum=float(np.sum(updates.stats["weight"])),
            stats=updates.stats,
            rows=updates.rows if aggregator_request.all_rows else None,
            round=round_,
            bounds=aggregator_request.bounds,
        )

    def _run_stage(self, stage: UpdateStage, updates: RoundUpdates) -> None:
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


class _Recorded:
    """Clients whose ids are recorded in each pass over them."""

    def __init__(self, clients: Iterable[BatchedDataset], client_ids: list[str]) -> None:
        self._clients = clients
        self._client_ids = client_ids

    def __iter__(self) -> Iterator[BatchedDataset]:
        self._client_ids.clear()
        for each in self._clients:
            self._client_ids.append(each.client.client_id)
            yield each


def _bounded_sum(
    updates: RoundUpdates, bounds: DeltaBounds | None, num_threads: int
) -> NDArray[np.float64]:
    """Drops the updates that a stage has made non-finite, and measures and bounds the others.

    Returns:
        The weighted sum of the updates, float64 [num_params], added in the engine's order.
    """
    weights = updates.stats["weight"]
    if bounds is None and (weights > 0.0).all():
        total = native.sum_rows(updates.rows, weights.copy(), num_threads)
        if np.isfinite(total).all():  # all updates are finite, so they need not be read again
            return total
    sizes = native.bound_rows(updates.rows, bounds, num_threads)
    for index in np.flatnonzero(sizes["is_finite"] == 0).tolist():
        updates.reject(index)
        sizes[index] = 0
    if bounds is not None:
        for name in ("max_abs", "norm"):
            updates.stats[name] = sizes[name]
    return native.sum_rows(updates.rows, weights.copy(), num_threads)
