"""FedNova: clients that took more local steps than others do not pull harder.

Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, https://arxiv.org/abs/2007.07481.

Client k of the cohort trains as in federated averaging. Its model delta y_k - w is -rate times a
sum of its gradients, each with a factor; let a_k be the sum of these factors: the number of steps
tau_k for plain SGD, and for momentum m

    a_k = (tau_k - m (1 - m^tau_k) / (1 - m)) / (1 - m)

The server takes, with shares q_k of the clients' weights and tau_eff = sum_k q_k a_k,

    mean_delta = tau_eff sum_k q_k (y_k - w) / a_k

and gives -mean_delta to the server optimizer, as in federated averaging, which this is where all
a_k are equal. Nesterov's momentum and rates that follow the local step have their a_k as well;
other client optimizers are no sum of gradients and are refused. Weights: by examples processed (the
default), as in the paper, where they are the clients' shares of all examples, or each the same. An
aggregator's bounds hold for the deltas as clients make them, before they are divided.

Where we differ from the paper: q_k are shares of a round's cohort, which is drawn anew; the server
optimizer may be any, there it is SGD at rate 1; local steps with a proximal term, which have an a_k
as well, are left out; a client that takes no step has a_k = 0 and counts in no sum.
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
    """Local steps whose sum is divided by how many they count as."""

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def __post_init__(self) -> None:
        """Refuses a client optimizer that is not SGD."""
        if self.optimizer.name != "sgd":
            raise ConfigError(
                f"fednova with client optimizer {self.optimizer.name}: its steps are no sum of "
                "gradients; choose sgd, with momentum or without"
            )

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once."""
        steps = cache(self.optimizer.at(call.round_num).unit_steps)
        trained = call.train(self.optimizer, exchange=_StepShares(steps))
        weights = trained.stats["weight"]
        counted = [steps(num_batches) for num_batches in trained.stats["num_batches"].tolist()]
        if not trained.weight_sum:
            return WorkResult(trained, dict(state))
        effective = float(np.dot(weights, counted)) / trained.weight_sum
        return WorkResult(trained.scaled(effective), dict(state))


@dataclass(frozen=True)
class _StepShares:
    """Divides each client's delta by a_k; a `ClientExchange`.

    Attributes:
        unit_steps: Returns a_k of so many local steps.
    """

    num_vectors: ClassVar[int] = 0
    receives: ClassVar[bool] = False

    unit_steps: Callable[[int], float]

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns 1 / a_k, and 0 of a client that takes no step."""
        num_steps = (each.plan.num_batches(len(each.client)) for each in clients)
        counted = np.array([self.unit_steps(each) for each in num_steps])
        factors: NDArray[np.float64] = np.zeros(len(clients))
        np.divide(1.0, counted, out=factors, where=counted > 0.0)
        return ClientInputs(delta_factors=factors)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Is not called."""
