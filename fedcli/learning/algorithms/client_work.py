"""The work of a cohort's clients in a round, the part in which algorithms differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag, FrozenSlots, StepKind, StepRow
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.deltas import NO_BOUNDS, SUM, DeltaRequest, Deltas
from fedcli.learning.engines.task import NO_INPUTS, ClientExchange, ClientInputs, ClientTask
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.learning.optimizers.schedules import Schedule
from fedcli.models.layout import ParamLayout
from fedcli.settings import tables

if TYPE_CHECKING:
    from fedcli.learning.updates.pipeline import UpdatePipeline


@dataclass(frozen=True, eq=False)
class CohortCall:
    """One round's cohort, ready for the engine.

    Attributes:
        engine: Trains the clients.
        layout: The model.
        params: Global parameters, float32 [num_params].
        round_num: Rounds completed so far.
        weighting: Client weights, `num-examples` or `uniform`.
        request: What the engine returns about the deltas.
        aggregator: Combines the cohort's deltas into one mean delta.
        aggregator_state: The aggregator's state.
        clients: The cohort's data, which can be iterated `ClientWork.num_passes` times.
        cancel: A flag that stops the call from outside.
        num_clients: The size of the population; None if it is not known.
        evaluated: The `evaluated` part of the server state before the round.
        class_weights: The factor of the loss of each example by its label; see `ClientTask`.
        label_smoothing: The share of each label that is spread over all classes; see `ClientTask`.
        pipeline: Runs the update stages on the deltas before they are aggregated. None if the
            deltas are not for the aggregator, or if there are no stages and the aggregator needs
            only the sum.
        root_data: The server's own examples in batches; None if it has none.
        max_distances: The largest distance of a client's model from the global model, by client id;
            see `ClientTask`.
        own_parts: What each client keeps for itself; None if it shares all parameters or none. If
            it is not None, the client work must train the cohort once, and pass no exchange.
    """

    engine: Engine
    layout: ParamLayout
    params: NDArray[np.float32]
    round_num: int
    weighting: str
    request: DeltaRequest
    aggregator: Aggregator
    aggregator_state: Mapping[str, Any]
    clients: Iterable[BatchedDataset]
    cancel: CancelFlag | None
    num_clients: int | None = None
    evaluated: Evaluated | None = None
    class_weights: NDArray[np.float32] | None = None
    label_smoothing: float = 0.0
    pipeline: UpdatePipeline | None = None
    root_data: BatchedDataset | None = None
    max_distances: Mapping[str, float] | None = None
    own_parts: ClientExchange | None = None

    @property
    def population_size(self) -> int:
        """The number of clients that may take part.

        Raises:
            ConfigError: It is not known.
        """
        if self.num_clients is None:
            raise ConfigError(
                "this algorithm needs the number of clients that may take part; give num_clients"
            )
        return self.num_clients

    def for_gradients(self) -> CohortCall:
        """Returns a call that requests a plain sum: gradients are not for the aggregator."""
        return replace(self, request=SUM, pipeline=None)

    def measuring(self) -> CohortCall:
        """Returns a call whose stats contain the sizes of the deltas: `norm` and `max_abs`."""
        if self.request.bounds is not None:
            return self
        return replace(self, request=self.request._replace(bounds=NO_BOUNDS))

    def mean_delta(self, deltas: Deltas) -> NDArray[np.float32]:
        """Returns the aggregator's mean of deltas of this round: float32 [num_params]."""
        return self.aggregator.aggregate(self.aggregator_state, deltas)[0]

    def train(
        self,
        optimizer: Optimizer,
        terms: Sequence[StepRow] = (),
        frozen: FrozenSlots | None = None,
        *,
        first: Sequence[StepRow] = (),
        inputs: ClientInputs = NO_INPUTS,
        exchange: ClientExchange | None = None,
    ) -> Deltas:
        """Trains the cohort with local steps and returns the model deltas.

        Args:
            optimizer: The client optimizer; its schedule sets the learning rate of this round.
            terms: Rows of the terms that the algorithm adds to the clipped gradient.
            frozen: The optimizer state that every step starts from; None if each client has its
                own.
            first: Rows that change the gradient before it is clipped.
            inputs: Inputs of individual clients, if there is no exchange.
            exchange: Makes the inputs of individual clients and receives their deltas.
        """
        optimizer = optimizer.at(self.round_num)
        rows = (*first, *optimizer.client_rows(terms))
        return self._run(rows, frozen, optimizer.local_schedule, inputs, exchange)

    def take_gradients(self) -> Deltas:
        """Returns deltas that are minus each client's mean gradient at the global parameters."""
        return self._run(((StepKind.GRADIENT, ()),))

    def _run(
        self,
        rows: tuple[StepRow, ...],
        frozen: FrozenSlots | None = None,
        schedule: Schedule | None = None,
        inputs: ClientInputs = NO_INPUTS,
        exchange: ClientExchange | None = None,
    ) -> Deltas:
        pipeline, exchange = self.pipeline, exchange or self.own_parts
        task = ClientTask(
            rows=rows,
            params=self.params,
            round_num=self.round_num,
            weighting=self.weighting,
            request=self.request if pipeline is None else pipeline.request(self.request),
            frozen=frozen,
            schedule=schedule,
            inputs=inputs,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            max_distances=self.max_distances,
        )
        if pipeline is None:
            return self.engine.train(
                self.layout, task, self.clients, exchange=exchange, cancel=self.cancel
            )
        deltas = self.engine.train(
            self.layout,
            task,
            pipeline.recording_ids(self.clients),
            exchange=exchange,
            cancel=self.cancel,
        )
        received = pipeline.run(deltas, self.request)
        if not self.request.root_examples:
            return received
        return replace(received, root=self._root_delta(task, exchange))

    def _root_delta(
        self, task: ClientTask, exchange: ClientExchange | None
    ) -> NDArray[np.float64] | None:
        """Returns the delta that a client with the server's own examples would send.

        After the clients, the engine trains a cohort whose only client has these examples. An
        exchange sends this client the inputs of a client that never took part. It does not receive
        the delta, so the vectors that clients keep do not change. No stage changes the delta,
        because it is not sent to anyone. The result is None if the delta is not finite.

        Raises:
            ConfigError: There are no examples.
        """
        if self.root_data is None:
            raise ConfigError(
                "the aggregator compares the clients' deltas with the delta of examples that the "
                "server has; give these examples as root_data"
            )
        clients = [self.root_data]  # a list: the engine would keep the pixels of a tuple
        inputs = task.inputs if exchange is None else exchange.send(clients)
        alone = replace(task, request=SUM, inputs=inputs, occurrences=None, max_distances=None)
        trained = self.engine.train(self.layout, alone, clients, cancel=self.cancel)
        return trained.delta_sum / trained.weight_sum if trained.weight_sum > 0.0 else None


class WorkResult(NamedTuple):
    """The result of a round of client work.

    Attributes:
        deltas: The cohort's deltas for the aggregator, with the algorithm's scale and shift.
        state: The client work's part of the next server state.
        evaluated: The `evaluated` part of the next server state, if the algorithm sets it.
        metrics: Further metrics of the round: numbers by name. They are under
            `client_work/algorithm` in the metrics of the round. None if there are none.
    """

    deltas: Deltas
    state: dict[str, Any]
    evaluated: Evaluated | None = None
    metrics: Mapping[str, Any] | None = None


class ClientWork(Protocol):
    """The part in which algorithms differ most: the work of a cohort's clients in a round.

    It holds settings only. Its state between rounds is part of the server state: arrays, ints and
    floats by name, which are finite and keep their shapes and types from round to round.

    A user's own class needs `num_passes` only if it is above 1. Three more attributes are optional:
    `vectors_down`, `vectors_up` and `numbers_up`, what a client receives and sends; see `fedcli
    help communication`.
    """

    @property
    def num_passes(self) -> int:
        """How often a round reads the cohort's data: once for each `train` or `take_gradients`."""
        ...

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the state before the first round, for initial parameters [num_params]."""
        ...

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Does the work of a cohort; returns the deltas and the next state.

        It raises the same errors as `Engine.train`.

        `call.train(optimizer)` trains the clients, and `call.take_gradients()` computes their
        gradients. The deltas from both calls may be `scaled` by a factor above 0 or `shifted` by
        a vector.
        """
        ...


def check_freezable(algorithm: str, optimizer: Optimizer) -> None:
    """Rejects a client optimizer that cannot start each step from the server's state.

    Raises:
        ConfigError: The optimizer's state does not consist of vectors [num_params].
    """
    if not tables.OPTIMIZERS[optimizer.name].is_elementwise:
        others = [name for name, entry in tables.OPTIMIZERS.items() if entry.is_elementwise]
        raise ConfigError(
            f"{algorithm} with client optimizer {optimizer.name} is not supported: its state is "
            f"not a value per weight; choose one of {', '.join(others)}"
        )
