"""Writes fedcli stores atomically. Module `store` describes the format."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.batches import ClientDataset, Pixels, first_outside
from fedcli.datasets.checks import MAX_ID_BYTES, bad_label, check_examples, check_labels
from fedcli.datasets.partitions.partitioned_split import PartitionedSplit
from fedcli.datasets.sources.store import (
    ARRAYS,
    VERSION,
    Digest,
    Progress,
    Rows,
    SplitArrays,
    StoreInfo,
    attributes_of,
    blocks,
    bytes_of,
    info_fingerprint,
)
from fedcli.datasets.spool import PixelSpool
from fedcli.errors import DataError, RunError, why_not_written
from fedcli.outputs import replacing, resolve_output
from fedcli.progress import ProgressCallback, ignore_progress

_ALIGNMENT = 64  # alignment of arrays in the file in bytes: a cache line
_MAX_TEXT_BYTES = 32 << 10  # HDF5 allows 64 KiB for an attribute with its name and type


def create(
    path: Path,
    splits: Mapping[str, Iterable[ClientDataset] | PartitionedSplit],
    info: StoreInfo,
    on_progress: ProgressCallback = ignore_progress,
) -> str:
    """Writes a store atomically, and returns its fingerprint.

    The pixels of a `PartitionedSplit` without changes are gathered from its table block by block.
    Other clients are read one at a time, and their pixels are copied to an unnamed temporary file
    beside `path`; memory holds one client's pixels, and all ids and labels. Pixels stay uint8 if
    all clients of a split have the same scale and offset, and become float32 otherwise.

    Equal arguments give equal bytes. Temporary files of killed writers of `path` are removed.

    Args:
        path: The file to write or replace; links are followed.
        splits: For each split its clients, sorted by id.
        info: The metadata of the store.
        on_progress: Called for each split that is read client by client, with the number of
            examples read; then for all splits together, with the number of examples written.

    Raises:
        DataError: A client cannot be stored (id, order, shape, label or pixel), or the file
            cannot be written.
    """
    try:
        target = resolve_output(path)
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(target))
            collected = []
            for name in sorted(splits):
                clients = splits[name]
                if isinstance(clients, PartitionedSplit) and clients.is_plain:
                    collected.append(_gathered(name, clients, info.num_classes))
                else:
                    spool = stack.enter_context(_Spool(info.num_classes, target.parent))
                    collected.append(spool.collect(name, clients, on_progress))
            return _write(temporary, collected, info, on_progress)
    except OSError as err:
        reason = why_not_written(err) if err.strerror else hdf5.one_line(err)
        raise DataError(f"cannot write {path}: {reason}") from err
    except RunError as err:
        raise DataError(str(err)) from err


class _GatheredPixels:
    """The rows of a table in another order. Blocks are gathered when they are read."""

    def __init__(self, pixels: Pixels, order: NDArray[np.int64]) -> None:
        self.dtype: np.dtype[Any] = pixels.dtype
        self.shape = (len(order), *pixels.shape[1:])
        self._pixels: NDArray[Any] = pixels
        self._order = order

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self._pixels[self._order[rows]]


class _Spool:
    """Collects the clients of one split, whose number is not known in advance."""

    def __init__(self, num_classes: int, folder: Path) -> None:
        self._num_classes = num_classes
        self._pixels = PixelSpool(folder)
        self._ids = _Ids()
        self._offsets = [0]
        self._labels: list[NDArray[np.int32]] = []

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pixels.close()

    def collect(
        self,
        name: str,
        clients: Iterable[ClientDataset] | PartitionedSplit,
        on_progress: ProgressCallback,
    ) -> SplitArrays:
        """Returns all clients as the split `name`, its pixels mapped."""
        total = None
        if isinstance(clients, PartitionedSplit):
            total = clients.total_examples()
            clients = map(clients.client, clients.client_ids)
        for client in clients:
            self._add(client)
            on_progress(self._offsets[-1], total)
        if not self._ids.encoded:
            raise _no_clients(name)
        return SplitArrays(
            name=name,
            client_ids=np.array(self._ids.encoded),
            client_offsets=np.array(self._offsets, np.int64),
            pixels=self._pixels.mapped(),
            labels=np.concatenate(self._labels),
            scale=self._pixels.scale,
            offset=self._pixels.offset,
        )

    def _add(self, client: ClientDataset) -> None:
        where = f"{client.source}: client {client.client_id!r}"
        self._ids.add(client.client_id, where)
        check_examples(client.pixels, client.labels, self._pixels.shape, where)
        check_labels(client.labels, self._num_classes, where)
        self._pixels.add(client.pixels, client.scale, client.offset)
        self._offsets.append(self._offsets[-1] + len(client))
        self._labels.append(np.array(client.labels, np.int32))


class _Ids:
    """Collects the ids of clients and checks that they are in ascending order."""

    def __init__(self) -> None:
        self.encoded: list[bytes] = []

    def add(self, client_id: str, where: str) -> None:
        name = client_id.encode()
        if not 1 <= len(name) <= MAX_ID_BYTES or b"\0" in name:
            raise DataError(
                f"{where}: an id must have 1 to {MAX_ID_BYTES} bytes and no zero byte; rename the "
                "client"
            )
        if self.encoded and name <= self.encoded[-1]:
            raise DataError(
                f"{where}: comes after client {self.encoded[-1].decode()!r}; "
                "give each client once, sorted by id"
            )
        self.encoded.append(name)


def _gathered(name: str, split: PartitionedSplit, num_classes: int) -> SplitArrays:
    """The checked arrays of a `PartitionedSplit` without changes."""
    ids = _Ids()
    for client_id in split.client_ids:
        ids.add(client_id, f"{split.source}: client {client_id!r}")
    if not ids.encoded:
        raise _no_clients(name)
    assignment = split.assignment
    if assignment.sizes.max() > MAX_COUNT:
        raise DataError(
            f"split {name!r}: a client has more than {MAX_COUNT} examples; divide it into "
            "several clients"
        )
    labels = split.table.labels[assignment.order]
    example = first_outside(labels, num_classes)
    if example is not None:
        raise bad_label(
            int(labels[example]), int(assignment.order[example]), num_classes, split.source
        )
    return SplitArrays(
        name=name,
        client_ids=np.array(ids.encoded),
        client_offsets=assignment.offsets,
        pixels=_GatheredPixels(split.table.pixels, assignment.order),
        labels=labels,
        scale=split.scale,
        offset=split.offset,
    )


def _no_clients(name: str) -> DataError:
    return DataError(f"split {name!r} holds no clients; give at least one")


def _write(
    path: Path, splits: list[SplitArrays], info: StoreInfo, on_progress: ProgressCallback
) -> str:
    """Writes into an empty file and returns the fingerprint."""
    if not splits:
        raise DataError("no splits were given; give the clients of at least one")
    places = _lay_out(path, splits, info)
    progress = Progress(sum(len(each.labels) for each in splits), on_progress)
    digest = Digest()
    with path.open("rb+", buffering=0) as file:
        for arrays in splits:
            digest.start(arrays)
            for name in ARRAYS:
                file.seek(places[arrays.name, name])
                for block in blocks(getattr(arrays, name)):
                    _write_whole(file, block)
                    digest.add(block)
                    progress.add(len(block) if name == "pixels" else 0)
    with _h5py_errors(), h5py.File(path, "r+", locking=False) as h5_file:
        h5_file.attrs.modify("fingerprint", digest.text())
    return digest.text()


def _lay_out(path: Path, splits: list[SplitArrays], info: StoreInfo) -> dict[tuple[str, str], int]:
    """Writes everything except the content of the arrays; returns the offset of each array.

    The arrays are written without HDF5: this is faster, and gives an errno if the disk is full.
    """
    places = {}
    with (
        _h5py_errors(),
        h5py.File(
            path, "w", alignment_threshold=1, alignment_interval=_ALIGNMENT, locking=False
        ) as file,
    ):
        attributes: dict[str, str | int] = {
            **{"format": hdf5.STORE_FORMAT, "version": VERSION, "fingerprint": Digest().text()},
            **{
                name: value if isinstance(value, (str, int)) else json.dumps(value)
                for name, value in attributes_of(info).items()
            },
            "info_fingerprint": info_fingerprint(info),
        }
        file.attrs.update({name: _attribute_value(value) for name, value in attributes.items()})
        for arrays in splits:
            group = file.create_group(f"splits/{arrays.name}")
            for name in ARRAYS:
                dataset = _make_dataset(group, name, getattr(arrays, name))
                places[arrays.name, name] = dataset.id.get_offset() or 0
            group["pixels"].attrs.update({"scale": arrays.scale, "offset": arrays.offset})
    return places


def _attribute_value(value: str | int) -> Any:
    """Returns an attribute as h5py writes it: a text gets a fixed length, if it is short enough.

    HDF5 stores a text of variable length in a heap, and readers scan the whole file to find heaps.
    """
    if not isinstance(value, str) or "\0" in value:  # h5py refuses zero bytes in a text
        return value
    text = value.encode()
    if len(text) > _MAX_TEXT_BYTES:
        return value
    return np.array(text, h5py.string_dtype("utf-8", max(1, len(text))))


def _make_dataset(group: Any, name: str, values: Rows) -> Any:
    """A dataset whose space in the file is allocated but not written."""
    dtype: Any = values.dtype
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # so that equal data give equal bytes
    space = h5py.h5s.create_simple(values.shape)
    created = h5py.h5d.create(
        group.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, creation
    )
    return h5py.Dataset(created)


@contextmanager
def _h5py_errors() -> Iterator[None]:
    """Converts h5py's exceptions for disk errors to OSErrors with one line of text."""
    try:
        yield
    except (OSError, RuntimeError) as err:
        number = re.search(r"errno = (\d+)", str(err))
        if number is None:
            raise OSError(hdf5.one_line(err)) from err
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from err


def _write_whole(file: io.RawIOBase, block: NDArray[Any]) -> None:
    rest = bytes_of(block)
    while rest:
        rest = rest[file.write(rest) :]
