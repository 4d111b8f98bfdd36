"""Splits each client's train examples into training examples and validation examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.client_data import ClientData, unknown_client
from fedcli.datasets.description import SourceDescription
from fedcli.errors import DataError
from fedcli.settings.vocabulary import VALIDATION


def split_off(train: ClientData, share: float) -> tuple[ClientData, ClientData]:
    """Returns the train split without a share of each client's examples, and these examples.

    The examples are drawn at random for each client separately. Their number is rounded, but at
    least one example goes to each side. A client with a single example keeps it. The draws depend
    only on the client's id.

    Args:
        train: The train split.
        share: Above 0 and below 1.

    Raises:
        DataError: No client has two examples.
    """
    held_out = _PartOfClients(train, VALIDATION, share)
    if not held_out.client_ids:
        raise DataError(
            f"--validation {share:g}: no client of {train.source} has two examples; leave the "
            "option out"
        )
    return _PartOfClients(train, train.split, share), held_out


def num_held_out(num_examples: int, share: float) -> int:
    """Returns how many of a client's examples are held out."""
    if num_examples < 2:
        return 0
    return min(max(1, round(num_examples * share)), num_examples - 1)


class _PartOfClients(ClientData):
    """The train examples that are left, or the validation examples.

    A client's part is gathered from the whole client when it is read.
    """

    def __init__(self, whole: ClientData, split: str, share: float) -> None:
        self._whole = whole
        self._share = share
        self.source = whole.source
        self.split = split
        self.client_ids = whole.client_ids
        if split == VALIDATION:
            counted = ((each, whole.num_examples(each)) for each in whole.client_ids)
            self.client_ids = [each for each, count in counted if count >= 2]
        self.num_classes = whole.num_classes
        self.class_names = whole.class_names
        self.pixel_shape = whole.pixel_shape
        self.pixel_convention = whole.pixel_convention
        self.partition = whole.partition
        self.same_people = whole.same_people
        self.has_default_classes = whole.has_default_classes
        self.cache = whole.cache

    def description(self) -> SourceDescription | None:
        """Returns how the file that holds both parts was interpreted."""
        return self._whole.description()

    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds."""
        count = self._whole.num_examples(client_id)
        held_out = num_held_out(count, self._share)
        if self.split != VALIDATION:
            return count - held_out
        if not held_out:
            raise unknown_client(self, client_id)
        return held_out

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples."""
        whole = self._whole.client(client_id)
        rows = self._rows(client_id, len(whole))
        part = replace(whole, pixels=whole.pixels[rows], labels=whole.labels[rows])
        part.pixels.flags.writeable = False
        part.labels.flags.writeable = False
        return part

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels int32 [n]."""
        labels = self._whole.labels(client_id)
        return labels[self._rows(client_id, len(labels))]

    def examine(self) -> tuple[str, ...]:
        """Returns the notes on the whole split for train, and none for validation."""
        return () if self.split == VALIDATION else self._whole.examine()

    def _rows(self, client_id: str, count: int) -> NDArray[np.int64]:
        """The indices of the examples of this part, int64, ascending."""
        held_out = num_held_out(count, self._share)
        if self.split == VALIDATION and not held_out:
            raise unknown_client(self, client_id)
        key = stream_key(0, Purpose.VALIDATION, client=client_key(client_id))
        drawn = Stream(key).permutation(count)
        rows = drawn[:held_out] if self.split == VALIDATION else drawn[held_out:]
        return np.sort(rows)
