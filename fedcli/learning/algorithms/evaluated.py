"""What is evaluated and exported of a training in place of the global model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.client_states import ClientStates

NO_COMMON_MODEL = (
    "each client of a local-only run has a model of its own and there is none for all: fedcli eval "
    "scores them; there is nothing to export, fine-tune or ask for predictions"
)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Weights for all clients, or a model for each; part of a server state.

    Attributes:
        weights: What all clients are evaluated with, float32 [num_params]; None: each has its own.
        num_updates: Where `weights` are a running mean of the global model's: how many accepted
            updates of these it has seen. Else None.
        own_models: How the model that each client is evaluated with differs from the global one;
            None: `weights` are evaluated.
    """

    weights: NDArray[np.float32] | None = None
    num_updates: int | None = None
    own_models: ClientStates | None = None

    def at(self, params: NDArray[np.float32]) -> Evaluated:
        """Returns the same with weights [num_params] copied from `params`, if it has weights."""
        return self if self.weights is None else replace(self, weights=params.copy())

    def after_update(self, decay: float, params: NDArray[np.float32]) -> Evaluated:
        """Returns the running mean after one more accepted update made the weights `params`.

        The mean e moves by `(1 - d) (params - e)`, d being `decay` or, while there were few updates
        j before, (1 + j) / (10 + j): pfl-research, pfl/model/ema.py.
        """
        assert self.weights is not None
        assert self.num_updates is not None
        num_updates = self.num_updates
        share = 1.0 - min(decay, (1 + num_updates) / (10 + num_updates))
        mean = self.weights.astype(np.float64)
        mean += share * (params - mean)
        return Evaluated(mean.astype(np.float32), num_updates + 1)
