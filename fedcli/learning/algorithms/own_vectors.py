"""Per-client control vectors v_k, as in SCAFFOLD (control variates) and FedDyn (gradients h_k).

In a round, client k receives the linear term s = b - v_k, where b is the same for all clients.
Afterwards it stores v_k' = f * delta - s. The algorithm chooses b and f; f may depend on the
client's statistics. All v_k start at 0.

A client keeps its v_k if it took no step, or if its delta or v_k' is not finite. A client that
appears twice in a cohort starts both times from the same v_k, and the second v_k' is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.client_states import ClientStates
from fedcli.learning.engines.task import ClientInputs


class OwnVectors:
    """The v_k of the current round, as a `ClientExchange`.

    Attributes:
        after: The v_k of the next server state; complete when the round has been trained.
        change: The sum of v_k' - v_k so far, float64 [num_params].
    """

    num_vectors = 1
    receives = True

    def __init__(
        self,
        states: ClientStates,
        base: NDArray[np.float32],
        factor_of: Callable[[np.void], float | None],
    ) -> None:
        """Opens the next version of the v_k.

        Args:
            states: The v_k.
            base: b, [num_params].
            factor_of: Returns f for the statistics of a client with a finite delta, or None if the
                client keeps its v_k.

        Raises:
            RunError: The file of the v_k cannot be opened, or `states` is superseded.
        """
        self._next = states.next_version()
        self._base = base
        self._factor_of = factor_of
        # The s and the v_k, for each piece of the cohort that is sent but not yet received.
        self._sent: deque[tuple[NDArray[np.float32], list[NDArray[np.float32]]]] = deque()
        self._moved: set[str] = set()
        self.after = self._next.after
        self.change: NDArray[np.float64] = np.zeros(len(base))

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the clients' linear terms s: float32 [num_clients, num_params]."""
        num_params = len(self._base)
        shape = len(clients), num_params
        rows = np.empty(shape, np.float32) if self._sent else self._next.memory(*shape)
        ids = [each.client.client_id for each in clients]
        before = [self._next.before.read(each, num_params) for each in ids]
        for row, vector in zip(rows, before, strict=True):
            np.subtract(self._base, vector, out=row)
        self._sent.append((rows, before))
        return ClientInputs(linear=rows)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        """Stores the new v_k of some clients; overwrites `deltas` with them."""
        rows = zip(clients, *self._sent.popleft(), deltas, stats, strict=True)
        for each, sent, before, delta, stat in rows:
            factor = self._factor_of(stat) if stat["is_finite"] and stat["num_batches"] else None
            if factor is not None and native.next_client_vector(factor, sent, delta):
                self._set(each.client.client_id, before, delta)

    def _set(self, client_id: str, before: NDArray[np.float32], moved: NDArray[np.float32]) -> None:
        if client_id in self._moved:
            before = self.after.read(client_id, len(moved))
        native.add_change(before, moved, self.change)
        self._next.write(client_id, moved)
        self._moved.add(client_id)
