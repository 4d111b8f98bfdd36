"""Vectors that clients keep, and that move with what a client makes of its local steps.

A client k that keeps v_k is sent s = b - v_k for the linear term of its loss, b the same for all,
and keeps v_k' = f * delta - s afterwards, with a factor f that its statistics decide: SCAFFOLD's
control variates and FedDyn's gradients move so. All v_k start at 0.

A client that took no step, whose delta is not finite, or whose v_k' would not be, keeps its v_k.
One that comes twice in a cohort starts both times from the same v_k and keeps the second's v_k'.
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
    """The v_k of a round under way; a `ClientExchange`.

    Attributes:
        after: The v_k, those that have moved included.
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
            factor_of: Returns f of a client with finite delta, given its stats; None: it stays.

        Raises:
            RunError: The file of the v_k cannot be gone on from.
        """
        self._next = states.next_version()
        self._base = base
        self._factor_of = factor_of
        # What was sent to the pieces that are not received yet, and their v_k.
        self._sent: deque[tuple[NDArray[np.float32], list[NDArray[np.float32]]]] = deque()
        self._moved: set[str] = set()
        self.after = self._next.after
        self.change: NDArray[np.float64] = np.zeros(len(base))

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns their s: float32 [num_clients, num_params] for the linear term."""
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
        """Keeps what the steps of those clients made of their v_k."""
        rows = zip(clients, *self._sent.popleft(), deltas, stats, strict=True)
        for each, sent, before, delta, stat in rows:
            factor = self._factor_of(stat) if stat["is_finite"] and stat["num_batches"] else None
            if factor is not None and native.move_own(factor, sent, delta):
                self._set(each.client.client_id, before, delta)

    def _set(self, client_id: str, before: NDArray[np.float32], moved: NDArray[np.float32]) -> None:
        if client_id in self._moved:
            before = self.after.read(client_id, len(moved))
        native.add_change(before, moved, self.change)
        self._next.write(client_id, moved)
        self._moved.add(client_id)
