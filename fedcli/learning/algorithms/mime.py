"""Mime: local steps with the server's optimizer state and variance-reduced gradients.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the centralized barrier for
cross-device federated learning", NeurIPS 2021, https://arxiv.org/abs/2008.03606; FedJAX
algorithms/mime.py.

First each client k of the cohort sends the mean gradient G_k of its data at the global parameters
w; their weighted mean is G. Then client k takes local steps with the base optimizer, each with a
corrected gradient,

    (_, y) <- base(s, y, g(y; b) - g(w; b) + G)

and sends its model delta. Every step starts from the server's state s; the new state of the step is
discarded. The server passes the mean delta to its own optimizer as in federated averaging, and
updates s with the mean gradient: (s, _) <- base(s, 0, G).

If the base optimizer clips gradients, it clips corrected gradients and G. Weights: by examples
processed (the default), or all the same. The first round starts from s = 0, so momentum has an
effect from the second round on. With one full batch per client and one step, g(y; b) - g(w; b) is
0. G costs one more pass over the data, and g(w; b) one more gradient per step. `mime_lite` leaves
out the correction.

A client whose G_k is not finite is left out of G, and trains with the G of the others. If no G_k is
finite, no client trains and s does not change. The aggregator's bounds apply to deltas only.

Differences from FedJAX: the server optimizer can be any (FedJAX's is SGD); G covers the batches of
the local steps (FedJAX makes separate batches); and gradients that are not finite are left out of
G. In the paper all clients of the cohort have the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepKind
from fedcli.dataclass import dataclass
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult, check_freezable
from fedcli.learning.engines.task import ClientInputs
from fedcli.learning.optimizers.optimizer import Optimizer, frozen_slots


@dataclass(frozen=True)
class MimeWork:
    """The mean gradient, then local steps from a frozen state with corrected gradients.

    Attributes:
        base: The base optimizer.
    """

    num_passes: ClassVar[int] = 2

    base: Optimizer

    def __post_init__(self) -> None:
        """Rejects a base optimizer whose state cannot be frozen."""
        check_freezable("mime", self.base)

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the base optimizer's state."""
        return self.base.init(params)

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Computes the gradients of the cohort, then trains it."""
        gradients = call.for_gradients().take_gradients()
        mean_gradient = -gradients.weighted_mean()
        if not np.isfinite(mean_gradient).all():
            # The aggregator's mean is not finite either, so the server rejects the round.
            return WorkResult(gradients, dict(state))

        trained = call.train(
            self.base,
            frozen=frozen_slots(state),
            first=((StepKind.ANCHOR, ()), (StepKind.LINEAR, ())),
            inputs=ClientInputs(linear=mean_gradient[np.newaxis]),
        )
        zeros = np.zeros_like(call.params)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            next_state = self.base.update(mean_gradient, dict(state), zeros)[1]
        return WorkResult(trained, next_state)
