"""`ExampleTable`: all examples of one split in the order of their source, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import MAX_LABEL, ClientDataset, Pixels
from fedcli.datasets.checks import check_examples, check_labels
from fedcli.datasets.spool import PixelSpool
from fedcli.errors import DataError, plural


@dataclass(frozen=True, eq=False)
class ExampleTable:
    """The examples of one split.

    Attributes:
        source: The file or dataset, for messages.
        pixels: uint8 or float32 [n, H, W] or [n, H, W, C], read-only, decoded by scale and offset.
        labels: int32 [n].
        scale: Pixels decode to `scale * pixels + offset`.
        offset: See `scale`.
        owner_ids: The owners in the source, sorted; empty if there are none.
        owners: The index in `owner_ids` of each example's owner, int64 [n]; empty if none.
    """

    source: str
    pixels: Pixels
    labels: NDArray[np.int32]
    scale: float
    offset: float
    owner_ids: Sequence[str]
    owners: NDArray[np.int64]

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)


class TableWriter:
    """Collects examples in the order in which they are read. Memory holds labels and owners only.

    Use it as a context manager. At the end its file is closed; a table from `table` stays valid.
    """

    def __init__(
        self,
        source: str,
        folder: Path | None = None,
        *,
        fit: Callable[[Pixels], Pixels] | None = None,
    ) -> None:
        """Opens a file for pixels.

        Args:
            source: The file or dataset, for messages.
            folder: The folder of the file; by default the system's folder for temporary files.
            fit: Resizes images [k, H, W] or [k, H, W, C] to the common size.

        Raises:
            OSError: The folder cannot be written to.
        """
        self.source = source
        self._fit = fit
        self._pixels = PixelSpool(folder)
        self._labels: list[NDArray[np.int32]] = []
        self._owners: list[NDArray[np.int64]] = []
        self._owner_numbers: dict[str, int] = {}  # in the order in which they are added

    def __enter__(self) -> TableWriter:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self._pixels.close()

    @property
    def num_examples(self) -> int:
        """Number of examples so far."""
        return self._pixels.num_images

    def add(
        self,
        pixels: Pixels,
        labels: NDArray[np.integer],
        *,
        scale: float,
        offset: float,
        owners: str | Sequence[str] | None = None,
        where: str | None = None,
    ) -> None:
        """Appends examples after checking them.

        Args:
            pixels: uint8 or float32 [k, H, W] or [k, H, W, C].
            labels: Integers [k], at least 0.
            scale: Pixels decode to `scale * pixels + offset`.
            offset: See `scale`.
            owners: One owner of all these examples, or a sequence with the owner of each example;
                None: no owners. In a table either all examples have owners or none has.
            where: Prefix of error messages; by default the source.

        Raises:
            DataError: The examples do not agree with earlier ones, or a label or a pixel is not
                allowed.
            OSError: The disk is full.
        """
        where = where or self.source
        if self._fit is not None:
            check_examples(pixels, labels, None, where)
            pixels = self._fit(pixels)
        check_examples(pixels, labels, self._pixels.shape, where)
        check_labels(labels, MAX_LABEL, where)
        if not (owners is None or isinstance(owners, str) or len(owners) == len(labels)):
            raise DataError(
                f"{where}: {plural(len(labels), 'example')} but {plural(len(owners), 'owner')}; "
                "give one owner per example"
            )
        self._pixels.add(pixels, scale, offset)
        self._labels.append(labels.astype(np.int32))
        if isinstance(owners, str):  # an owner counts even if it has no examples
            self._owners.append(np.full(len(labels), self._number(owners), np.int64))
        elif owners is not None:
            self._owners.append(np.array([self._number(name) for name in owners], np.int64))

    def add_client(self, client: ClientDataset) -> None:
        """Appends all examples of a client, which owns them."""
        self.add(
            client.pixels,
            client.labels,
            scale=client.scale,
            offset=client.offset,
            owners=client.client_id,
            where=f"{client.source}: client {client.client_id!r}",
        )

    def table(self) -> ExampleTable:
        """Returns the table of all added examples.

        Raises:
            DataError: Nothing was added, or some examples have an owner and others none.
            OSError: The disk is full.
        """
        if not self._labels:
            raise DataError(f"{self.source}: holds no examples; give at least one")
        owners = np.concatenate(self._owners) if self._owners else np.empty(0, np.int64)
        if len(owners) not in (0, self.num_examples):
            raise DataError(
                f"{self.source}: only {len(owners)} of {self.num_examples} examples have an owner; "
                "give all of them an owner, or none"
            )
        owner_ids = sorted(self._owner_numbers)
        rank = np.empty(len(owner_ids), np.int64)
        rank[[self._owner_numbers[name] for name in owner_ids]] = np.arange(len(owner_ids))
        return ExampleTable(
            source=self.source,
            pixels=self._pixels.mapped(),
            labels=np.concatenate(self._labels),
            scale=self._pixels.scale,
            offset=self._pixels.offset,
            owner_ids=owner_ids,
            owners=rank[owners] if len(owners) else owners,
        )

    def _number(self, owner: str) -> int:
        return self._owner_numbers.setdefault(owner, len(self._owner_numbers))
