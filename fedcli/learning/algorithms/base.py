"""What an algorithm is made of, and the server step that all of them end with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.learning.aggregators.contract import StreamingAggregator
from fedcli.learning.algorithms.client_work import ClientWork
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.settings.tables import AlgorithmEntry

# In the client work's or the finalizer's part of a server state: the weights [num_params] that are
# evaluated and exported in place of the global model's.
EVALUATED_WEIGHTS = "evaluated_weights"
# In the client work's part, `ClientStates`: how the model that each client is evaluated with, its
# own, differs from the global one.
OWN_MODELS = "own_models"
NO_COMMON_MODEL = (
    "each client of a local-only run has a model of its own and there is none for all: fedcli eval "
    "scores them; there is nothing to export, fine-tune or ask for predictions"
)
EMA_UPDATES = "ema_updates"


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
    aggregator: StreamingAggregator
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


def start_ema(params: NDArray[np.float32]) -> dict[str, Any]:
    """Returns what the running mean of weights [num_params] adds to the finalizer's state."""
    return {EVALUATED_WEIGHTS: params.copy(), EMA_UPDATES: 0}


def move_ema(decay: float, part: Mapping[str, Any], params: NDArray[np.float32]) -> dict[str, Any]:
    """Returns that part after one more accepted update of the weights.

    The mean e moves by `(1 - d) (params - e)`, d being `decay` or, while there were few updates j
    before, (1 + j) / (10 + j): pfl-research, pfl/model/ema.py.
    """
    num_updates = part[EMA_UPDATES]
    share = 1.0 - min(decay, (1 + num_updates) / (10 + num_updates))
    mean = part[EVALUATED_WEIGHTS].astype(np.float64)
    mean += share * (params - mean)
    return {EVALUATED_WEIGHTS: mean.astype(np.float32), EMA_UPDATES: num_updates + 1}
