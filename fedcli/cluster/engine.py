"""The engine that computes clients on the workers of a cluster.

The workers compute the clients that belong to a split of the run's data. They read these clients
or, with `data=ship`, receive them from the driver. Other clients (the pool of centralized
training, the clients of a fine-tuning) are computed here, on the driver's threads. The vectors that
clients keep from round to round stay with the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.cluster.merging import PartSum, part_size
from fedcli.cluster.messages import Clients, NamedClients, Part, PartResult, SharedWork
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.datasets.client_data import ClientData
from fedcli.learning.engines.contract import (
    BLOCK_CLIENTS,
    PIECE_BYTES,
    Engine,
    Scores,
    Starts,
    occurrences_of,
)
from fedcli.learning.engines.deltas import DeltaFile, Deltas
from fedcli.learning.engines.task import NO_INPUTS, ClientExchange, ClientTask
from fedcli.models.layout import ParamLayout

_MAX_PART = 4096  # clients, so that a part takes seconds and not minutes


class Workers(Protocol):
    """The interface of workers for the engine; `ray_workers.RayWorkers` implements it."""

    @property
    def num_threads(self) -> int:
        """The number of threads of all workers."""

    @property
    def num_workers(self) -> int:
        """The number of workers."""

    def run(
        self, shared: SharedWork, parts: Iterable[Part], cancel: CancelFlag | None
    ) -> Iterator[tuple[Part, PartResult]]:
        """Yields the results of parts in their order."""


class ClusterEngine:
    """Computes the clients of a run on workers, and other clients on threads of this process."""

    def __init__(
        self,
        workers: Workers,
        local: Engine,
        splits: Mapping[str, ClientData],
        *,
        ships_data: bool = False,
    ) -> None:
        """Creates the engine of a run.

        Args:
            workers: The workers.
            local: The engine that computes clients that are not sent to workers.
            splits: The run's data. The workers can also read them, unless `ships_data`.
            ships_data: Whether clients are sent to the workers with their examples.
        """
        self._workers = workers
        self._local = local
        self._splits = dict(splits)
        self._ships_data = ships_data

    @property
    def num_threads(self) -> int:
        """The number of threads of all workers."""
        return self._workers.num_threads

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        """See `Engine.train`."""
        cohort = self._cohort(clients)
        if cohort is None:
            return self._local.train(layout, task, clients, exchange=exchange, cancel=cancel)
        request = task.request
        has_deltas = request.all_rows or (exchange is not None and exchange.receives)
        num_vectors = has_deltas + (0 if exchange is None else exchange.num_vectors)
        size = self._part_size(cohort, 4 * num_vectors * layout.num_params)
        common = replace(task, inputs=NO_INPUTS, request=request._replace(all_rows=False))
        shared = SharedWork(layout, common, has_deltas=has_deltas)
        total, weight_sum = PartSum(layout.num_params), 0.0
        stats = [np.empty(0, native.STATS)]
        parts = _training_parts(cohort, task, exchange, size)
        with DeltaFile(layout.num_params) if request.all_rows else nullcontext() as file:
            for number, (part, result) in enumerate(self._workers.run(shared, parts, cancel)):
                assert result.delta_sum is not None
                total.add(_writable(result.delta_sum), is_whole=len(result.stats) == size)
                weight_sum += result.weight_sum
                stats.append(result.stats)
                if result.deltas is None:
                    continue
                if file is not None:
                    factors = replace(task, inputs=part.inputs).sum_factors(result.stats)
                    file.append(result.deltas, factors, result.stats)
                if exchange is not None and exchange.receives:
                    members = cohort.part(number, size).blank_clients()
                    exchange.receive(members, _writable(result.deltas), result.stats)
            rows = None if file is None else file.mapped(are_writable=request.are_writable)
        return Deltas(total.total(), weight_sum, np.concatenate(stats), rows)

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """See `Engine.evaluate`."""
        cohort = self._cohort(clients)
        if cohort is None:
            return self._local.evaluate(layout, params, clients, starts=starts, cancel=cancel)
        shared = SharedWork(layout, params=params)
        results = self._scored(cohort, shared, starts, cancel)
        return np.concatenate([np.empty(0, native.STATS), *(each.stats for each in results)])

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """See `Engine.predict`; the scores are logits."""
        cohort = self._cohort(clients)
        if cohort is None:
            return self._local.predict(layout, params, clients, starts=starts, cancel=cancel)
        shared = SharedWork(layout, params=params, has_scores=True)
        parts = [np.empty((0, layout.num_classes), np.float32)]
        for result in self._scored(cohort, shared, starts, cancel):
            assert result.scores is not None
            parts.append(result.scores)
        return Scores(np.concatenate(parts), are_logits=True)

    def _scored(
        self,
        cohort: Cohort,
        shared: SharedWork,
        starts: Starts | None,
        cancel: CancelFlag | None,
    ) -> Iterator[PartResult]:
        """Yields the results of scoring a cohort, part by part."""
        size = self._part_size(cohort, 0 if starts is None else 4 * shared.layout.num_params)

        def parts() -> Iterator[Part]:
            for part in cohort.parts(size):
                own = None if starts is None else starts(part.blank_clients()).copy()
                yield Part(part.clients(), (), NO_INPUTS, own)

        return (result for _, result in self._workers.run(shared, parts(), cancel))

    def _cohort(self, clients: Iterable[BatchedDataset]) -> Cohort | None:
        """Returns the clients of a call as workers get them; None if they are computed here."""
        if isinstance(clients, ClientBatches):
            for split, data in self._splits.items():
                if data is clients.data:
                    return Cohort(split, clients, tuple(clients.client_ids), self._ships_data)
        return None

    def _part_size(self, cohort: Cohort, vector_bytes: int) -> int:
        """Returns the number of clients in a part; each client needs `vector_bytes` for vectors."""
        most = _MAX_PART
        if vector_bytes:
            most = min(most, max(BLOCK_CLIENTS, PIECE_BYTES // vector_bytes))
        return part_size(len(cohort.client_ids), self._workers.num_workers, most)


class Cohort(NamedTuple):
    """Consecutive clients of a split, none of which has been read.

    Attributes:
        split: The split.
        batches: The clients of the whole call, with their data.
        client_ids: The ids of these clients.
        ships_data: Whether they are sent with their examples.
    """

    split: str
    batches: ClientBatches
    client_ids: tuple[str, ...]
    ships_data: bool

    def part(self, number: int, size: int) -> Cohort:
        """Returns the part with index `number`, if each part has `size` clients."""
        return self._replace(client_ids=self.client_ids[number * size : (number + 1) * size])

    def parts(self, size: int) -> Iterator[Cohort]:
        """Yields the parts in order."""
        for number in range(-(-len(self.client_ids) // size)):
            yield self.part(number, size)

    def clients(self) -> Clients:
        """Returns the clients in the form that is sent to a worker."""
        plan, seed = self.batches.plan, self.batches.seed
        if self.ships_data:
            return tuple(replace(self.batches, client_ids=self.client_ids))
        return NamedClients(self.split, self.client_ids, plan, seed)

    def blank_clients(self) -> list[BatchedDataset]:
        """Returns datasets with the clients' ids and numbers of examples, but blank pixels."""
        data, plan, seed = self.batches.data, self.batches.plan, self.batches.seed
        return [
            BatchedDataset(_blank(data, each), plan, seed)  # blank examples take no memory
            for each in self.client_ids
        ]


def _blank(data: ClientData, client_id: str) -> ClientDataset:
    num_examples = data.num_examples(client_id)
    pixels = np.broadcast_to(np.uint8(0), (num_examples, *data.pixel_shape))
    labels = np.broadcast_to(np.int32(0), num_examples)
    return ClientDataset(client_id, pixels, labels, 1.0, 0.0, data.source)


def _training_parts(
    cohort: Cohort, task: ClientTask, exchange: ClientExchange | None, size: int
) -> Iterator[Part]:
    """Yields the parts of a training call. Each gets its inputs when a worker is nearly free."""
    occurrences = task.occurrences or occurrences_of(cohort.client_ids)
    for number, part in enumerate(cohort.parts(size)):
        first = number * size
        last = first + len(part.client_ids)
        inputs = task.inputs.of(first, last)
        if exchange is not None:
            inputs = exchange.send(part.blank_clients())
        yield Part(part.clients(), occurrences[first:last], inputs)


def _writable(array: Any) -> Any:
    """The same values in a writable array; arrays from a cluster may be read-only."""
    return array if array.flags.writeable else array.copy()
