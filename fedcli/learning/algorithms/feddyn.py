"""FedDyn: a dynamic regularizer of each client's loss, which aligns the clients' optima.

Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, https://arxiv.org/abs/2111.04263.

Each client k keeps a gradient h_k, and the server keeps their mean h; all start at 0. From the
global parameters w, client k of the cohort S minimises

    F_k(y) - <h_k, y> + alpha/2 * |y - w|^2,     then  h_k <- h_k - alpha (y - w)

by local steps with the gradients g - h_k + alpha (y - w), and sends its model delta. For a
population of N clients the server computes

    h <- h - alpha/N sum_{k in S} (y_k - w),     w <- mean_{k in S} y_k - h / alpha

The server optimizer receives the old w minus the new one as a gradient, so the paper's step is SGD
at rate 1. As in the authors' code, the weights that are evaluated and exported are not w but the
last mean of the y_k.

Weights: all clients of the cohort have weight 1, as in the paper. Weights by examples are
rejected, since h is the unweighted mean of the h_k. Clipping applies to g alone. A client
without examples, or whose delta is not finite, keeps its h_k. An aggregator's bounds apply to the
model deltas, before h / alpha is subtracted from each; the evaluated weights come from the
aggregator's mean of these deltas.

Differences from the authors' code: alpha is the same for every client (the authors divide it by the
client's share of examples), and gradients are clipped only on request (the authors always clip them
to norm 10).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepKind
from fedcli.dataclass import dataclass
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.algorithms.own_vectors import OwnVectors
from fedcli.learning.client_states import ClientStates
from fedcli.learning.optimizers.optimizer import Optimizer

# Keys of the state. They are stored in checkpoints, so they never change: "bend" holds h,
# the mean of the clients' gradients, and "client_bends" holds the gradient h_k of each client.
_MEAN, _BY_CLIENT = "bend", "client_bends"


@dataclass(frozen=True)
class FedDynWork:
    """Local steps on regularized losses, and the update of h and of the h_k.

    Attributes:
        optimizer: The client optimizer.
        alpha: The strength of the proximal term, above 0.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer
    alpha: float

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns h, float64 [num_params], and the h_k."""
        return {_MEAN: np.zeros(len(params)), _BY_CLIENT: ClientStates()}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once."""
        population_size = call.population_size
        nothing = np.zeros(len(call.params), np.float32)
        gradients = OwnVectors(state[_BY_CLIENT], nothing, lambda _: -self.alpha)
        terms = (StepKind.PROXIMAL, (self.alpha,)), (StepKind.LINEAR, ())
        trained = call.train(self.optimizer, terms, exchange=gradients)
        mean_gradient = np.divide(gradients.change, population_size, out=gradients.change)
        mean_gradient += state[_MEAN]
        mean_params = call.params + call.mean_delta(trained)
        is_finite = bool(np.isfinite(mean_params).all())
        return WorkResult(
            trained.shifted(-(mean_gradient / self.alpha)),
            {_MEAN: mean_gradient, _BY_CLIENT: gradients.after},
            Evaluated(mean_params) if is_finite else call.evaluated,
        )
