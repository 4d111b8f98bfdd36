"""Mime Lite: local steps with the optimizer state of the server.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the centralized barrier for
cross-device federated learning", NeurIPS 2021, https://arxiv.org/abs/2008.03606; TFF
learning/algorithms/mime.py, which is Mime Lite.

The client optimizer is the base optimizer, whose state s lives at the server. Client k of the
cohort takes each local step from that state and forgets what the step makes of it,

    (_, y) <- base(s, y, g(y; b))

and besides sends the mean gradient G_k of its data at the global parameters w. The server takes the
mean model delta to its own optimizer as in federated averaging, and moves the state by the mean
gradient:

    (s, _) <- base(s, 0, sum_k p_k G_k / sum_k p_k)

A base optimizer that clips gradients clips those of the local steps, and the mean gradient. p_k is
the number of examples processed (the default), or 1. The first round starts from s = 0, so
momentum shows from the second round on. Gradients cost a second pass over the data.

Where we differ from TFF: a client whose delta is not finite counts in neither mean (TFF multiplies
its gradient by weight 0, and NaN * 0 poisons s), one whose gradient alone is not finite counts in
the mean delta only; the aggregator's bounds hold for deltas alone. Metrics are those of the local
steps, as in TFF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult, check_freezable
from fedcli.learning.optimizers.optimizer import Optimizer, frozen_slots


@dataclass(frozen=True)
class MimeLiteWork:
    """Local steps from a frozen state, then the gradients that move it.

    Attributes:
        base: The base optimizer.
    """

    num_passes: ClassVar[int] = 2

    base: Optimizer

    def __post_init__(self) -> None:
        """Refuses a base optimizer whose state cannot be frozen."""
        check_freezable("mime-lite", self.base)

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the base optimizer's state."""
        return self.base.init(params)

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort, then takes the gradients of those whose delta was finite."""
        trained = call.train(self.base, frozen=frozen_slots(state))
        is_finite = trained.stats["is_finite"] != 0
        clients = call.clients
        if not is_finite.all():  # kept in place, so that the other copies of a client stay theirs
            clients = (
                each if is_kept else each.without_examples()
                for each, is_kept in zip(call.clients, is_finite.tolist(), strict=True)
            )
        gradients = replace(call.for_gradients(), clients=clients).take_gradients()
        mean_gradient = -gradients.weighted_mean()
        if not np.isfinite(mean_gradient).all():
            return WorkResult(trained, dict(state))
        zeros = np.zeros_like(call.params)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            moved = self.base.update(mean_gradient, dict(state), zeros)[1]
        return WorkResult(trained, moved)
