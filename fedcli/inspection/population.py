"""Reads the clients of a population; computes label counts, ink and mean images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.core.seeds import Purpose
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.federation import samplers
from fedcli.inspection.statistics import MeanImages, SplitCounts, count_labels
from fedcli.progress import ProgressCallback, ignore_progress

# Selected clients are compared with all clients of their split or, if there are more than
# MAX_COMPARED, with a random sample of them. A thousand clients give the shares of labels to a
# fraction of a percent.
MAX_COMPARED = 10_000
NUM_DRAWN = 1_000


@dataclass(frozen=True, eq=False)
class Population:
    """The counts of one split.

    Attributes:
        data: Its examples.
        counts: Counts of the selected clients.
        compared: Counts of the clients with which they are compared: all of the split, or a sample.
        means: Mean images over the compared clients; None if not requested.
    """

    data: ClientData
    counts: SplitCounts
    compared: SplitCounts
    means: MeanImages | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The clients to read of one split.

    Attributes:
        data: The split.
        client_ids: The selected clients.
        compared_ids: The clients with which they are compared. If it is the same object as
            `client_ids`, clients are read once.
        needs_means: Whether to compute mean images of the compared clients.
    """

    data: ClientData
    client_ids: Sequence[str]
    compared_ids: Sequence[str]
    needs_means: bool = False

    @property
    def num_reads(self) -> int:
        """The number of clients to read.

        Clients that are both selected and compared count twice.
        """
        is_same = self.client_ids is self.compared_ids
        return len(self.client_ids) + (0 if is_same else len(self.compared_ids))


def choose_compared(data: ClientData, client_ids: Sequence[str]) -> Sequence[str]:
    """Returns the clients with which the selected ones are compared: all clients of their split.

    If a split has more than `MAX_COMPARED` clients and not all of them are selected, a fixed sample
    of `NUM_DRAWN` clients is returned.

    Args:
        data: The split.
        client_ids: The selected clients, each id once.
    """
    population = data.client_ids
    if len(client_ids) == len(population):
        return client_ids
    if len(population) <= MAX_COMPARED:
        return population
    drawn = samplers.sample_indices(len(population), NUM_DRAWN, 0, Purpose.EVAL_CLIENTS, 0)
    return [population[index] for index in drawn]


def read_populations(
    tasks: Mapping[str, Task],
    on_progress: ProgressCallback = ignore_progress,
    *,
    is_quick: bool = False,
) -> dict[str, Population]:
    """Reads and counts all splits. Time is linear; memory holds the counts and one client.

    Args:
        tasks: The clients to read, by split.
        on_progress: Called with the number of clients read, of all splits.
        is_quick: Whether to read labels only: pixels are not checked and ink is unknown.

    Raises:
        DataError: A client cannot be read, or there is too much to count.
    """
    reader = _Reader(on_progress, sum(task.num_reads for task in tasks.values()), is_quick=is_quick)
    return {name: reader.population(task) for name, task in tasks.items()}


class _Reader:
    """Reads clients one after the other and reports progress."""

    def __init__(self, on_progress: ProgressCallback, total: int, *, is_quick: bool) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0
        self._is_quick = is_quick

    def population(self, task: Task) -> Population:
        """Reads and counts one split."""
        data = task.data
        means = MeanImages(data.num_classes, data.pixel_shape) if task.needs_means else None
        if task.client_ids is task.compared_ids:
            counts = self._count(data, task.client_ids, means, is_quick=self._is_quick)
            return Population(data, counts, counts, means)
        # Pixels of the compared clients are read only for mean images.
        compared = self._count(data, task.compared_ids, means, is_quick=means is None)
        counts = self._count(data, task.client_ids, None, is_quick=self._is_quick)
        counts = replace(counts, population=compared.class_totals)
        return Population(data, counts, compared, means)

    def _count(
        self,
        data: ClientData,
        client_ids: Sequence[str],
        means: MeanImages | None,
        *,
        is_quick: bool,
    ) -> SplitCounts:
        ink = None if is_quick else np.full(len(client_ids), np.nan)

        def labels() -> Iterator[NDArray[np.int32]]:
            for row, client_id in enumerate(client_ids):
                if ink is None:
                    yield data.labels(client_id)
                else:
                    client = data.client(client_id)
                    ink[row] = mean_ink(client, data.pixel_convention)
                    if means is not None:
                        means.add(client.pixels, client.labels, client.scale, client.offset)
                    yield client.labels
                self._done += 1
                self._on_progress(self._done, self._total)

        counts = count_labels(data.split, client_ids, labels(), data.num_classes)
        return counts if ink is None else replace(counts, mean_ink=ink)


def mean_ink(client: ClientDataset, convention: str) -> float:
    """Returns the mean of all pixels, 0 for empty images to 1 for full ink; NaN without examples.

    Args:
        client: The client.
        convention: The meaning of 1.0 in its images: "ink" or "background".
    """
    if not len(client):
        return float("nan")
    kind = np.uint64 if client.pixels.dtype == np.uint8 else np.float64
    total = float(client.pixels.sum(dtype=kind))
    mean = client.scale * total / client.pixels.size + client.offset
    return 1.0 - mean if convention == "background" else mean


def num_distinct_clients(splits: Sequence[SplitCounts]) -> int:
    """Returns the number of different clients of all splits."""
    sequences = [counts.client_ids for counts in splits]
    if all(len(ids) == len(sequences[0]) and _are_equal(ids, sequences[0]) for ids in sequences):
        return len(sequences[0])
    return len({client_id for ids in sequences for client_id in ids})


def _are_equal(ids: Sequence[str], others: Sequence[str]) -> bool:
    return all(mine == other for mine, other in zip(ids, others, strict=True))
