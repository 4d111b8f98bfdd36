"""A cache of bounded size for clients whose data must be decompressed or generated."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from fedcli.datasets.batches import ClientDataset


class ClientCache:
    """Keeps the most recently used clients, up to a number of bytes of pixels and labels.

    Several threads may use it: two runs of one process may read the same data.

    Attributes:
        max_bytes: Largest number of bytes to keep; a larger client is returned but not kept.
        bytes: Number of bytes kept now.
        hits: Requests answered from the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        """Makes an empty cache that keeps at most `max_bytes`."""
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self._clients: OrderedDict[tuple[str, str], ClientDataset] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of clients kept."""
        return len(self._clients)

    def get(self, split: str, client_id: str, read: Callable[[], ClientDataset]) -> ClientDataset:
        """Returns a client of a split. Calls `read` if the client is not in the cache."""
        key = (split, client_id)
        with self._lock:
            client = self._clients.get(key)
            if client is not None:
                self.hits += 1
                self._clients.move_to_end(key)
                return client
        client = read()
        with self._lock:
            self._keep(key, client)
        return client

    def _keep(self, key: tuple[str, str], client: ClientDataset) -> None:
        size = _num_bytes(client)
        if size > self.max_bytes or key in self._clients:  # another thread has stored it meanwhile
            return
        while self.bytes + size > self.max_bytes:
            _, oldest = self._clients.popitem(last=False)
            self.bytes -= _num_bytes(oldest)
        self._clients[key] = client
        self.bytes += size


def _num_bytes(client: ClientDataset) -> int:
    return client.pixels.nbytes + client.labels.nbytes
