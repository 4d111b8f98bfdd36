"""What an algorithm is made of, and the server step that all of them end with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.algorithms.client_work import ClientWork
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings.tables import AlgorithmEntry


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm, as the parts in which algorithms differ.

    Attributes:
        entry: Its row of the table.
        client_work: What the clients of a cohort do in a round.
        weighting: Client weights, `num-examples` (processed) or `uniform`.
        aggregator: Makes one mean delta of a cohort's.
        server_optimizer: Takes the pseudo-gradient and moves the global model.
        ema_decay: Share that a running mean of the global weights keeps of itself in a round; it is
            what is evaluated. None: there is none.
    """

    entry: AlgorithmEntry
    client_work: ClientWork
    weighting: str
    aggregator: Aggregator
    server_optimizer: Optimizer
    ema_decay: float | None = None


def apply_mean_delta(
    server_optimizer: Optimizer,
    params: NDArray[np.float32],
    opt_state: Mapping[str, Any],
    mean_delta: NDArray[np.float32],
) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
    """Returns parameters, optimizer state and finalizer metrics after one server step.

    A mean delta that holds a NaN or infinity is rejected: parameters and state stay as they were
    and `update_non_finite` is 1 (TFF learning/templates/apply_optimizer_finalizer.py).

    Args:
        server_optimizer: The optimizer.
        params: Global parameters [num_params].
        opt_state: Its state.
        mean_delta: Mean of client minus server parameters [num_params].
    """
    if not np.isfinite(mean_delta).all():
        return params, dict(opt_state), {"update_non_finite": 1}
    pseudo_gradient = -mean_delta
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        updates, next_state = server_optimizer.update(pseudo_gradient, dict(opt_state), params)
        return params + updates, next_state, {"update_non_finite": 0}
