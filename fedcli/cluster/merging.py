"""Combines the sums of a cohort's parts into the bytes that one engine would compute.

An engine adds the clients of each block of 8 in order, and combines the blocks by a fixed binary
tree over their index (csrc/cohort/sum.c). A part of 8 * 2**k consecutive clients that starts at a
multiple of that number is one node of this tree. So the sums of such parts, combined by the upper
part of the tree, give the same bytes for any k and any distribution of the parts over machines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.learning.engines.contract import BLOCK_CLIENTS


def part_size(num_clients: int, num_workers: int, max_clients: int) -> int:
    """Returns the number of clients in each part of a cohort: 8 * 2**k.

    The number is the largest that gives each worker at least two parts and is at most
    `max_clients`, but at least one block.
    """
    size = BLOCK_CLIENTS
    while 2 * size * 2 * num_workers <= num_clients and 2 * size <= max_clients:
        size *= 2
    return size


class PartSum:
    """Adds the sums of parts of one size, in order; the last part may be shorter."""

    def __init__(self, num_values: int) -> None:
        """Starts at zero."""
        self._num_values = num_values
        self._nodes: list[NDArray[np.float64] | None] = []  # by level; 2**level parts each
        self._rest: NDArray[np.float64] | None = None

    def add(self, part: NDArray[np.float64], *, is_whole: bool) -> None:
        """Adds the sum of the next part.

        Args:
            part: The sum, float64 [num_values], writable. This object may keep and change it.
            is_whole: Whether the part has the full number of clients. Only the last may have fewer.
        """
        assert self._rest is None
        if not is_whole:
            self._rest = part
            return
        for level, older in enumerate(self._nodes):
            if older is None:
                self._nodes[level] = part
                return
            np.add(older, part, out=part)
            self._nodes[level] = None
        self._nodes.append(part)

    def total(self) -> NDArray[np.float64]:
        """Returns the sum of all parts, float64 [num_values]."""
        total = np.zeros(self._num_values) if self._rest is None else self._rest.copy()
        for node in self._nodes:
            if node is not None:
                total += node
        return total
