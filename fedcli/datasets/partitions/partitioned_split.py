"""`PartitionedSplit`: a split whose clients hold the examples that are assigned to them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData, decoding, unknown_client
from fedcli.datasets.description import SourceDescription
from fedcli.datasets.partitions.assignment import Assignment
from fedcli.datasets.table import ExampleTable
from fedcli.settings.vocabulary import NATURAL


class Change:
    """A change to clients' examples: a pure function of a client and its examples.

    A subclass overrides one or both methods.
    """

    def labels(self, client_id: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the changed labels of a client, int32 [n]."""
        return labels

    def client(self, client: ClientDataset) -> ClientDataset:
        """Returns the client with changed pixels. Labels are changed by `labels` only."""
        return client


class PartitionedSplit(ClientData):
    """The clients of an assignment. `client` gathers the examples of a client from the table.

    Attributes:
        table: The examples.
        assignment: Which client holds which example.
        scale: Pixels of the table decode to `scale * pixels + offset`, in the convention that
            `pixels` requests.
        offset: See `scale`.
        is_plain: Whether there are no changes to the examples.
    """

    def __init__(
        self,
        table: ExampleTable,
        assignment: Assignment,
        *,
        split: str,
        num_classes: int,
        class_names: tuple[str, ...] | None,
        pixel_convention: str,
        pixels: str = "source",
        changes: Sequence[Change] = (),
        partition: str = NATURAL,
        same_people: bool = True,
        description: SourceDescription | None = None,
    ) -> None:
        """Makes the split. All labels of the table are below `num_classes`.

        Args:
            table: The examples.
            assignment: Which client holds which example.
            split: The name of the split.
            num_classes: Labels are 0 to num_classes - 1.
            class_names: A name for each class, or None.
            pixel_convention: The meaning of 1.0 in the table's decoded pixels: "ink" or
                "background".
            pixels: "source", "ink" or "background".
            changes: Changes to every client, in this order.
            partition: A text that names the partition (scheme and changes) and its parameters.
            same_people: Whether clients of train and test with equal ids are the same people.
            description: How the file that holds the examples was interpreted, or None.
        """
        self.source = table.source
        self.split = split
        self.num_classes = num_classes
        self.class_names = class_names
        self.client_ids = assignment.client_ids
        self.pixel_shape = table.pixels.shape[1:]
        self.table = table
        self.assignment = assignment
        self.is_plain = not changes
        self.partition = partition
        self.same_people = same_people
        self._changes = tuple(changes)
        self._description = description
        self.scale, self.offset, self.pixel_convention = decoding(
            table.scale, table.offset, pixel_convention, pixels
        )

    def description(self) -> SourceDescription | None:
        """Returns how the file was interpreted before the examples were assigned to clients."""
        return self._description

    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds."""
        return len(self._indices(client_id))

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels int32 [n]."""
        labels = self.table.labels[self._indices(client_id)]
        for change in self._changes:
            labels = change.labels(client_id, labels)
        return labels

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples, gathered from the table."""
        pixels: Any = self.table.pixels[self._indices(client_id)]
        labels = self.labels(client_id)
        client = ClientDataset(client_id, pixels, labels, self.scale, self.offset, self.source)
        for change in self._changes:
            client = change.client(client)
        client.pixels.flags.writeable = False
        client.labels.flags.writeable = False
        return client

    def total_examples(self) -> int:
        """Returns the number of examples of all clients."""
        return len(self.assignment.order)

    def _indices(self, client_id: str) -> NDArray[np.int64]:
        place = bisect_left(self.client_ids, client_id)
        if place == len(self.client_ids) or self.client_ids[place] != client_id:
            raise unknown_client(self, client_id)
        return self.assignment.indices(place)
