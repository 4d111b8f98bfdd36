"""`ClientBatches`: the batches of some clients of a split, each read when it is reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_data import ClientData


@dataclass(frozen=True, eq=False)
class ClientBatches:
    """The batches of some clients, in order. A client is read only when the iteration reaches it.

    Iterating raises DataError if a client cannot be read.
    """

    data: ClientData
    client_ids: Sequence[str]
    plan: BatchPlan
    seed: int = 0

    def __iter__(self) -> Iterator[BatchedDataset]:
        """Yields the batches of each client."""
        for client_id in self.client_ids:
            yield BatchedDataset(self.data.client(client_id), self.plan, self.seed)
