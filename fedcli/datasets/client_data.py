"""`ClientData`: the interface of all sources of clients, both files and generators."""

from __future__ import annotations

import abc
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ArraySpec, ClientDataset, example_spec
from fedcli.datasets.cache import ClientCache
from fedcli.errors import DataError, plural
from fedcli.lazy import ExplainsNames
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings.vocabulary import NATURAL

if TYPE_CHECKING:
    from fedcli.datasets.description import SourceDescription
    from fedcli.datasets.table import ExampleTable

CENTRAL = "central"  # the split whose clients are not part of the federation

_CLIENTS_SAMPLED = 20  # number of clients whose sizes `table_bytes` averages
_NEIGHBOURS = 500  # on each side of an unknown id, this many ids are compared with it


class ClientData(ExplainsNames, abc.ABC):
    """The clients of one split; `client` reads one client.

    Opening a split reads a few examples or none; with a partition it may read all of them.

    Attributes:
        source: The file or dataset, for messages.
        split: The split's name: train, test, validation or central.
        client_ids: Sorted ids; lazy if they are generated or mapped from a file.
        num_classes: Labels are 0 to num_classes - 1.
        class_names: A name for each class, if the source has them.
        pixel_shape: (H, W) or (H, W, C) of every example.
        pixel_convention: Meaning of the pixel value 1.0 in the model's input: "ink" or
            "background".
        partition: The partition that assigned the examples to clients, with its parameters;
            "natural" if each client has its own examples.
        same_people: Whether clients of train and test with equal ids are the same people.
        has_default_classes: Whether the number of classes is a default, neither given nor stored.
        replaces: For a test split given by --test-data, the source of the test split that it
            replaces, if there is one; else empty.
        has_train_examples: For a test split given by --test-data, whether it has the examples of
            the train split, because both were read from one file or from equal files.
        notes: Notes on the data for the user, one line each.
        cache: Keeps clients that were decompressed or generated; None if they are memory-mapped.
        is_generated: Whether the C core generates clients into `cache`. Several threads can do so
            at the same time.
    """

    source: str
    split: str
    client_ids: Sequence[str]
    num_classes: int
    class_names: tuple[str, ...] | None
    pixel_shape: tuple[int, ...]
    pixel_convention: str
    partition: str = NATURAL
    same_people: bool = True
    has_default_classes: bool = False
    replaces: str = ""
    has_train_examples: bool = False
    cache: ClientCache | None = None
    is_generated: bool = False
    notes: tuple[str, ...] = ()

    def description(self) -> SourceDescription | None:
        """Returns how a file that another program wrote was interpreted, or None for other data."""
        return None

    @property
    def range_remedy(self) -> str:
        """Advice, for a note, if pixels do not lie in the range 0 to 1."""
        return f"'fedcli preprocess {self.source} --out FILE' makes a store with scaled pixels"

    @abc.abstractmethod
    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds. Reads them only if a function makes them.

        Raises:
            DataError: The id is unknown, or the file is damaged there.
        """

    @abc.abstractmethod
    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples, checked.

        Arrays are borrowed, and read-only except for data in memory.

        Raises:
            DataError: The id is unknown, or the examples cannot be used; the message names file,
                client and example.
        """

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels int32 [n], checked. Skips its pixels if that is cheaper.

        Raises:
            DataError: See `client`.
        """
        return self.client(client_id).labels

    def examine(self) -> tuple[str, ...]:
        """Returns notes on problems that impair training. Only a few clients are read.

        Raises:
            DataError: See `client`.
        """
        return self.notes

    def total_examples(self) -> int:
        """Returns the number of examples of all clients. This may need a pass over all clients."""
        return sum(map(self.num_examples, self.client_ids))

    def to_table(
        self, folder: Path | None = None, on_progress: ProgressCallback = ignore_progress
    ) -> ExampleTable:
        """Returns all examples as a table in which each client owns its examples.

        Args:
            folder: The folder of an unnamed temporary file for pixels that must be copied; None:
                the system's folder for temporary files.
            on_progress: Called with the number of clients read.

        Raises:
            DataError: See `client`.
            OSError: The disk is full.
        """
        from fedcli.datasets.table import TableWriter  # lazy: few runs have a partition

        with TableWriter(self.source, folder) as writer:
            for done, client_id in enumerate(self.client_ids, 1):
                writer.add_client(self.client(client_id))
                on_progress(done, len(self.client_ids))
            return writer.table()

    def table_bytes(self) -> int:
        """Estimates from a few clients how many bytes of pixels `to_table` copies.

        Raises:
            DataError: See `client`.
        """
        num_clients = len(self.client_ids)
        step = max(1, num_clients // _CLIENTS_SAMPLED)
        sizes = [self.client(client_id).pixels.nbytes for client_id in self.client_ids[::step]]
        return sum(sizes) * num_clients // len(sizes)

    def class_name(self, label: int) -> str:
        """Returns the name of a class, or its number if it has no name."""
        return self.class_names[label] if self.class_names else str(label)

    @property
    def element_spec(self) -> dict[str, ArraySpec]:
        """The spec of one example: `label` and `pixels`."""
        return example_spec(self.pixel_shape)

    def __repr__(self) -> str:
        """Returns source, split, number of clients and shapes."""
        return (
            f"<{type(self).__name__} {self.split!r} of {self.source}: "
            f"{plural(len(self.client_ids), 'client')}, {plural(self.num_classes, 'class')}, "
            f"pixels {list(self.pixel_shape)}>"
        )


def decoding(scale: float, offset: float, convention: str, pixels: str) -> tuple[float, float, str]:
    """Returns the scale, offset and convention with which stored pixels are decoded.

    Args:
        scale: The stored scale.
        offset: The stored offset.
        convention: Meaning of 1.0 with this scale and offset: "ink" or "background".
        pixels: The requested convention: "source" (the stored one), "ink" or "background". If the
            data are stored in the other convention, x is decoded as 1 - x.
    """
    if pixels in ("source", convention):
        return scale, offset, convention
    return -scale, 1.0 - offset, pixels


def unknown_client(data: ClientData, client_id: object) -> DataError:
    """Returns the error for an id that is not in `data`. The message names similar ids."""
    import difflib  # lazy: only mistakes need it

    ids = data.client_ids
    if not isinstance(client_id, str):
        return DataError(
            f"{data.source}: a client id is of type {type(client_id).__name__}; give a string from "
            "client_ids"
        )
    place = bisect_left(ids, client_id)
    near = ids[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
    matches = difflib.get_close_matches(client_id, near, n=3) or list(ids[:3])
    names = ", ".join(map(repr, matches))
    return DataError(
        f"{data.source}: no client {client_id!r} among the {len(ids)} of split "
        f"{data.split!r}; did you mean one of {names}?"
    )
