"""What the clients of a cohort do in a round: the part in which algorithms differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag, FrozenSlots, StepKind, StepRow
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.deltas import NO_BOUNDS, SUM, Deltas
from fedcli.learning.engines.task import NO_INPUTS, ClientExchange, ClientInputs, ClientTask
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models.layout import ParamLayout
from fedcli.settings import tables


@dataclass(frozen=True, eq=False)
class CohortCall:
    """One round's cohort, ready for the engine.

    Attributes:
        engine: What computes the clients.
        layout: The model.
        task: What clients do, but for the rows of their local steps.
        aggregator: What will make one mean delta of the cohort's.
        aggregator_state: What it remembers.
        clients: The cohort's data; they can be gone through again if the work makes many passes.
        cancel: Stops the call from outside.
        num_clients: How many may take part, in this round or another; None: not known.
        evaluated: What was evaluated before the round in place of the global model; None: that.
    """

    engine: Engine
    layout: ParamLayout
    task: ClientTask
    aggregator: Aggregator
    aggregator_state: Mapping[str, Any]
    clients: Iterable[BatchedDataset]
    cancel: CancelFlag | None
    num_clients: int | None = None
    evaluated: Evaluated | None = None

    @property
    def params(self) -> NDArray[np.float32]:
        """Global parameters, float32 [num_params]."""
        return self.task.params

    @property
    def round_num(self) -> int:
        """Rounds completed so far."""
        return self.task.round_num

    @property
    def population_size(self) -> int:
        """The number of clients that may take part.

        Raises:
            ConfigError: Nobody has said it.
        """
        if self.num_clients is None:
            raise ConfigError(
                "this algorithm needs the number of clients that may take part; give num_clients"
            )
        return self.num_clients

    def for_gradients(self) -> CohortCall:
        """Returns the call for what is no model delta, and not for the aggregator: a plain sum."""
        return replace(self, task=replace(self.task, request=SUM))

    def measuring(self) -> CohortCall:
        """Returns the call with the sizes of the deltas in their stats: `norm` and `max_abs`."""
        request = self.task.request
        if request.bounds is not None:
            return self
        return replace(self, task=replace(self.task, request=request._replace(bounds=NO_BOUNDS)))

    def mean_delta(self, deltas: Deltas) -> NDArray[np.float32]:
        """Returns what the aggregator makes of deltas of this round: float32 [num_params]."""
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
        """Returns the model deltas of clients that take local steps.

        Args:
            optimizer: Takes them, at the learning rate that its schedule has for this round.
            terms: Rows of what the algorithm adds to the gradient, once that is clipped.
            frozen: The optimizer state that every step starts from; None: each client has its own.
            first: Rows that act before the optimizer, its clipping included, sees the gradient.
            inputs: What clients are sent beside the parameters, without an exchange.
            exchange: What is sent to single clients and received from them.
        """
        optimizer = optimizer.at(self.round_num)
        task = replace(
            self.task,
            rows=(*first, *optimizer.client_rows(terms)),
            frozen=frozen,
            schedule=optimizer.local_schedule,
            inputs=inputs,
        )
        return self._run(task, exchange)

    def take_gradients(self) -> Deltas:
        """Returns in place of model deltas minus the mean gradients at the global parameters."""
        return self._run(replace(self.task, rows=((StepKind.GRADIENT, ()),)))

    def _run(self, task: ClientTask, exchange: ClientExchange | None = None) -> Deltas:
        return self.engine.train(
            self.layout, task, self.clients, exchange=exchange, cancel=self.cancel
        )


class WorkResult(NamedTuple):
    """What a round of client work makes.

    Attributes:
        deltas: What the cohort sends back, scaled and shifted as the algorithm has it.
        state: The client work's part of the next server state.
        evaluated: What is evaluated in place of the global model, if the algorithm says so.
    """

    deltas: Deltas
    state: dict[str, Any]
    evaluated: Evaluated | None = None


class ClientWork(Protocol):
    """What makes an algorithm: what clients do in a round.

    It holds settings only; what it remembers between rounds is part of the server state: by name,
    arrays, ints and floats, which keep their shapes and types from round to round.
    """

    @property
    def num_passes(self) -> int:
        """How often it goes through the cohort's data in a round: how many calls it trains with."""
        ...

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns its part of the server state before the first round, for params [num_params]."""
        ...

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Returns what the cohort sends back, and the next state; raises as `Engine` does.

        `call.train(optimizer)` trains the clients, `call.take_gradients()` has them send gradients;
        what these return may be `scaled` by a factor above 0 or `shifted` by a vector.
        """
        ...


def check_freezable(algorithm: str, optimizer: Optimizer) -> None:
    """Refuses a client optimizer that cannot start each step from a state of the server's.

    Raises:
        ConfigError: It keeps other vectors than such as the weights.
    """
    if not tables.OPTIMIZERS[optimizer.name].is_elementwise:
        others = [name for name, entry in tables.OPTIMIZERS.items() if entry.is_elementwise]
        raise ConfigError(
            f"{algorithm} with client optimizer {optimizer.name}: its state is no vector like the "
            f"weights, which each local step could start from; choose one of {', '.join(others)}"
        )
