"""The work of an engine for one cohort, as plain values that can be sent to another process.

A `ClientTask` holds what the clients of a cohort have in common, and may hold arrays with one row
per client. Such arrays of a whole cohort can be larger than memory. A caller that keeps a vector
per client therefore passes a `ClientExchange`. The engine calls it for one piece of the cohort at a
time; a remote engine can send each piece as a task of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import FrozenSlots, StepRow
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.engines.deltas import SUM, DeltaRequest
from fedcli.learning.optimizers.schedules import Schedule


class ClientInputs(NamedTuple):
    """Inputs of individual clients beside the parameters: arrays with one row per client.

    Attributes:
        linear: The vectors that the LINEAR row adds to the gradients: float32 [num_clients,
            num_params], or [1, num_params] if it is the same for all clients.
        delta_factors: The factor of each delta in the sum, >= 0: float64 [num_clients].
        starts: The parameters that each client starts from instead of the server's: float32
            [num_clients, num_params]. A client's delta is the difference from its start. Without
            delta_factors no delta is summed; with them, the sum adds the differences from the
            server's parameters.
        max_distances: The largest L2 distance of each client's parameters from those it starts
            with, float64 [num_clients]; 0 for no limit. Parameters that are farther away are
            projected to this distance after each of the client's epochs.
    """

    linear: NDArray[np.float32] | None = None
    delta_factors: NDArray[np.float64] | None = None
    starts: NDArray[np.float32] | None = None
    max_distances: NDArray[np.float64] | None = None

    def of(self, first: int, last: int) -> ClientInputs:
        """Returns the inputs of clients first..last-1."""
        linear, factors, starts, distances = self
        return ClientInputs(
            linear if linear is None or len(linear) == 1 else linear[first:last],
            None if factors is None else factors[first:last],
            None if starts is None else starts[first:last],
            None if distances is None else distances[first:last],
        )


NO_INPUTS = ClientInputs()


class ClientExchange(Protocol):
    """Makes the inputs of individual clients and receives their deltas, in the caller's process.

    An engine goes through the cohort in order, in pieces. It calls `send` for each piece, and
    `receive` when the piece is trained, in the same order. It may call `send` for several pieces
    before it calls `receive` for the first. The arrays that `send` returns do not change until
    their piece is received.

    Attributes:
        num_vectors: The number of parameter-sized vectors that `send` makes for each client.
        receives: Whether the deltas are needed; if not, `receive` is not called.
    """

    @property
    def num_vectors(self) -> int:
        """See the class."""

    @property
    def receives(self) -> bool:
        """See the class."""

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the inputs of some clients of the cohort."""

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Processes the model deltas and the statistics of some clients.

        Args:
            clients: A piece that `send` was called for.
            deltas: float32 [num_clients, num_params]. This method may overwrite it. Rows of clients
                whose `is_finite` is 0 have no meaning.
            stats: As in `Deltas`.
        """


@dataclass(frozen=True, eq=False)
class ClientTask:
    """The work of the clients of a cohort; it holds no code and can be pickled.

    Attributes:
        rows: The step table: rows (kind, options). The last row is that of the optimizer.
        params: Server parameters, float32 [num_params].
        round_num: Rounds completed so far, part of the keys of the clients' shuffles.
        weighting: `num-examples` or `uniform`.
        request: What the engine returns about the deltas.
        frozen: The optimizer state that every local step starts from. None if each client has its
            own state, which changes from step to step.
        schedule: The factor of the client optimizer's learning rate in each local step, counted
            from 0. None for a factor of 1 in every step.
        inputs: Inputs of individual clients, for all clients of a call without a `ClientExchange`.
        occurrences: The number of earlier copies of each client in the cohort, if the call has only
            a part of the cohort. None to count copies within the call.
        class_weights: The factor of the loss of each example by its label: float32 [num_classes],
            finite and not negative. The loss of a batch is the sum of the weighted losses divided
            by its number of examples. None for weights of 1.
        label_smoothing: The share of each label that is spread equally over all classes, in [0, 1)
            (Szegedy et al. 2016, arXiv 1512.00567). The reported loss includes it.
        max_distances: The limits of `ClientInputs.max_distances` by client id, each above 0.
            Clients without an entry have no limit. None if no client has a limit.
    """

    rows: tuple[StepRow, ...]
    params: NDArray[np.float32]
    round_num: int
    weighting: str
    request: DeltaRequest = SUM
    frozen: FrozenSlots | None = None
    schedule: Schedule | None = None
    inputs: ClientInputs = NO_INPUTS
    occurrences: tuple[int, ...] | None = None
    class_weights: NDArray[np.float32] | None = None
    label_smoothing: float = 0.0
    max_distances: Mapping[str, float] | None = None

    def rate_factors(self, clients: Iterable[BatchedDataset]) -> NDArray[np.float64] | None:
        """Returns the factors of the learning rate for the local steps of these clients.

        Args:
            clients: At least one.

        Returns:
            float64 [num_steps], where num_steps is the largest number of local steps of a client.
            None if no schedule counts local steps.
        """
        if self.schedule is None:
            return None
        num_steps = max(each.plan.num_batches(len(each.client)) for each in clients)
        factors = [self.schedule.factor(step) for step in range(num_steps)]
        return np.array(factors, np.float64)

    def sum_factors(self, stats: NDArray[np.void]) -> NDArray[np.float64]:
        """Returns the factor of each delta in the sum, apart from its weight: [num_clients].

        Args:
            stats: The records of all clients whose inputs this task has, with the size of each
                delta if there are bounds.
        """
        bounds, inputs = self.request.bounds, self.inputs
        if inputs.starts is not None and inputs.delta_factors is None:
            return np.zeros(len(stats))
        factors: NDArray[np.float64] = np.ones(len(stats))
        if bounds is not None:
            norms = stats["norm"]
            np.divide(bounds.norm, norms, out=factors, where=norms > bounds.norm)
            factors[stats["max_abs"] > bounds.max_abs] = 0.0
        return factors if inputs.delta_factors is None else factors * inputs.delta_factors

    def piece(
        self, clients: Sequence[BatchedDataset], first: int, exchange: ClientExchange | None
    ) -> ClientTask:
        """Returns the task of some clients of the call, with the inputs of these clients only.

        Args:
            clients: Consecutive clients of the call.
            first: The index of the first of them.
            exchange: Makes their inputs; None if this task has them.
        """
        distances = self.max_distances
        is_plain = exchange is None and self.occurrences is None and self.inputs is NO_INPUTS
        if is_plain and distances is None:
            return self
        last = first + len(clients)
        inputs = self.inputs.of(first, last) if exchange is None else exchange.send(clients)
        if distances is not None:
            each = [distances.get(dataset.client.client_id, 0.0) for dataset in clients]
            inputs = inputs._replace(max_distances=np.array(each, np.float64))
        occurrences = None if self.occurrences is None else self.occurrences[first:last]
        return replace(self, inputs=inputs, occurrences=occurrences)
