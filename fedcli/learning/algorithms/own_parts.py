"""Parameters that each client keeps for itself while the others are shared, as in FedBN.

Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, https://arxiv.org/abs/2102.07623: all parameters of batch norms. Andreux,
du Terrail, Beguier and Tramel, "Siloed Federated Learning for Multi-Centric Histopathology
Datasets", 2020, https://arxiv.org/abs/2008.07424 (SiloBN): their moving statistics alone.

Let w be the global parameters, and K the coordinates that clients keep. Client k has b_k, its
values in K, once it has trained; before that, b_k is w in K. In a round

    y_k <- local steps from w with b_k in K;    b_k <- y_k in K
    outside K:  w takes the server's step with the mean of the y_k - w
    in K:       w <- the mean of the y_k, whatever the server optimizer is

A client is evaluated with w and its own b_k. A client that has never trained has none and uses w.
In the papers' experiments there is no w in K, since every client takes part in every round. Here it
is the start of clients that train for the first time. For the others it changes nothing.

A client that takes no step, or whose delta is not finite, keeps its b_k. A client that appears
twice in a cohort starts both times from the same b_k, and the second result is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.engines.task import ClientInputs


class OwnParts:
    """The b_k of the current round, as a `ClientExchange`.

    Attributes:
        after: The `evaluated` part of the next server state; complete after the round's training.
    """

    num_vectors = 1
    receives = True

    def __init__(self, evaluated: Evaluated, params: NDArray[np.float32]) -> None:
        """Opens the next version of the b_k.

        Args:
            evaluated: The `evaluated` part of the server state, with `own_indices`.
            params: w, [num_params].

        Raises:
            RunError: The file of the b_k cannot be opened, or `evaluated` is superseded.
        """
        assert evaluated.own_models is not None
        assert evaluated.own_indices is not None
        self._before = evaluated
        self._params = params
        self._own_indices = evaluated.own_indices
        self._next = evaluated.own_models.next_version()
        self.after = replace(evaluated, own_models=self._next.after)
        # The starts of each piece of the cohort that is sent but not yet received.
        self._sent: deque[NDArray[np.float32]] = deque()

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns each client's model before the round, and that all deltas are to be summed."""
        shape = len(clients), len(self._params)
        starts = np.empty(shape, np.float32) if self._sent else self._next.memory(*shape)
        for start, each in zip(starts, clients, strict=True):
            self._before.write_model(self._params, each.client.client_id, start)
        self._sent.append(starts)
        return ClientInputs(delta_factors=np.ones(len(clients)), starts=starts)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Stores the new b_k of some clients."""
        for each, start, delta, stat in zip(
            clients, self._sent.popleft(), deltas, stats, strict=True
        ):
            if not (stat["is_finite"] and stat["num_batches"]):
                continue
            own = start[self._own_indices] + delta[self._own_indices]
            if np.isfinite(own).all():
                self._next.write(each.client.client_id, own)
