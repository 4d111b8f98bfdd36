"""Mime: local steps with the optimizer state of the server, and gradients corrected to its mean.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the centralized barrier for
cross-device federated learning", NeurIPS 2021, https://arxiv.org/abs/2008.03606; FedJAX
algorithms/mime.py.

First each client k of the cohort sends the mean gradient G_k of its data at the global parameters
w; their weighted mean is G. Then it takes local steps from the server's state s of the base
optimizer, which the step forgets, each with a corrected gradient,

    (_, y) <- base(s, y, g(y; b) - g(w; b) + G)

and sends its model delta. The server takes the mean delta to its own optimizer as in federated
averaging, and moves the state by the same gradient: (s, _) <- base(s, 0, G).

A base optimizer that clips gradients clips the corrected ones, and G. Weights: by examples
processed (the default), or each the same. The first round starts from s = 0, so momentum shows from
the second round on. With one full batch a client, and one step, g(y; b) - g(w; b) is 0. G costs a
pass over the data, g(w; b) another gradient a step. `mime_lite` is without the correction.

A client whose G_k is not finite counts in no G and trains with the others'; the aggregator's bounds
hold for deltas alone. Where no G is finite, nobody trains and the state stays.

Where we differ from FedJAX: the server optimizer may be any, there it is SGD; G is taken over the
batches of the local steps, there over some of its own; a gradient that is not finite leaves G. From
the paper: in it every client of the cohort counts the same.
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
    """The mean gradient, then local steps from a frozen state with gradients corrected to it.

    Attributes:
        base: The base optimizer.
    """

    num_passes: ClassVar[int] = 2

    base: Optimizer

    def __post_init__(self) -> None:
        """Refuses a base optimizer whose state cannot be frozen."""
        check_freezable("mime", self.base)

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the base optimizer's state."""
        return self.base.init(params)

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Takes the gradients of the cohort, then trains it."""
        gradients = call.for_gradients().take_gradients()
        mean_gradient = -gradients.weighted_mean()
        if not np.isfinite(mean_gradient).all():
            return WorkResult(
                gradients, dict(state)
            )  # their sum has no mean, so the server rejects it

        trained = call.train(
            self.base,
            frozen=frozen_slots(state),
            first=((StepKind.ANCHOR, ()), (StepKind.LINEAR, ())),
            inputs=ClientInputs(linear=mean_gradient[np.newaxis]),
        )
        zeros = np.zeros_like(call.params)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            moved = self.base.update(mean_gradient, dict(state), zeros)[1]
        return WorkResult(trained, moved)
