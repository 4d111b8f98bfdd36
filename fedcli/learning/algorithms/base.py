"""The parts of an algorithm, and the server step at the end of each round."""

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
    """A federated algorithm, described by the parts in which algorithms differ.

    Attributes:
        entry: Its row of the table of algorithms.
        client_work: The work of the clients of a cohort in a round.
        weighting: Client weights: `num-examples`, the number of processed examples, or `uniform`.
        aggregator: Combines the deltas of a cohort into one mean delta.
        server_optimizer: Updates the global model with the pseudo-gradient.
        ema_decay: Decay of an exponential moving average of the global weights. The average is
            evaluated instead of the weights. None for no average.
        local_norms: What each client keeps of batch norms: one of `LOCAL_NORMS`. None: nothing.
    """

    entry: AlgorithmEntry
    client_work: ClientWork
    weighting: str
    aggregator: Aggregator
    server_optimizer: Optimizer
    ema_decay: float | None = None
    local_norms: str | None = None


def apply_mean_delta(
    server_optimizer: Optimizer,
    params: NDArray[np.float32],
    opt_state: Mapping[str, Any],
    mean_delta: NDArray[np.float32],
    averaged: slice | NDArray[np.int64],
) -> tuple[NDArray[np.float32], dict[str, Any], dict[str, Any]]:
    """Returns parameters, optimizer state and finalizer metrics after one server step.

    A mean delta with a NaN or an infinity is rejected: parameters and state do not change and
    `update_non_finite` is 1 (TFF learning/templates/apply_optimizer_finalizer.py). Some parameters,
    such as the moving statistics of batch norms, become the mean of the clients' values; the
    optimizer and its learning rate do not affect them.

    Args:
        server_optimizer: The optimizer.
        params: Global parameters [num_params].
        opt_state: The optimizer's state.
        mean_delta: Mean of client minus server parameters [num_params].
        averaged: The indices of the parameters that become the mean of the clients' values.
    """
    if not np.isfinite(mean_delta).all():
        return params, dict(opt_state), {"update_non_finite": 1}
    pseudo_gradient = -mean_delta
    pseudo_gradient[averaged] = 0.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        updates, next_state = server_optimizer.update(pseudo_gradient, dict(opt_state), params)
        stepped = params + updates
        stepped[averaged] = params[averaged] + mean_delta[averaged]
        return stepped, next_state, {"update_non_finite": 0}
