"""Centralized training: the baseline that federated averaging is measured against.

The examples of the cohort are pooled, and one client that holds them all takes the local steps:

    w <- y, where y comes from w by the client optimizer over the pooled batches

A round costs what a federated round costs: as many local epochs, so as many examples processed, in
batches of the same size; --max-examples bounds the pool as it bounds its clients together. With
--clients all this is SGD on all data, `epochs` epochs a round; with SGD as the client optimizer a
run of R rounds is one run of R * epochs epochs. The server optimizer takes the pool's model delta
as it would take a mean; SGD with rate 1 (the default) takes it as it is. The weight of the one
client is of no consequence.

Pooled examples stand in the order of the cohort and are shuffled as one client's of the name
"centralized": the shuffle buffer should be `full`, or else a batch holds neighbours, and so few
clients'.

Where it differs from a training loop of its own: the client optimizer starts afresh each round, so
momentum is built up again, and with the repeat-shuffle pipeline batches end with a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.optimizers.optimizer import Optimizer

POOL = "centralized"  # names the pool in the shuffle's key


@dataclass(frozen=True)
class PooledSteps:
    """One client that holds the examples of the whole cohort takes the local steps.

    Attributes:
        optimizer: The client optimizer.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the pool once; a cohort of nobody stays one."""
        trained = replace(call, clients=pool(call.clients)).train(self.optimizer)
        return WorkResult(trained, dict(state))


def pool(clients: Iterable[BatchedDataset]) -> tuple[BatchedDataset, ...]:
    """Returns the one client that holds the examples of all, copied; none of none.

    Clients whose pixels are stored unlike each other are decoded: float32.
    """
    members = list(clients)
    if not members:
        return ()
    first = members[0]
    parts = [each.client for each in members]
    is_alike = all(_storage(each) == _storage(parts[0]) for each in parts)
    pooled = ClientDataset(
        client_id=POOL,
        pixels=np.concatenate([each.pixels if is_alike else each.images() for each in parts]),
        labels=np.concatenate([each.labels for each in parts]),
        scale=parts[0].scale if is_alike else 1.0,
        offset=parts[0].offset if is_alike else 0.0,
        source=parts[0].source,
    )
    plan = first.plan
    if plan.max_examples is not None:
        num_visits = sum(each.plan.num_visits(len(each.client)) for each in members)
        plan = replace(plan, max_examples=max(num_visits, 1))
    return (BatchedDataset(pooled, plan, first.seed),)


def _storage(client: ClientDataset) -> tuple[Any, ...]:
    return client.pixels.dtype, client.scale, client.offset
