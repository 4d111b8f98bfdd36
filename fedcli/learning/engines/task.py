"""What an engine is asked for a cohort: plain values, which can be sent to another process.

A `ClientTask` says everything that the clients of a cohort have in common, and may hold arrays with
a row for each client. The arrays of a whole cohort can be larger than memory, so a caller that
keeps vectors of its clients gives a `ClientExchange` instead: the engine asks it for the vectors of
one piece of the cohort at a time, and an engine elsewhere sends each piece as a task of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """What single clients are sent beside the parameters: arrays with a row for each of them.

    Attributes:
        linear: What the step's LINEAR row adds to their gradients: float32 [num_clients,
            num_params], or [1, num_params] for all clients alike.
        delta_factors: What each delta is multiplied by in the sum, >= 0: float64 [num_clients].
        starts: The parameters that each client starts from in place of the server's: float32
            [num_clients, num_params]. No delta enters the sum then, and there are no delta_factors.
    """

    linear: NDArray[np.float32] | None = None
    delta_factors: NDArray[np.float64] | None = None
    starts: NDArray[np.float32] | None = None

    def of(self, first: int, last: int) -> ClientInputs:
        """Returns the inputs of clients first..last-1."""
        linear, factors, starts = self
        return ClientInputs(
            linear if linear is None or len(linear) == 1 else linear[first:last],
            None if factors is None else factors[first:last],
            None if starts is None else starts[first:last],
        )


NO_INPUTS = ClientInputs()


class ClientExchange(Protocol):
    """Sends single clients their inputs and receives their deltas, in the caller's process.

    An engine goes through the cohort in order, in pieces. It calls `send` for each piece, and
    `receive` for each once it is trained, in the same order. It may send several pieces before it
    receives the first; what `send` returned stays as it is until its piece is received.

    Attributes:
        num_vectors: Parameter-sized vectors that `send` makes for each client.
        receives: Whether `receive` wants the deltas; if not, it is not called.
    """

    @property
    def num_vectors(self) -> int:
        """See above."""

    @property
    def receives(self) -> bool:
        """See above."""

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the inputs of some clients of the cohort."""

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Takes the model deltas of those clients, and their stats.

        Args:
            clients: A piece that was sent.
            deltas: float32 [num_clients, num_params]. It may be written to until this returns. Rows
                of clients whose `is_finite` is 0 have no meaning.
            stats: As in `Deltas`.
        """


@dataclass(frozen=True, eq=False)
class ClientTask:
    """What the clients of a cohort are to do; it holds no code and can be pickled.

    Attributes:
        rows: The client-step table: (kind, options), an optimizer last.
        params: Server parameters, float32 [num_params].
        round_num: Rounds completed so far; with the clients' ids it keys the shuffles.
        weighting: `num-examples` or `uniform`.
        request: What comes back of the deltas.
        frozen: What every local step starts from, if clients are not to have slots of their own.
        schedule: The share of its learning rate that a client's optimizer uses, by local step from
            0; None: all of it.
        inputs: What single clients are sent; of all clients of the call, unless it has an exchange.
        occurrences: Of each client, how many copies of it come before in the cohort, if the clients
            of the call are a part of one; None: as counted in the call.
        class_weights: What the loss of each example is multiplied with, by its label: float32
            [num_classes], finite and not negative. The loss of a batch is the sum of the products
            over its number of examples, whatever the weights. None: all are 1.
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

    def rate_factors(self, clients: Iterable[BatchedDataset]) -> NDArray[np.float64] | None:
        """Returns the shares of the learning rate for as many local steps as a client takes.

        Args:
            clients: At least one.

        Returns:
            float64 [num_steps], or None: no schedule counts local steps.
        """
        if self.schedule is None:
            return None
        num_steps = max(each.plan.num_batches(len(each.client)) for each in clients)
        factors = [self.schedule.factor(step) for step in range(num_steps)]
        return np.array(factors, np.float64)

    def sum_factors(self, stats: NDArray[np.void]) -> NDArray[np.float64]:
        """Returns what each delta is multiplied by in the sum beside its weight: [num_clients].

        Args:
            stats: Of all clients whose inputs this task has; measured, if there are bounds.
        """
        bounds, inputs = self.request.bounds, self.inputs
        if inputs.starts is not None:
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
        """Returns the same task for some of the clients, with the inputs of those alone.

        Args:
            clients: Consecutive clients of the call.
            first: The index of the first of them.
            exchange: Where their inputs come from; None: this task.
        """
        if exchange is None and self.occurrences is None and self.inputs is NO_INPUTS:
            return self
        last = first + len(clients)
        inputs = self.inputs.of(first, last) if exchange is None else exchange.send(clients)
        occurrences = None if self.occurrences is None else self.occurrences[first:last]
        return replace(self, inputs=inputs, occurrences=occurrences)
