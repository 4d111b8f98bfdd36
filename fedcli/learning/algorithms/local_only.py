"""Local training only: the baseline in which nothing is shared, and no client learns of another.

Every client k keeps a model of its own, w_k, which starts as the initial global model. A client of
the cohort takes its local steps from its own model and keeps what they make of it:

    w_k <- y, where y comes from w_k by the client optimizer over the client's batches

The global model stays as it began. What is evaluated on a client is the client's own model; one
that never took part has the initial one. Beside federated averaging with the same options it tells
what federation is worth to a client: both take the same local steps, round by round.

Kept is d_k = w_k - w_0, float32, in the file of what clients keep. The client optimizer starts
afresh each round, as in the federated algorithms. A client whose delta is not finite keeps its
model. One that comes twice in a cohort trains twice from the model it had; the second is kept.
There is nothing to weigh, aggregate or apply: client weights only decide which rounds count as
empty, and options of the server and of aggregation are refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.client_states import NextClientStates
from fedcli.learning.engines.task import ClientInputs
from fedcli.learning.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class OwnSteps:
    """Each client takes the local steps of an optimizer from its own model, and keeps it.

    Attributes:
        optimizer: The client optimizer.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns nothing: the d_k are what is evaluated."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once, each client from its own model."""
        assert call.evaluated is not None
        assert call.evaluated.own_models is not None
        models = OwnModels(call.evaluated.own_models.next_version(), call.params)
        trained = call.train(self.optimizer, exchange=models)
        return WorkResult(trained, dict(state), Evaluated(own_models=models.next.after))


class OwnModels:
    """The d_k of a round under way; a `ClientExchange`."""

    num_vectors = 1
    receives = True

    def __init__(self, states: NextClientStates, params: NDArray[np.float32]) -> None:
        """Takes the version to be written, and the initial model [num_params]."""
        self.next = states
        self._params = params
        # The d_k that the pieces which are not received yet started from.
        self._before: deque[list[NDArray[np.float32]]] = deque()

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns their models as they were before the round: float32 [num_clients, num_params]."""
        num_params = len(self._params)
        shape = len(clients), num_params
        starts = np.empty(shape, np.float32) if self._before else self.next.memory(*shape)
        ids = [each.client.client_id for each in clients]
        before = [self.next.before.read(each, num_params) for each in ids]
        for start, vector in zip(starts, before, strict=True):
            np.add(self._params, vector, out=start)
        self._before.append(before)
        return ClientInputs(starts=starts)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Keeps what the steps of those clients made of their models."""
        rows = zip(clients, self._before.popleft(), deltas, stats, strict=True)
        for client, before, delta, stat in rows:
            if not (stat["is_finite"] and stat["num_batches"]):
                continue
            with np.errstate(over="ignore"):
                delta += before
            if np.isfinite(delta).all():
                self.next.write(client.client.client_id, delta)
