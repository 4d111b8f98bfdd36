"""Local training only: the baseline in which nothing is shared, and no client learns of another.

Every client k keeps a model of its own, w_k, which starts as the initial global model. A client of
the cohort takes its local steps from its own model and keeps what they make of it:

    w_k <- y, where y comes from w_k by the client optimizer over the client's batches

The global model stays as it began. What is evaluated on a client is the client's own model; one
that never took part has the initial one. Beside federated averaging with the same options it tells
what federation is worth to a client: both take the same local steps, round by round.

Kept is d_k = w_k - w_0, float32, in the file of what clients keep. The client optimizer starts
afresh each round, as in the federated algorithms. A client whose delta is not finite keeps its
model. One that comes twice in a cohort goes on from where it was, over the same order of examples.
There is nothing to weigh, aggregate or apply: client weights only decide which rounds count as
empty, and options of the server and of aggregation are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.aggregators import StreamingAggregator
from fedcli.algorithms.base import OWN_MODELS, Algorithm
from fedcli.algorithms.client_work import CohortCall
from fedcli.batches import BatchedDataset
from fedcli.client_states import ClientStates, NextClientStates
from fedcli.engine import CohortResult, PerClient
from fedcli.optimizers import Optimizer


@dataclass(frozen=True)
class OwnSteps:
    """Each client takes the local steps of an optimizer from its own model, and keeps it.

    Attributes:
        optimizer: The client optimizer.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the d_k."""
        return {OWN_MODELS: ClientStates()}

    def run(
        self, call: CohortCall, state: Mapping[str, Any]
    ) -> tuple[CohortResult, dict[str, Any]]:
        """Trains the cohort once, client by client, since no two start from the same model."""
        models = _Models(state[OWN_MODELS].next_version())
        results = [models.train(call, each, self.optimizer) for each in call.clients]
        if not results:
            nobody = replace(call, clients=()).train(self.optimizer)
            return nobody, {OWN_MODELS: models.next.after}
        return CohortResult(
            delta_sum=np.zeros(len(call.params)),
            weight_sum=sum(each.weight_sum for each in results),
            stats=np.concatenate([each.stats for each in results]),
        ), {OWN_MODELS: models.next.after}


@dataclass(frozen=True)
class _Models:
    """The d_k of a round under way; `moved` are those of clients that have trained."""

    next: NextClientStates
    moved: set[str] = field(default_factory=set)

    def train(self, call: CohortCall, client: BatchedDataset, optimizer: Optimizer) -> CohortResult:
        """Trains one client and keeps its model."""
        client_id, num_params = client.client.client_id, len(call.params)
        states = self.next.after if client_id in self.moved else self.next.before
        before = states.read(client_id, num_params)

        def receive(
            clients: Sequence[BatchedDataset], deltas: NDArray[np.float32], stats: NDArray[np.void]
        ) -> None:
            with np.errstate(over="ignore"):
                after = before + deltas[0]
            if stats["is_finite"][0] and stats["num_batches"][0] and np.isfinite(after).all():
                self.next.write(client_id, after)
                self.moved.add(client_id)

        # No tuple, which the engine would prepare as a cohort that comes again.
        alone = replace(call, params=call.params + before, clients=[client])
        return alone.train(optimizer, per_client=PerClient(receive=receive))


def build(
    client_optimizer: Optimizer,
    server_optimizer: Optimizer,
    *,
    weighting: str,
    aggregator: StreamingAggregator,
) -> Algorithm:
    """Returns local training with these parts; it has no options of its own."""
    work = OwnSteps(client_optimizer)
    return Algorithm(work, weighting, aggregator, server_optimizer)
