"""The fedcli store: an HDF5 file with contiguous arrays, so that a client is a slice of a mapping.

This module describes and reads the file; `store_writer` writes it.

Root attributes: format, version, the fields of `StoreInfo`, info_fingerprint (a BLAKE2b of these
fields), and fingerprint. Group /splits/<name>:

    client_ids      fixed-length UTF-8 [num_clients], sorted, unique, padded with zero bytes
    client_offsets  int64 [num_clients + 1], from 0 to n; client i holds the examples from
                    client_offsets[i] up to, not including, client_offsets[i + 1]
    pixels          uint8 or float32 [n, H, W] or [n, H, W, C], attributes scale and offset
    labels          int32 [n]

The fingerprint is a BLAKE2b over the group /splits, split by split in the order of their names.
Equal data have equal fingerprints, whatever their metadata.
"""

from __future__ import annotations

import json
import math
import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.batches import ClientDataset, Pixels, first_outside
from fedcli.datasets.checks import bad_label, check_finite, check_num_classes, check_pixel_shape
from fedcli.datasets.client_data import CENTRAL, ClientData, decoding, unknown_client
from fedcli.datasets.description import SourceDescription, from_json
from fedcli.datasets.examining import examine
from fedcli.datasets.table import ExampleTable
from fedcli.digest import blake2b
from fedcli.errors import ConfigError, DataError, plural
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings.tables.partitions import describe_partition
from fedcli.settings.vocabulary import NATURAL, PIXEL_CONVENTIONS, SPLITS

VERSION = 1

T = TypeVar("T")

# The datasets of a split in order, with their NumPy types and ranks.
ARRAYS: dict[str, tuple[str | tuple[str, ...], tuple[int, ...]]] = {
    "client_ids": ("S", (1,)),
    "client_offsets": (("<i8",), (1,)),
    "pixels": (("|u1", "<f4"), (3, 4)),
    "labels": (("<i4",), (1,)),
}
_MAIN_SPLITS = (*SPLITS, CENTRAL)  # these come first, in this order
_BLOCK_BYTES = 8 << 20  # bytes that are copied or hashed at a time


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """The metadata of a store.

    Attributes:
        num_classes: Labels are 0 to num_classes - 1.
        pixel_convention: Meaning of 1.0 in decoded pixels: "ink" or "background".
        class_names: A name for each class; may be empty.
        same_people: Whether clients of train and test with equal ids are the same people.
        source: The origin of the data.
        licence: The licence of the data.
        partition: How examples were assigned to clients; "natural" if clients are the real owners.
        partition_parameters: The parameters of the partition, a JSON object.
        description: How its source was interpreted; None in older stores.
    """

    num_classes: int
    pixel_convention: str
    class_names: tuple[str, ...] = ()
    same_people: bool = True
    source: str = ""
    licence: str = ""
    partition: str = NATURAL
    partition_parameters: str = "{}"
    description: SourceDescription | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_num_classes(self.num_classes, "num_classes")
        for text in (self.source, self.licence, *self.class_names):
            if not text.isascii() and text.encode(errors="replace").decode() != text:
                raise ConfigError(
                    f"{text!r}: is not valid Unicode (it contains half a surrogate pair); rename it"
                )
        if self.pixel_convention not in PIXEL_CONVENTIONS:
            raise ConfigError(
                f"pixel convention {self.pixel_convention!r}: choose one of "
                f"{', '.join(PIXEL_CONVENTIONS)}"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"{len(self.class_names)} class names for {self.num_classes} classes; "
                "give one per class, or none"
            )
        try:
            is_object = isinstance(json.loads(self.partition_parameters), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ConfigError(
                f"partition parameters {self.partition_parameters!r}: give a JSON object"
            )


class Rows(Protocol):
    """An array, or an object that makes blocks of an array on demand."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Returns some rows."""


@dataclass(frozen=True, eq=False)
class SplitArrays:
    """The checked arrays of one split as in the file; see the docstring of the module."""

    name: str
    client_ids: NDArray[np.bytes_]  # [num_clients]
    client_offsets: NDArray[np.int64]  # [num_clients + 1]
    pixels: Pixels | Rows  # [n, H, W] or [n, H, W, C]
    labels: NDArray[np.int32]  # [n]
    scale: float
    offset: float


class Digest:
    """The fingerprint of splits, given in the order of their names, array by array."""

    def __init__(self) -> None:
        """Starts an empty digest."""
        self._hash = blake2b(digest_size=32)

    def start(self, split: SplitArrays) -> None:
        """Begins a split."""
        arrays = [getattr(split, name) for name in ARRAYS]
        layout = [(array.dtype.str, array.shape) for array in arrays]
        self._hash.update(json.dumps([split.name, split.scale, split.offset, layout]).encode())

    def add(self, block: NDArray[Any]) -> None:
        """Adds the next bytes of the split's arrays, in the order of `ARRAYS`."""
        self._hash.update(bytes_of(block))

    def text(self) -> str:
        """Returns the fingerprint of all added bytes: `blake2b:<hex>`."""
        return f"blake2b:{self._hash.hexdigest()}"


class Progress:
    """Reports the sum of all added amounts."""

    def __init__(self, total: int, on_progress: ProgressCallback) -> None:
        """Takes the total, and the function to which progress is reported."""
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, amount: int) -> None:
        """Adds an amount and reports the sum."""
        self._done += amount
        self._on_progress(self._done, self._total)


def attributes_of(info: StoreInfo) -> dict[str, Any]:
    """Returns the metadata of a store as values of JSON.

    A missing description is left out, so that older stores keep their fingerprints.
    """
    values = asdict(info)
    if info.description is None:
        del values["description"]
    return values


def info_fingerprint(info: StoreInfo) -> str:
    """Returns the fingerprint of a store's metadata: `blake2b:<hex>`."""
    text = json.dumps(attributes_of(info), sort_keys=True)
    return f"blake2b:{blake2b(text.encode(), digest_size=32).hexdigest()}"


def bytes_of(block: NDArray[Any]) -> memoryview:
    """Returns the bytes of a contiguous array without copying them."""
    return block.reshape(-1).view(np.uint8).data


def blocks(array: Rows) -> Iterator[NDArray[Any]]:
    """Yields pieces of bounded size along the first axis."""
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for first in range(0, array.shape[0], rows):
        yield array[first : first + rows]


# ---- Reading ------------------------------------------------------------------------------------


class StoredIds(Sequence[str]):
    """Sorted client ids, mapped from a store. An id is decoded when it is read."""

    def __init__(self, encoded: NDArray[np.bytes_]) -> None:
        """Takes the ids in UTF-8, sorted, unique and checked."""
        self._encoded = encoded

    def __len__(self) -> int:
        """Returns the number of ids."""
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Returns an id, or the list of the ids in a slice."""
        if isinstance(index, slice):
            return [name.decode() for name in self._encoded[index].tolist()]
        name: bytes = self._encoded[index]
        return name.decode()

    def __contains__(self, client_id: object) -> bool:
        """Returns whether an id is there, by bisection."""
        return isinstance(client_id, str) and self._find(client_id) is not None

    def index(self, client_id: str, start: int = 0, stop: int | None = None) -> int:
        """Returns the index of an id. Raises ValueError if it is not there."""
        place = self._find(client_id)
        if place is None or place not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{client_id!r} is not in the sequence")
        return place

    def _find(self, client_id: str) -> int | None:
        place = bisect_left(self, client_id)
        return place if place < len(self) and self[place] == client_id else None


class StoreSplit(ClientData):
    """One split of a store: its clients are slices of one read-only mapping of the file."""

    def __init__(
        self, mapped: _MappedSplit, info: StoreInfo, *, source: str, num_classes: int, pixels: str
    ) -> None:
        """Takes checked arrays. Use `open_store` to make splits."""
        self.source = source
        self.split = mapped.name
        self.num_classes = num_classes
        self.class_names = info.class_names or None
        self.client_ids = StoredIds(mapped.client_ids)
        self.pixel_shape = mapped.pixels.shape[1:]
        self.same_people = info.same_people
        if info.partition != NATURAL:  # natural data have no partition parameters, only other steps
            given = json.loads(info.partition_parameters).items()
            # Leave out filters and hold-outs, which do not assign examples to clients.
            own = {
                key: value for key, value in given if key == "before" or not isinstance(value, dict)
            }
            self.partition = describe_partition(info.partition, own)
        self._mapped = mapped
        self._scale, self._offset, self.pixel_convention = decoding(
            mapped.scale, mapped.offset, info.pixel_convention, pixels
        )
        # uint8 has no NaN; float32 pixels are checked when a client is first read.
        self._is_checked = np.full(len(self.client_ids), mapped.pixels.dtype == np.uint8)

    def examine(self) -> tuple[str, ...]:
        """Returns notes for the user before training; see `examining.examine`."""
        return examine(self, has_default_classes=False, is_scaled=True)

    def num_examples(self, client_id: str) -> int:
        """Returns how many examples a client holds."""
        first, last = self._mapped.bounds(self._client_index(client_id))
        return last - first

    def labels(self, client_id: str) -> NDArray[np.int32]:
        """Returns one client's labels, int32 [n]: a view of the file's mapping."""
        first, last = self._mapped.bounds(self._client_index(client_id))
        return self._mapped.labels[first:last]

    def client(self, client_id: str) -> ClientDataset:
        """Returns one client's examples: views of the file's mapping, no copies."""
        client_index = self._client_index(client_id)
        first, last = self._mapped.bounds(client_index)
        pixels = self._mapped.pixels[first:last]
        if not self._is_checked[client_index]:
            check_finite(pixels, f"{self.source}: client {client_id!r}")
            self._is_checked[client_index] = True
        labels = self._mapped.labels[first:last]
        return ClientDataset(client_id, pixels, labels, self._scale, self._offset, self.source)

    def total_examples(self) -> int:
        """Returns the number of examples of all clients."""
        return len(self._mapped.labels)

    def to_table(
        self, folder: Path | None = None, on_progress: ProgressCallback = ignore_progress
    ) -> ExampleTable:
        """Returns the arrays of the file without copying them. Checks float32 pixels."""
        mapped = self._mapped
        if mapped.pixels.dtype == np.float32:
            check_finite(mapped.pixels, self.source)
        sizes = np.diff(mapped.client_offsets)
        return ExampleTable(
            source=self.source,
            pixels=mapped.pixels,
            labels=mapped.labels,
            scale=self._scale,
            offset=self._offset,
            owner_ids=self.client_ids,
            owners=np.repeat(np.arange(len(sizes)), sizes),
        )

    def table_bytes(self) -> int:
        """Returns 0: `to_table` copies nothing."""
        return 0

    def _client_index(self, client_id: str) -> int:
        try:
            return self.client_ids.index(client_id)
        except (ValueError, TypeError):
            raise unknown_client(self, client_id) from None


@dataclass(frozen=True, eq=False)
class _MappedSplit(SplitArrays):
    """The arrays of one split, mapped and, except float32 pixels, checked."""

    pixels: Pixels

    def bounds(self, client_index: int) -> tuple[int, int]:
        """The index of a client's first example, and the index after its last one."""
        return int(self.client_offsets[client_index]), int(self.client_offsets[client_index + 1])


def open_store(
    path: Path, *, num_classes: int | None = None, pixels: str = "source"
) -> dict[str, StoreSplit]:
    """Returns the splits of a store, train first, checked.

    Pixels of float32 stores are checked when a client is first read. The file is memory-mapped, so
    it must not be truncated or written to while its splits are in use.

    Args:
        path: The file.
        num_classes: Overrides the store's own number of classes.
        pixels: "source", "ink" or "background".

    Raises:
        DataError: The file is not a store of this version, or anything in it is inconsistent.
    """
    with _opened(path) as (info, mapped_splits, _):
        classes = info.num_classes if num_classes is None else num_classes
        for mapped in mapped_splits:
            _check_split(mapped, classes, str(path))
        splits = {
            mapped.name: StoreSplit(
                mapped, info, source=str(path), num_classes=classes, pixels=pixels
            )
            for mapped in mapped_splits
        }
    names = [name for name in _MAIN_SPLITS if name in splits]
    return {name: splits[name] for name in dict.fromkeys([*names, *splits])}


def read_info(path: Path) -> StoreInfo:
    """Returns the metadata of a store.

    Raises:
        DataError: The file is not a store of this version.
    """
    with _opened(path) as (info, _, _):
        return info


def stored_fingerprint(path: Path) -> str:
    """Returns the fingerprint written in a store, unchecked: `blake2b:<hex>`.

    Raises:
        DataError: The file is not a store of this version.
    """
    with _opened(path) as (_, _, fingerprint):
        return fingerprint


def verify(path: Path, on_progress: ProgressCallback = ignore_progress) -> str:
    """Returns the fingerprint of a store after computing it from the data, block by block.

    Args:
        path: The file.
        on_progress: Called with the number of bytes read.

    Raises:
        DataError: The data or the metadata differ from those that were written, or a pixel is NaN
            or infinite.
    """
    with _opened(path) as (info, mapped_splits, stored):
        _check_info(path, info)
        for mapped in mapped_splits:
            _check_split(mapped, info.num_classes, str(path))
        computed = _fingerprint(mapped_splits, str(path), on_progress)
    if computed != stored:
        raise DataError(
            f"{path}: the data have fingerprint {computed} but the file was written with {stored}; "
            "it was changed or damaged, so write it again"
        )
    return computed


@contextmanager
def _opened(path: Path) -> Iterator[tuple[StoreInfo, list[_MappedSplit], str]]:
    """Yields the metadata of a store, its splits by name, and its fingerprint."""
    where = str(path)
    with hdf5.open_file(path) as file, hdf5.reading(where):
        if not hdf5.has_store_format(file.attrs):
            raise DataError(f"{where}: is not a fedcli store; choose another file")
        version = _attribute(file.attrs, "version", int, where)
        if version != VERSION:
            raise DataError(
                f"{where}: is a fedcli store of version {version}, but this fedcli reads version "
                f"{VERSION}; write it again, or use the fedcli that wrote it"
            )
        info = _read_info(file.attrs, where)
        fingerprint = _attribute(file.attrs, "fingerprint", str, where)
        with open_regular(path) as raw:
            mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        group = hdf5.open_group(file.id, b"splits", where)
        names = hdf5.link_names(group, where)
        if not names:
            raise DataError(f"{where}: has no splits; write the store again")
        splits = [_map_split(group, name, mapping, where) for name in names]
    yield info, splits, fingerprint


def _read_info(attrs: Any, where: str) -> StoreInfo:
    class_names = json.loads(_attribute(attrs, "class_names", str, where))
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        raise DataError(
            f"{where}: attribute class_names is not a JSON list of names; write the store again"
        )
    try:
        return StoreInfo(
            num_classes=_attribute(attrs, "num_classes", int, where),
            pixel_convention=_attribute(attrs, "pixel_convention", str, where),
            class_names=tuple(class_names),
            same_people=_attribute(attrs, "same_people", bool, where),
            source=_attribute(attrs, "source", str, where),
            licence=_attribute(attrs, "licence", str, where),
            partition=_attribute(attrs, "partition", str, where),
            partition_parameters=_attribute(attrs, "partition_parameters", str, where),
            description=_read_description(attrs, where),
        )
    except ConfigError as err:
        raise DataError(f"{where}: {err}") from err


def _read_description(attrs: Any, where: str) -> SourceDescription | None:
    """The description of the source; None in stores written before it was recorded."""
    if "description" not in attrs:
        return None
    return from_json(_attribute(attrs, "description", str, where), where)


def _check_info(path: Path, info: StoreInfo) -> None:
    """Checks that the metadata of a store are those that were written."""
    with hdf5.open_file(path) as file, hdf5.reading(str(path)):
        stored = _attribute(file.attrs, "info_fingerprint", str, str(path))
    if stored != info_fingerprint(info):
        raise DataError(
            f"{path}: its attributes (classes, source, partition, ...) are not those it was "
            "written with; it was changed or damaged, so write it again"
        )


def _attribute(attrs: Any, name: str, kind: type[T], where: str) -> T:
    if name not in attrs:
        raise DataError(f"{where}: attribute {name} is missing; write the store again")
    value = hdf5.read_attribute(attrs, name)
    if type(value) is not kind:
        raise DataError(
            f"{where}: attribute {name} is not of type {kind.__name__}; write the store again"
        )
    return value


def _map_split(parent: Any, name: str, mapping: mmap.mmap, source: str) -> _MappedSplit:
    where = f"{source}: split {name!r}"
    group = hdf5.open_group(parent, name.encode(), where)
    arrays = {array: _map_array(group, array, mapping, where) for array in ARRAYS}
    attrs = h5py.Dataset(hdf5.open_dataset(group, b"pixels", where)).attrs
    scale = _attribute(attrs, "scale", float, where)
    offset = _attribute(attrs, "offset", float, where)
    if not (math.isfinite(scale) and math.isfinite(offset)):
        raise DataError(
            f"{where}: scale {scale} and offset {offset} must be finite; write the store again"
        )
    return _MappedSplit(name=name, scale=scale, offset=offset, **arrays)


def _map_array(group: Any, name: str, mapping: mmap.mmap, where: str) -> Any:
    """One dataset as a read-only view of the mapping, of a type and rank that `ARRAYS` allows."""
    dataset = hdf5.open_dataset(group, name.encode(), where)
    types, ranks = ARRAYS[name]
    dtype, shape = dataset.dtype, dataset.shape
    allowed = dtype.kind == "S" if types == "S" else dtype.str in types
    if not allowed or shape is None or len(shape) not in ranks:
        raise DataError(
            f"{where}: {name} has the unexpected type {dtype} and shape {shape}; write the store "
            "again"
        )
    if not math.prod(shape):
        return np.empty(shape, dtype)
    if dataset.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise DataError(f"{where}: {name} is chunked or compressed; write the store again")
    first_byte, num_bytes = dataset.get_offset(), math.prod(shape) * dtype.itemsize
    if first_byte is None or first_byte + num_bytes > len(mapping):
        raise DataError(f"{where}: {name} ends beyond the end of the file; fetch it again")
    if dtype.kind != "S" and first_byte % dtype.itemsize:
        raise DataError(f"{where}: {name} is not aligned to its type; write the store again")
    return np.frombuffer(mapping, dtype, math.prod(shape), first_byte).reshape(shape)


def _check_split(mapped: _MappedSplit, num_classes: int, source: str) -> None:
    """Checks that the arrays of a split agree with each other; pixel values are not read."""
    where = f"{source}: split {mapped.name!r}"
    _check_ids(mapped.client_ids, where)
    num_examples, offsets = len(mapped.labels), mapped.client_offsets
    sizes = np.diff(offsets)
    if len(sizes) != len(mapped.client_ids):
        raise DataError(
            f"{where}: {plural(len(mapped.client_ids), 'client')} but "
            f"{plural(len(sizes), 'size')}; write the store again"
        )
    if offsets[0] != 0 or offsets[-1] != num_examples or (offsets[1:] < offsets[:-1]).any():
        raise DataError(
            f"{where}: client_offsets do not increase from 0 to {num_examples}; write the store "
            "again"
        )
    if sizes.max() > MAX_COUNT:
        raise DataError(
            f"{where}: a client has {sizes.max()} examples; at most {MAX_COUNT} are allowed, so "
            "divide it into several clients"
        )
    check_pixel_shape(mapped.pixels.shape, where)
    if len(mapped.pixels) != num_examples:
        raise DataError(
            f"{where}: {plural(len(mapped.pixels), 'image')} but {plural(num_examples, 'label')}; "
            "each image needs one label"
        )
    example = first_outside(mapped.labels, num_classes)
    if example is not None:
        client_index = int(np.searchsorted(offsets, example, side="right")) - 1
        client_where = f"{source}: client {mapped.client_ids[client_index].decode()!r}"
        index = example - int(offsets[client_index])
        label, largest = int(mapped.labels[example]), int(mapped.labels.max())
        raise bad_label(label, index, num_classes, client_where, largest)


def _check_ids(encoded: NDArray[np.bytes_], where: str) -> None:
    if not len(encoded):
        raise DataError(f"{where}: holds no clients; write the store again")
    is_byte = encoded.view(np.uint8).reshape(len(encoded), -1) != 0
    if not is_byte[:, 0].all() or (is_byte[:, 1:] & ~is_byte[:, :-1]).any():
        raise DataError(
            f"{where}: a client id is empty or holds a zero byte; write the store again"
        )
    if not (encoded[:-1] < encoded[1:]).all():
        place = int((encoded[:-1] >= encoded[1:]).argmax())
        raise DataError(
            f"{where}: client ids are not sorted and unique: {bytes(encoded[place + 1])!r} comes "
            f"after {bytes(encoded[place])!r}; write the store again"
        )
    if not encoded.tobytes().isascii():
        hdf5.decode_names(encoded.tolist(), where)


def _fingerprint(splits: Sequence[SplitArrays], source: str, on_progress: ProgressCallback) -> str:
    """Computes the fingerprint of mapped splits. Also checks float32 pixels."""
    arrays = [(split, getattr(split, name)) for split in splits for name in ARRAYS]
    progress = Progress(sum(array.nbytes for _, array in arrays), on_progress)
    digest = Digest()
    for split in splits:
        digest.start(split)
        for name in ARRAYS:
            for block in blocks(getattr(split, name)):
                if block.dtype == np.float32:
                    check_finite(block, f"{source}: split {split.name!r}")
                digest.add(block)
                progress.add(block.nbytes)
    return digest.text()
