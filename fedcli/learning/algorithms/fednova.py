"""FedNova: normalised averaging, so that clients with more local steps do not dominate.

Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, https://arxiv.org/abs/2007.07481.

Client k of the cohort trains as in federated averaging. Its model delta y_k - w is -rate times a
weighted sum of its gradients. Let a_k be the sum of these weights. For plain SGD it is the number
of steps tau_k; for momentum m it is

    a_k = (tau_k - m (1 - m^tau_k) / (1 - m)) / (1 - m)

With q_k the client's share of the cohort's weights and tau_eff = sum_k q_k a_k, the server computes

    mean_delta = tau_eff sum_k q_k (y_k - w) / a_k

and passes -mean_delta to the server optimizer. If all a_k are equal this is federated averaging.
There is also an a_k for Nesterov's momentum and for schedules by local step. Other client
optimizers do not add up gradients and are rejected. Weights: by examples processed (the default),
or all the same; in the paper they are the clients' shares of all examples. An aggregator's bounds
apply to the clients' deltas before the division by a_k.

Differences from the paper: q_k are shares within the cohort of the round; the server optimizer can
be any (the paper's is SGD at rate 1); local steps with a proximal term are not supported; and a
client that takes no step has a_k = 0 and is left out of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.engines.task import ClientInputs
from fedcli.learning.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class FedNovaWork:
    """Local steps, with each delta divided by a_k.

    Attributes:
        optimizer: The client optimizer, SGD with or without momentum.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def __post_init__(self) -> None:
        """Rejects a client optimizer that is not SGD."""
        if self.optimizer.name != "sgd":
            raise ConfigError(
                f"fednova with client optimizer {self.optimizer.name} is not supported: its steps "
                "are not a sum of gradients; choose sgd, with or without momentum"
            )

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once."""
        steps = cache(self.optimizer.at(call.round_num).unit_steps)
        trained = call.train(self.optimizer, exchange=_StepShares(steps))
        weights = trained.stats["weight"]
        weight_sums = [steps(each) for each in trained.stats["num_batches"].tolist()]  # the a_k
        if not trained.weight_sum:
            return WorkResult(trained, dict(state))
        effective = float(np.dot(weights, weight_sums)) / trained.weight_sum
        return WorkResult(trained.scaled(effective), dict(state))


@dataclass(frozen=True)
class _StepShares:
    """Divides each client's delta by a_k; a `ClientExchange`.

    Attributes:
        unit_steps: Returns a_k for a number of local steps.
    """

    num_vectors: ClassVar[int] = 0
    receives: ClassVar[bool] = False

    unit_steps: Callable[[int], float]

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the factors 1 / a_k, and 0 for a client that takes no step."""
        num_steps = (each.plan.num_batches(len(each.client)) for each in clients)
        weight_sums = np.array([self.unit_steps(each) for each in num_steps])
        factors: NDArray[np.float64] = np.zeros(len(clients))
        np.divide(1.0, weight_sums, out=factors, where=weight_sums > 0.0)
        return ClientInputs(delta_factors=factors)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """This is never called, because `receives` is False."""
