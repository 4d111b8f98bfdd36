"""Local training only: the baseline in which clients share nothing.

Every client k keeps its own model w_k, which starts as the initial global model w_0. A client of
the cohort takes local steps from its own model and keeps the result:

    w_k <- y, where y is the result of the client optimizer's steps from w_k over its batches

The global model never changes. Each client is evaluated with its own model; a client that never
took part has the initial one. A comparison with federated averaging under the same options shows
what a client gains from federation, since both take the same number of local steps in each round.

The differences d_k = w_k - w_0 are stored as client states, in float32. The client optimizer's
state is reset each round, as in the federated algorithms. A client whose delta is not finite keeps
its model. If a client appears twice in a cohort, it trains twice from the same model, and the
second result is kept. Nothing is weighted, aggregated or applied: client weights only decide which
rounds count as empty, and options of the server and of aggregation are rejected.
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
    """Each client takes local steps from its own model and keeps the result.

    Attributes:
        optimizer: The client optimizer.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns an empty state: the d_k are in the `evaluated` part."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once, each client from its own model."""
        assert call.evaluated is not None
        assert call.evaluated.own_models is not None
        models = OwnModels(call.evaluated.own_models.next_version(), call.params)
        trained = call.train(self.optimizer, exchange=models)
        return WorkResult(trained, dict(state), Evaluated(own_models=models.next.after))


class OwnModels:
    """The d_k of the current round, as a `ClientExchange`."""

    num_vectors = 1
    receives = True

    def __init__(self, states: NextClientStates, params: NDArray[np.float32]) -> None:
        """Takes the version that the round writes, and the initial model [num_params]."""
        self.next = states
        self._params = params
        # The d_k before the round, for each piece of the cohort that is sent but not yet received.
        self._before: deque[list[NDArray[np.float32]]] = deque()

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the clients' models before the round: float32 [num_clients, num_params]."""
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
        """Stores the new d_k of some clients."""
        rows = zip(clients, self._before.popleft(), deltas, stats, strict=True)
        for client, before, delta, stat in rows:
            if not (stat["is_finite"] and stat["num_batches"]):
                continue
            with np.errstate(over="ignore"):
                delta += before
            if np.isfinite(delta).all():
                self.next.write(client.client.client_id, delta)
