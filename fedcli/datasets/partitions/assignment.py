"""`Assignment`: which client holds which example, as index arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.table import ExampleTable


@dataclass(frozen=True, eq=False)
class Assignment:
    """Clients and the examples that each one holds, as indices into a table.

    Attributes:
        client_ids: The clients, sorted.
        order: int64 [num_assigned], indices of examples, client by client. An index occurs at
            most once.
        offsets: int64 [num_clients + 1]; client k holds `order[offsets[k]:offsets[k + 1]]`.
    """

    client_ids: Sequence[str]
    order: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of examples of each client, int64 [num_clients]."""
        sizes: NDArray[np.int64] = np.diff(self.offsets)
        return sizes

    @property
    def holders(self) -> NDArray[np.int64]:
        """The index of the client that holds each entry of `order`, int64 [num_assigned]."""
        return np.repeat(np.arange(len(self.client_ids)), self.sizes)

    def indices(self, client_index: int) -> NDArray[np.int64]:
        """Returns the indices of one client's examples, int64 [n]."""
        return self.order[self.offsets[client_index] : self.offsets[client_index + 1]]

    def keep(self, is_kept: NDArray[np.bool_]) -> Assignment:
        """Returns the assignment with only those entries of `order` for which `is_kept` is True.

        `is_kept` is bool [num_assigned]. Clients keep the order of their examples. A client may
        become empty.
        """
        sizes = np.bincount(self.holders[is_kept], minlength=len(self.client_ids))
        return Assignment(self.client_ids, self.order[is_kept], _offsets(sizes))

    def choose(self, is_chosen: NDArray[np.bool_]) -> Assignment:
        """Returns the assignment with only the clients for which `is_chosen`, bool [K], is True."""
        client_ids = [self.client_ids[index] for index in np.flatnonzero(is_chosen).tolist()]
        order = self.order[np.repeat(is_chosen, self.sizes)]
        return Assignment(client_ids, order, _offsets(self.sizes[is_chosen]))


def assign_to_owners(table: ExampleTable) -> Assignment:
    """Returns the natural assignment: owners hold their own examples, in the source's order."""
    sizes = np.bincount(table.owners, minlength=len(table.owner_ids))
    return Assignment(table.owner_ids, np.argsort(table.owners, kind="stable"), _offsets(sizes))


def assign_lists(client_ids: Sequence[str], lists: Sequence[NDArray[np.int64]]) -> Assignment:
    """Returns the assignment with one list of examples per client; `client_ids` are sorted."""
    order = np.concatenate([np.empty(0, np.int64), *lists])
    return Assignment(
        client_ids, order, _offsets(np.array([len(each) for each in lists], np.int64))
    )


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
