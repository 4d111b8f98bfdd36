"""A minimal engine that uses only the contract of engines.

It computes one client after another, as if each were in another process: the task is pickled, and
the client's delta and stats are sent back.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import STATS, CancelFlag, WeightedSum
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.engines.contract import Scores, Starts, numbered
from fedcli.learning.engines.deltas import DeltaFile, Deltas
from fedcli.learning.engines.task import ClientExchange, ClientInputs, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layout import ParamLayout


class ToyEngine:
    """Computes one client after another; each task passes through pickle."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or 1  # only recorded; it computes on one thread
        self._core = ThreadEngine(1)
        self.num_tasks = 0

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        total, records = WeightedSum(layout.num_params), [np.empty(0, STATS)]
        with DeltaFile(layout.num_params) as file:
            for index, (client, copy) in enumerate(numbered(clients, task.occurrences)):
                alone = replace(task.piece([client], index, exchange), occurrences=(copy,))
                delta, found = self._train_elsewhere(layout, pickle.dumps(alone), client, cancel)
                stats, factors = found.stats, alone.sum_factors(found.stats)
                weight = float(stats["weight"][0] * factors[0])
                # A client with a start of its own adds its difference from the server's parameters.
                own_start = alone.inputs.starts is not None and weight > 0
                added = (found.delta_sum / weight).astype(np.float32) if own_start else delta
                total.add([added], [weight])
                file.append(delta[np.newaxis], factors, stats)
                if exchange is not None and exchange.receives:
                    exchange.receive([client], delta[np.newaxis], stats)
                records.append(stats)
            rows = (
                file.mapped(are_writable=task.request.are_writable)
                if task.request.all_rows
                else None
            )
        joined = np.concatenate(records)
        return Deltas(total.total()[0], float(joined["weight"].sum()), joined, rows)

    def _train_elsewhere(
        self, layout: ParamLayout, sent: bytes, client: BatchedDataset, cancel: CancelFlag | None
    ) -> tuple[NDArray[np.float32], Deltas]:
        self.num_tasks += 1
        task: ClientTask = pickle.loads(sent)
        returned = _Returned(task.inputs)
        found = self._core.train(layout, task, [client], exchange=returned, cancel=cancel)
        return returned.delta, found

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        records = [np.empty(0, STATS)]
        for client in clients:
            own = params if starts is None else starts([client])[0]
            records.append(self._core.evaluate(layout, own, [client], cancel=cancel))
        return np.concatenate(records)

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        parts = []
        for client in clients:
            own = params if starts is None else starts([client])[0]
            parts.append(self._core.predict(layout, own, [client], cancel=cancel))
        none = np.empty((0, layout.num_classes), np.float32)
        return Scores(np.concatenate([none, *(each.values for each in parts)]), are_logits=True)


class _Returned:
    """Gives the only client of a task its inputs, and keeps its delta."""

    num_vectors = 0
    receives = True

    def __init__(self, inputs: ClientInputs) -> None:
        self._inputs = inputs
        self.delta = np.empty(0, np.float32)

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        return self._inputs

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        self.delta = deltas[0].copy()
