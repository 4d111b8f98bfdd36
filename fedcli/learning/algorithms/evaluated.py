"""Weights or models that are evaluated and exported instead of the global model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.client_states import ClientStates

NO_COMMON_MODEL = (
    "each client of a local-only run has a model of its own, and there is no common model to "
    "export, fine-tune or predict with; fedcli eval scores each client with its own model"
)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Weights for all clients, or one model per client; part of a server state.

    Attributes:
        weights: The weights that all clients are evaluated with, float32 [num_params]. None if
            each client has its own model.
        num_updates: The number of accepted updates in `weights`, if they are a running mean of the
            global weights; None otherwise.
        own_models: The difference of each client's own model from the global model; with
            `own_indices`, each client's own values at these indices. None if all clients are
            evaluated with `weights`.
        own_indices: The indices of the parameters that each client keeps for itself, int64
            [num_own], if it shares the others; see `own_parts`. None if it shares all or none.
    """

    weights: NDArray[np.float32] | None = None
    num_updates: int | None = None
    own_models: ClientStates | None = None
    own_indices: NDArray[np.int64] | None = None

    def write_model(
        self, params: NDArray[np.float32], client_id: str, model: NDArray[np.float32]
    ) -> None:
        """Writes the weights that are evaluated on a client, if there are `own_models`.

        Args:
            params: The global weights, float32 [num_params].
            client_id: The client.
            model: Receives the weights, float32 [num_params].

        Raises:
            RunError: The file of client states cannot be read.
        """
        assert self.own_models is not None
        if self.own_indices is None:
            np.add(params, self.own_models.read(client_id, len(params)), out=model)
            return
        model[:] = params
        own = self.own_models.borrow(client_id, len(self.own_indices))
        if own is not None:
            model[self.own_indices] = own

    def at(self, params: NDArray[np.float32]) -> Evaluated:
        """Returns a copy with `params` [num_params] as its weights, if it has weights."""
        return self if self.weights is None else replace(self, weights=params.copy())

    def after_update(self, decay: float, params: NDArray[np.float32]) -> Evaluated:
        """Returns the running mean after an accepted update whose result is `params`.

        The mean e changes by `(1 - d) (params - e)`. After j earlier updates d is the smaller of
        `decay` and (1 + j) / (10 + j), as in pfl-research, pfl/model/ema.py.
        """
        assert self.weights is not None
        assert self.num_updates is not None
        num_updates = self.num_updates
        share = 1.0 - min(decay, (1 + num_updates) / (10 + num_updates))
        mean = self.weights.astype(np.float64)
        mean += share * (params - mean)
        return Evaluated(mean.astype(np.float32), num_updates + 1)
