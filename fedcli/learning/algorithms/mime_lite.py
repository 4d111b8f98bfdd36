"""Mime Lite: local steps with the server's optimizer state.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the centralized barrier for
cross-device federated learning", NeurIPS 2021, https://arxiv.org/abs/2008.03606; TFF
learning/algorithms/mime.py, which is Mime Lite.

The client optimizer is the base optimizer, whose state s is kept by the server. Client k of the
cohort starts each local step from s and discards the step's new state,

    (_, y) <- base(s, y, g(y; b))

and sends its model delta and the mean gradient G_k of its data at the global parameters w. The
server passes the mean delta to its own optimizer as in federated averaging, and updates s with the
mean gradient:

    (s, _) <- base(s, 0, sum_k p_k G_k / sum_k p_k)

If the base optimizer clips gradients, it clips the gradients of the local steps and the mean
gradient. p_k is the number of examples processed (the default), or 1. The first round starts from
s = 0, so momentum has an effect from the second round on. The gradients cost a second pass over the
data.

Differences from TFF: a client whose delta is not finite is left out of both means (TFF gives its
gradient weight 0, and a NaN times 0 makes s NaN). A client with a finite delta and a non-finite
gradient counts in the mean delta only. The aggregator's bounds apply to deltas only. Metrics are
those of the local steps, as in TFF.
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
    """Local steps from a frozen state, then the gradients that update it.

    Attributes:
        base: The base optimizer.
    """

    num_passes: ClassVar[int] = 2

    base: Optimizer

    def __post_init__(self) -> None:
        """Rejects a base optimizer whose state cannot be frozen."""
        check_freezable("mime-lite", self.base)

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the base optimizer's state."""
        return self.base.init(params)

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort, then computes the gradients of clients whose delta was finite."""
        trained = call.train(self.base, frozen=frozen_slots(state))
        is_finite = trained.stats["is_finite"] != 0
        clients = call.clients
        # The other clients stay in the cohort without examples. If they were left out, further
        # copies of the same client would have other random numbers.
        if not is_finite.all():
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
            next_state = self.base.update(mean_gradient, dict(state), zeros)[1]
        return WorkResult(trained, next_state)
