"""SCAFFOLD: local steps corrected by control variates, which reduce client drift.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, https://arxiv.org/abs/1910.06378, Algorithm 1 with option II.

The server keeps a control variate c, and each client k keeps its own c_k; all start at 0. From the
global parameters w, client k of the cohort S takes tau_k local steps. The sum R_k of their rates is
tau_k times the client learning rate, unless a schedule counts local steps.

    y <- y - rate * (g(y; b) - c_k + c),     then  c_k' = c_k - c + (w - y) / R_k

The client sends its model delta y - w and c_k' - c_k. The server averages the deltas as in
federated averaging, and for a population of N clients computes

    c <- c + (1/N) sum_{k in S} (c_k' - c_k)

Only with plain SGD is c_k' a mean of gradients, so other client optimizers and momentum are
rejected. Clipping applies to g alone. Weights: all clients of the cohort have weight 1, as in the
paper. Weights by examples are rejected, since c is the unweighted mean of the c_k. A client that
takes no step, or whose delta is not finite, keeps its c_k. A client that appears twice in a cohort
starts both times from the same c_k, and the second c_k' is stored. An aggregator's bounds apply to
model deltas only.

We follow the paper. In pfl-research c_k has the opposite sign; in Flower's niid_bench c_k starts as
the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepKind
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.algorithms.own_vectors import OwnVectors
from fedcli.learning.client_states import ClientStates
from fedcli.learning.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class ScaffoldWork:
    """Local steps with control variates, and the update of c and of the c_k.

    Attributes:
        optimizer: The client optimizer, SGD without momentum.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer

    def __post_init__(self) -> None:
        """Rejects a client optimizer that is not plain SGD."""
        name = self.optimizer.name
        if name != "sgd" or self.optimizer.options["momentum"]:
            what = name if name != "sgd" else "sgd with momentum"
            raise ConfigError(
                f"scaffold with client optimizer {what} is not supported: control variates are "
                "means of gradients only with plain sgd; choose sgd with momentum=0"
            )

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns c, float64 [num_params], as `control`, and the c_k as `client_controls`."""
        return {"control": np.zeros(len(params)), "client_controls": ClientStates()}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once."""
        population_size = call.population_size
        optimizer = self.optimizer.at(call.round_num)

        def factor_of(stat: np.void) -> float | None:
            rate_sum = optimizer.rate_sum(int(stat["num_batches"]))
            return -1.0 / rate_sum if rate_sum > 0.0 else None

        control = state["control"]
        controls = OwnVectors(state["client_controls"], control.astype(np.float32), factor_of)
        trained = call.train(self.optimizer, ((StepKind.LINEAR, ()),), exchange=controls)
        next_control = np.divide(controls.change, population_size, out=controls.change)
        next_control += control
        return WorkResult(trained, {"control": next_control, "client_controls": controls.after})
