"""A worker, which opens the data and computes parts of a cohort on its machine's threads."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli import datasets
from fedcli.cluster import probe
from fedcli.cluster.messages import (
    Clients,
    NamedClients,
    Part,
    PartResult,
    SharedWork,
    WorkerDescription,
    WorkerSetup,
)
from fedcli.core import native
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_batches import ClientBatches
from fedcli.datasets.client_data import ClientData
from fedcli.federation.opened_data import open_data
from fedcli.learning.engines.task import NO_INPUTS, ClientInputs
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layout import ParamLayout
from fedcli.version import __version__

# A fixed cohort takes part in every round, so its clients are kept, within these limits.
_KEPT_PARTS = 16
_KEPT_BYTES = 4 << 20


class Worker:
    """Computes parts of calls. Results do not depend on any state of the worker."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Opens the data.

        Raises:
            DataError: The data are missing or invalid on this machine.
        """
        self._setup = setup
        self._engine = ThreadEngine(setup.num_threads)
        self._current = 0, CancelFlag()  # the number of a call, and its flag
        self._last_cancelled = 0
        self._splits: dict[str, ClientData] = {}
        if setup.source is not None:
            self._splits = open_data(setup.source)
        self._layouts: dict[str, ParamLayout] = {}
        self._kept: dict[NamedClients, tuple[BatchedDataset, ...]] = {}

    def describe(self) -> WorkerDescription:
        """Returns the description of this worker, which the driver checks before it sends work."""
        source = self._setup.source
        fingerprint = None if source is None else datasets.fingerprint(source)
        return WorkerDescription(
            socket.gethostname(), __version__, native.isa_name(), fingerprint, probe.digest()
        )

    def process_id(self) -> int:
        """Returns the id of this process. The driver calls it to see that the worker is alive."""
        return os.getpid()

    def cancel(self, call: int) -> None:
        """Stops the work of a call and of all earlier calls after at most one local step.

        It may be called during `compute`, in another thread.
        """
        self._last_cancelled = call
        current, flag = self._current
        if current <= call:
            flag.set()

    def compute(self, call: int, shared: SharedWork, part: Part) -> PartResult:
        """Computes a part of a call.

        Args:
            call: The number of the call. Later calls have larger numbers.
            shared: The values that all of its parts share.
            part: The part.

        Raises:
            Cancelled: The call was cancelled.
            DataError: A client cannot be read, or does not fit the model.
        """
        flag = CancelFlag()
        self._current = call, flag  # before the check, so that no `cancel` is missed
        if call <= self._last_cancelled:
            raise Cancelled
        layout = self._layout(shared.layout)
        clients = self._clients(part.clients)
        if shared.task is None:
            return self._score(layout, shared, clients, part.starts, flag)
        inputs = NO_INPUTS if shared.has_deltas else part.inputs
        task = replace(shared.task, inputs=inputs, occurrences=part.occurrences)
        collected = _Collector(part.inputs) if shared.has_deltas else None
        deltas = self._engine.train(layout, task, clients, exchange=collected, cancel=flag)
        return PartResult(
            deltas.stats,
            deltas.delta_sum,
            deltas.weight_sum,
            None if collected is None else collected.deltas(layout.num_params),
        )

    def _score(
        self,
        layout: ParamLayout,
        shared: SharedWork,
        clients: Iterable[BatchedDataset],
        starts: NDArray[np.float32] | None,
        cancel: CancelFlag,
    ) -> PartResult:
        assert shared.params is not None
        own = None if starts is None else _Slices(starts)
        if shared.has_scores:
            scores = self._engine.predict(layout, shared.params, clients, starts=own, cancel=cancel)
            return PartResult(np.empty(0, native.STATS), scores=scores.values)
        stats = self._engine.evaluate(layout, shared.params, clients, starts=own, cancel=cancel)
        return PartResult(stats)

    def _layout(self, layout: ParamLayout) -> ParamLayout:
        """Returns one object for equal layouts; the engine recognises a model by this object."""
        key = repr((layout.specs, layout.input_shape, layout.num_classes))
        return self._layouts.setdefault(key, layout)

    def _clients(self, clients: Clients) -> Iterable[BatchedDataset]:
        """The clients of a part, which are read when they are used.

        If a small part is requested again, the same tuple is returned.
        """
        if not isinstance(clients, NamedClients):
            return tuple(clients)
        if (known := self._kept.get(clients)) is not None:
            return known
        data = self._splits[clients.split]
        batches = ClientBatches(data, clients.client_ids, clients.plan, clients.seed)
        num_examples = sum(map(data.num_examples, clients.client_ids))
        if num_examples * math.prod(data.pixel_shape) > _KEPT_BYTES:
            return batches
        while len(self._kept) >= _KEPT_PARTS:
            del self._kept[next(iter(self._kept))]
        self._kept[clients] = tuple(batches)
        return self._kept[clients]


class _Collector:
    """A `ClientExchange` that passes on the inputs of a part and keeps copies of its deltas."""

    receives = True

    def __init__(self, inputs: ClientInputs) -> None:
        self._inputs = inputs
        self._sent = 0
        self._rows: list[NDArray[np.float32]] = []

    @property
    def num_vectors(self) -> int:
        vectors = self._inputs.linear, self._inputs.starts
        return sum(each is not None for each in vectors)

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        first, self._sent = self._sent, self._sent + len(clients)
        return self._inputs.of(first, self._sent)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        self._rows.append(deltas.copy())

    def deltas(self, num_params: int) -> NDArray[np.float32]:
        return np.concatenate([np.empty((0, num_params), np.float32), *self._rows])


class _Slices:
    """A function of consecutive pieces of the clients, which returns the rows of each piece."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows
        self._next = 0

    def __call__(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        first, self._next = self._next, self._next + len(clients)
        return self._rows[first : self._next]
