"""The engine for models in Python; `choosing.make_engine` makes it.

It computes a round as the C core does, but the user's model computes the predictions, losses and
gradients. The order of examples, the step table, the bounds, the weights, and the rule for
non-finite clients are the same. Deltas are added in the same order in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native, seeds
from fedcli.core.native import CancelFlag, Cancelled, StepKind, WeightedSum
from fedcli.datasets import batches
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError, DataError
from fedcli.learning.engines.call_lock import CallLock
from fedcli.learning.engines.contract import (
    Scores,
    Starts,
    check_images,
    label_fault,
    numbered,
)
from fedcli.learning.engines.deltas import DeltaBounds, DeltaFile, Deltas
from fedcli.learning.engines.task import ClientExchange, ClientTask
from fedcli.models.layout import ParamLayout
from fedcli.models.metrics import are_probabilities
from fedcli.models.own.loading import PythonModel
from fedcli.models.own.network import Network

Params = NDArray[np.float32]


class PythonEngine:
    """Computes the clients of a `PythonModel` one after the other, in the calling thread.

    Calls from several threads wait for each other. After a call the user's object holds its
    initial weights again.
    """

    num_threads = 1

    def __init__(self, model: PythonModel) -> None:
        """Makes the engine of one model."""
        self._model = model
        self._call_lock = CallLock()
        own = [(row.column, "f8", (row.num_sums,)) for row in model.metrics.rows]
        stats = native.STATS
        self._stats = np.dtype([*((name, stats[name]) for name in stats.names or ()), *own])

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        """See `Engine.train`.

        Raises:
            Cancelled: `cancel` was set.
            ConfigError: The algorithm computes each batch twice, so the model's own metrics would
                count it twice.
            DataError: A client's images do not fit the model, or a label is outside its classes.
            ModelError: The user's code fails, or breaks its contract.
        """
        if any(kind == StepKind.ANCHOR for kind, _ in task.rows):
            raise ConfigError(
                f"the algorithm computes each batch twice, which the metrics of {self._model.name} "
                "would count twice; choose another algorithm, or a model of layers"
            )
        total = WeightedSum(layout.num_params)
        records = []
        file_or_none = DeltaFile(layout.num_params) if task.request.all_rows else nullcontext()
        with self._running(layout) as network, file_or_none as file:
            counted = _checked(clients, layout, task.occurrences)
            for index, (dataset, occurrence) in enumerate(counted):
                alone = task.piece([dataset], index, exchange)
                delta, stats = self._train_one(network, layout, alone, dataset, occurrence, cancel)
                factors = alone.sum_factors(stats)
                starts = alone.inputs.starts
                moved = delta if starts is None else delta + (starts[0] - task.params)
                total.add([moved], [float(stats["weight"][0] * factors[0])])
                if file is not None:
                    file.append(delta[np.newaxis], factors, stats)
                if exchange is not None and exchange.receives:
                    exchange.receive([dataset], delta[np.newaxis], stats)
                records.append(stats)
                if cancel is not None:
                    cancel.num_trained += 1
            rows = None if file is None else file.mapped(are_writable=task.request.are_writable)
        stats = self._joined(records)
        return Deltas(total.total()[0], float(stats["weight"].sum()), stats, rows)

    def _train_one(
        self,
        network: Network,
        layout: ParamLayout,
        task: ClientTask,
        dataset: BatchedDataset,
        occurrence: int,
        cancel: CancelFlag | None,
    ) -> tuple[Params, NDArray[np.void]]:
        """Trains the only client of a task; returns its model delta [num_params] and its record."""
        steps = _LocalSteps(network, task, layout.shapes, cancel)
        stats = self._start(network, dataset, task.round_num, occurrence)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged client may give inf - inf
            delta = steps.run(dataset, task.round_num, occurrence, stats)
        if np.isfinite(delta).all():
            self._finish(network, stats)
        else:
            stats = np.zeros(1, self._stats)
        _measure(delta, task.request.bounds, stats)
        stats["weight"] = _weight(stats, task.weighting)
        return delta, stats

    def evaluate(
        self,
        layout: ParamLayout,
        params: Params,
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """See `Engine.evaluate`.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's images do not fit the model, or a label is outside its classes.
            ModelError: The user's code fails, or breaks its contract.
        """
        records = []
        with self._running(layout) as network:
            network.set_params(params)
            for dataset, occurrence in _checked(clients, layout):
                if starts is not None:
                    network.set_params(starts([dataset])[0])
                stats = self._start(network, dataset, 0, occurrence)
                for batch in dataset.in_round(0, occurrence):
                    _poll(cancel)
                    result = network.forward(batch["x"], batch["y"][:, 0], training=False)
                    _count(stats, result.loss_sum, result.num_correct, len(batch["y"]))
                self._finish(network, stats)
                records.append(stats)
        return self._joined(records)

    def predict(
        self,
        layout: ParamLayout,
        params: Params,
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """Returns the predictions of every example of every client, once each, in stored order.

        A model may return logits or probabilities; rows that sum to 1 are taken as probabilities.
        If it returns only the class of each example, this class has probability 1.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's images do not fit the model, or a label is outside its classes.
            ModelError: The user's code fails, or breaks its contract.
        """
        parts = []
        with self._running(layout) as network:
            network.set_params(params)
            for dataset, occurrence in _checked(clients, layout):
                if starts is not None:
                    network.set_params(starts([dataset])[0])
                self._start(network, dataset, 0, occurrence)
                once = replace(dataset, plan=BatchPlan(batch_size=dataset.plan.batch_size))
                for batch in once.in_round():
                    _poll(cancel)
                    parts.append(network.predict(batch["x"], batch["y"][:, 0]))
        none = np.empty((0, layout.num_classes), np.float32)
        values = np.concatenate(parts) if parts else none
        return Scores(values, are_logits=not are_probabilities(values))

    @contextmanager
    def _running(self, layout: ParamLayout) -> Iterator[Network]:
        """Locks the network for this call and restores its initial weights at the end."""
        if layout is not self._model.layout:
            raise ConfigError(
                f"this engine computes only the model {self._model.name}; leave out engine, or "
                "give the engine of your model"
            )
        network = self._model.network
        with self._call_lock.hold():
            try:
                yield network
            finally:
                network.set_params(network.initial_params)

    def _start(
        self, network: Network, dataset: BatchedDataset, round_num: int, occurrence: int
    ) -> NDArray[np.void]:
        """Resets the network's metrics and seed for a client; returns the client's empty record."""
        key = seeds.stream_key(
            dataset.seed,
            seeds.Purpose.DROPOUT,
            round_num=round_num,
            client=seeds.client_key(dataset.client.client_id),
            occurrence=occurrence,
        )
        network.start_client(int(native.random_u64(key, 1)[0]) >> 1)
        stats = np.zeros(1, self._stats)
        stats["is_finite"] = 1
        return stats

    def _finish(self, network: Network, stats: NDArray[np.void]) -> None:
        """Copies the sums of the model's own metrics into a client's record."""
        rows = self._model.metrics.rows
        sums = network.report()
        returned = {f"{name} of {len(values)}" for name, values in sums.items()}
        expected = {f"{row.column.partition('/')[2]} of {row.num_sums}" for row in rows}
        if returned != expected:
            raise network.fault(
                "report_local_unfinalized_metrics",
                f"now returns sums {', '.join(sorted(returned))}, but at first "
                f"{', '.join(sorted(expected))}; return the same each time",
            )
        for row in rows:
            stats[row.column] = sums[row.column.partition("/")[2]]

    def _joined(self, records: list[NDArray[np.void]]) -> NDArray[np.void]:
        return np.concatenate([np.zeros(0, self._stats), *records])


class _LocalSteps:
    """The local steps of one client in a round, as in csrc/client/client.c."""

    def __init__(
        self,
        network: Network,
        task: ClientTask,
        shapes: Sequence[tuple[int, ...]],
        cancel: CancelFlag | None,
    ) -> None:
        """Prepares the steps of a task that has one client."""
        linear, _, starts, distances = task.inputs
        self._linear: Params | None = None if linear is None else linear[0]
        self._max_distance = 0.0 if distances is None else float(distances[0])
        self._task = task
        self._network = network
        self._rows = task.rows
        self._server: Params = task.params if starts is None else starts[0]
        self._frozen = task.frozen
        self._shapes = shapes
        self._cancel = cancel
        self._takes_gradient = task.rows[0][0] == StepKind.GRADIENT

    def run(
        self, dataset: BatchedDataset, round_num: int, occurrence: int, stats: NDArray[np.void]
    ) -> Params:
        """Returns the client's model delta and adds its loss and counts to `stats`."""
        network, params = self._network, self._server.copy()
        # A sum apart from params: adding small gradients to params would lose digits.
        minus_gradient = np.zeros_like(params)
        slots = np.empty((0, len(params)), np.float32)
        if self._frozen is None and not self._takes_gradient:
            slots = native.initial_slots(self._rows, len(params))
        num_examples = len(dataset.client)
        num_visits, num_visited = dataset.plan.num_visits(num_examples), 0
        network.set_params(params)
        factors, class_weights = self._task.rate_factors([dataset]), self._task.class_weights
        for step_num, batch in enumerate(dataset.in_round(round_num, occurrence), 1):
            _poll(self._cancel)
            labels = batch["y"][:, 0]
            result = network.forward(
                batch["x"],
                labels,
                training=True,
                weights=None if class_weights is None else class_weights[labels],
            )
            assert result.gradient is not None
            _count(stats, result.loss_sum, result.num_correct, len(labels))
            if self._takes_gradient:
                with np.errstate(over="ignore", invalid="ignore"):
                    minus_gradient -= result.gradient * np.float32(len(labels) / num_visits)
                continue
            factor = 1.0 if factors is None else float(factors[step_num - 1])
            if self._frozen is not None:
                step_num, slots = self._frozen.step_num, self._frozen_slots()
            self._step(step_num, params, result.gradient, slots, factor)
            epoch, num_visited = num_visited // num_examples, num_visited + len(labels)
            if num_visited == num_visits or num_visited // num_examples > epoch:
                self._project(params)
            network.set_params(params)
        return minus_gradient if self._takes_gradient else params - self._server

    def _step(
        self, step_num: int, params: Params, gradient: Params, slots: Params, rate_factor: float
    ) -> None:
        """Takes one local step with the core; `rate_factor` multiplies the learning rate."""
        kind, (rate, *options) = self._rows[-1]
        rows = [*self._rows[:-1], (kind, (rate * rate_factor, *options))]
        native.apply_step(
            *(rows, step_num, params, self._server, gradient, slots, self._shapes, self._linear)
        )

    def _project(self, params: Params) -> None:
        """Limits, in place, the distance of the parameters from the initial ones."""
        if not self._max_distance:
            return
        moved = params.astype(np.float64) - self._server
        distance = math.sqrt(float(np.sum(np.square(moved))))
        if distance > self._max_distance:
            params[:] = self._server + moved * (self._max_distance / distance)

    def _frozen_slots(self) -> Params:
        """Returns a copy of the slots that each step starts from: [num_slots, num_params]."""
        assert self._frozen is not None
        slots = self._frozen.slots
        return slots.reshape(len(slots), len(self._server)).copy()


def _checked(
    clients: Iterable[BatchedDataset],
    layout: ParamLayout,
    occurrences: Sequence[int] | None = None,
) -> Iterator[tuple[BatchedDataset, int]]:
    """Checks each client; yields it with the number of earlier copies of it in the cohort."""
    for dataset, occurrence in numbered(clients, occurrences):
        client = dataset.client
        check_images(client, layout)
        index = batches.first_outside(client.labels, layout.num_classes)
        if index is not None:
            label = client.labels[index]
            raise DataError(label_fault(client, index, label, layout.num_classes))
        yield dataset, occurrence


def _poll(cancel: CancelFlag | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled


def _count(stats: NDArray[np.void], loss_sum: float, num_correct: int, size: int) -> None:
    stats["loss_sum"] += loss_sum
    stats["num_correct"] += num_correct
    stats["num_examples"] += size
    stats["num_batches"] += 1


def _weight(stats: NDArray[np.void], weighting: str) -> float:
    if not stats["is_finite"][0] or not stats["num_examples"][0]:
        return 0.0
    return 1.0 if weighting == "uniform" else float(stats["num_examples"][0])


def _measure(delta: Params, bounds: DeltaBounds | None, stats: NDArray[np.void]) -> None:
    """Writes the size of a delta into its record, if bounds are requested."""
    if bounds is None or not stats["is_finite"][0]:
        return
    stats["max_abs"] = float(np.abs(delta).max())
    if stats["max_abs"][0] <= bounds.max_abs:
        stats["norm"] = math.sqrt(float(np.sum(np.square(delta, dtype=np.float64))))
