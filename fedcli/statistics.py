"""Who the clients of a population are, in numbers: sizes and label counts. Pure NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SplitCounts:
    """The label counts of the clients of one split.

    Attributes:
        split: Its name.
        client_ids: Who was counted, in the order of the rows.
        label_counts: int64 [num_clients, num_classes].
    """

    split: str
    client_ids: list[str]
    label_counts: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each client, int64 [num_clients]."""
        sizes: NDArray[np.int64] = self.label_counts.sum(axis=1)
        return sizes

    @property
    def num_examples(self) -> int:
        """Examples of all clients."""
        return int(self.label_counts.sum())

    def by_size(self) -> SplitCounts:
        """Returns the same clients, largest first; equal sizes keep their order."""
        order = np.argsort(-self.sizes, kind="stable")
        ids = [self.client_ids[index] for index in order]
        return SplitCounts(self.split, ids, self.label_counts[order])


@dataclass(frozen=True)
class SizeSummary:
    """Examples a client."""

    minimum: int
    median: float
    mean: float
    maximum: int


@dataclass(frozen=True)
class Bin:
    """Clients that have from `low` to `high` examples, both included."""

    low: int
    high: int
    num_clients: int


def count_labels(
    split: str, clients: Iterable[tuple[str, NDArray[np.int32]]], num_classes: int
) -> SplitCounts:
    """Returns the counts of clients given as (client id, labels int32 [n]) pairs.

    Labels must lie in 0 to num_classes - 1.
    """
    client_ids = []
    rows = []
    for client_id, labels in clients:
        client_ids.append(client_id)
        rows.append(np.bincount(labels, minlength=num_classes))
    counts = np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)
    return SplitCounts(split, client_ids, counts)


def summarize_sizes(sizes: NDArray[np.int64]) -> SizeSummary:
    """Returns least, median, mean and greatest of sizes int64 [num_clients], of at least one."""
    return SizeSummary(
        int(sizes.min()), float(np.median(sizes)), float(sizes.mean()), int(sizes.max())
    )


def size_histogram(sizes: NDArray[np.int64], max_bins: int = 10) -> list[Bin]:
    """Returns bins of equal round width (1, 2 or 5 times a power of ten) that hold all sizes.

    Args:
        sizes: int64 [num_clients], of at least one client.
        max_bins: At most so many bins.
    """
    lowest, highest = int(sizes.min()), int(sizes.max())
    width = _bin_width(lowest, highest, max_bins)
    first = lowest // width
    counts = np.bincount(sizes // width - first, minlength=highest // width - first + 1)
    return [
        Bin((first + index) * width, (first + index + 1) * width - 1, int(count))
        for index, count in enumerate(counts)
    ]


def _bin_width(lowest: int, highest: int, max_bins: int) -> int:
    power = 1
    while True:
        for factor in (1, 2, 5):
            width = factor * power
            if highest // width - lowest // width < max_bins:
                return width
        power *= 10
