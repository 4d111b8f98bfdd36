"""Centralized training: the baseline that federated averaging is measured against.

The examples of the cohort are pooled, and one client that holds them all takes the local steps:

    w <- y, where y is the result of the client optimizer's steps from w over the pooled batches

A round costs as much as a federated round: it processes as many examples, for as many local epochs,
in batches of the same size. --max-examples limits the pool to as many examples as the clients
together would process with this limit. With --clients all, a round trains `epochs` epochs on all
data. With SGD as the client optimizer, a run of R rounds equals R * epochs epochs of ordinary
training. The server optimizer receives the pool's model delta as the mean delta; SGD with rate 1
(the default) adds it unchanged. The weight of the only client has no effect.

The pooled examples are in cohort order, and are shuffled like the examples of a client named
"centralized". The shuffle buffer should be `full`; with a smaller buffer the examples of a batch
come from few clients.

Differences from an ordinary training loop: the client optimizer's state is reset each round, so
momentum builds up anew; and with the repeat-shuffle pipeline no batch spans two rounds.
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

POOL = "centralized"  # the pool's client id, part of the key of its shuffle


@dataclass(frozen=True)
class PooledSteps:
    """One client that holds the examples of the whole cohort takes the local steps.

    Attributes:
        optimizer: The client optimizer.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the pool once; an empty cohort remains empty."""
        trained = replace(call, clients=pool(call.clients)).train(self.optimizer)
        return WorkResult(trained, dict(state))


def pool(clients: Iterable[BatchedDataset]) -> tuple[BatchedDataset, ...]:
    """Returns one client with copies of all clients' examples; empty if there are no clients.

    If the clients store pixels in different formats, the pool's pixels are decoded to float32.
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
