"""Reads HDF5 files from untrusted sources: no link that leaves the file is followed."""

from __future__ import annotations

import contextlib
import math
import mmap
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedcli.errors import DataError
from fedcli.files import check_regular, open_regular

STORE_FORMAT = "fedcli-store"  # the root attribute `format` of a fedcli store

# Deflate compresses by at most 1032 to 1. A file that claims more than 2000 to 1 is not complete.
_MAX_PACKING = 2000
_SMALL_BYTES = 1 << 20
MAX_NAMES = 200_000  # names in a group; a TFF file has one for each client
# HDF5 decompresses a chunk into a buffer that it doubles until all fits. If the stored bytes of a
# chunk could decompress to more than `MAX_UNPACKED_BYTES`, the chunk is first decompressed here, up
# to the size that the file declares.
MAX_UNPACKED_BYTES = 256 << 20
MAX_CHUNK_BYTES = 64 << 20  # size of a decompressed chunk, or the dataset's size if that is larger
_DEFLATE_RATIO = 1032  # the largest there is
_CHUNK_OVERHEAD = 1 << 12  # bytes that a filter may add to data that do not compress
# The filters that are read: deflate, shuffle, Fletcher's checksum, LZF.
_DEFLATE, _FLETCHER = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32
_LZF = 32000  # the number under which h5py registers its filter
_FILTERS = {
    **{_DEFLATE: "gzip", h5py.h5z.FILTER_SHUFFLE: "shuffle", _FLETCHER: "fletcher32"},
    _LZF: "lzf",
}
_METADATA_CACHE_BYTES = 1 << 16
_LISTING_CACHE_BYTES = 16 << 20  # with less, HDF5 reads the names in a large group again and again
_LOCKED = re.compile(r"unable to lock file|file is already open for (?:write|SWMR)", re.IGNORECASE)
_HEAP = re.compile(b"GCOL\x01")
_SIZES = (8, 8)  # bytes of an offset and of a length, as all common writers choose them
_PLAIN_TYPES = (
    *(h5py.h5t.TypeStringID, h5py.h5t.TypeIntegerID),
    *(h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID),
)


def open_file(path: Path) -> Any:
    """Returns a read-only `h5py.File`. The text attributes of its root are safe to read.

    Raises:
        DataError: It cannot be opened: unreadable, truncated or damaged.
    """
    try:
        # No chunk cache, because each dataset is read whole and once.
        check_regular(path)
        file = h5py.File(path, "r", rdcc_nbytes=0)
        _bound_metadata_cache(file.id)
    except PermissionError as err:
        raise _no_permission(path) from err
    except (OSError, RuntimeError, ValueError) as err:
        lengths = re.search(r"truncated file: eof = (\d+), .*stored_eof = (\d+)", str(err))
        if lengths is not None:
            held, whole = map(int, lengths.groups())
            raise DataError(
                f"{path}: truncated HDF5 file, {held:,} bytes of {whole:,}; fetch or write it again"
            ) from err
        if _LOCKED.search(str(err)):
            raise DataError(
                f"{path}: is open for writing in another program, perhaps a notebook; close it "
                "there, or set HDF5_USE_FILE_LOCKING=FALSE to read it nevertheless"
            ) from err
        reason = re.sub(r"^Unable to synchronously open file \((.*)\)$", r"\1", one_line(err))
        raise DataError(f"{path}: damaged HDF5 file ({reason}); fetch or write it again") from err
    with reading(str(path)):
        if _has_variable_text(file):
            with open_regular(path) as raw:
                check_heaps(file, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ))
    return file


def new_in_memory() -> Any:
    """Returns a new, empty `h5py.File` in memory.

    HDF5 identifies open files by their names, also in memory. The name holds the number of the
    thread, so that each thread can have such a file open at the same time.
    """
    name = f"in memory of thread {threading.get_ident()}"
    return h5py.File(name, "w", driver="core", backing_store=False)


def check_heaps(file: Any, content: bytes | mmap.mmap) -> None:
    """Checks the global heaps of a file, where HDF5 keeps texts of variable length.

    HDF5 (format specification, III.E) would loop for ever over a damaged heap. This function scans
    the whole content. Texts of fixed length are in no heap.

    Args:
        file: The open `h5py.File`, of which no text has been read yet.
        content: Its bytes.

    Raises:
        ValueError: A heap is damaged, or offsets and lengths are not of 8 bytes.
    """
    if file.id.get_create_plist().get_sizes() != _SIZES:
        raise ValueError("its offsets and lengths are not of 8 bytes")
    for heap in _HEAP.finditer(content):
        if not _is_walkable(content, heap.start()):
            raise ValueError("a garbled heap of texts")


def _is_walkable(content: bytes | mmap.mmap, start: int) -> bool:
    """Whether each object of a heap has a length and ends within both heap and file."""
    end = start + int.from_bytes(content[start + 8 : start + 16], "little")
    position = start + 16
    while position + 16 <= end:
        size = int.from_bytes(content[position + 8 : position + 16], "little")
        is_free = content[position : position + 2] == b"\0\0"
        needed = size if is_free else 16 + (size + 7) // 8 * 8
        position += needed
        if needed < 16 or position > min(end, len(content)):
            return False
    return True


def _has_variable_text(file: Any) -> bool:
    """Whether an attribute of the root group is a text in a heap."""
    attrs = file.attrs  # h5py makes it anew each time
    kinds = (attrs.get_id(name).get_type() for name in attrs)
    return any(isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str() for kind in kinds)


def _no_permission(path: Path) -> DataError:
    return DataError(f"{path}: no permission to read it; change its mode or copy it")


def _bound_metadata_cache(file_id: Any, num_bytes: int = _METADATA_CACHE_BYTES) -> None:
    """Limits HDF5's metadata cache, which by default keeps 40 KB a client and 32 MB in all."""
    config = file_id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = num_bytes
    file_id.set_mdc_config(config)


def is_hdf5(path: Path) -> bool:
    """Returns whether a file has HDF5's signature. The rest may still be damaged.

    Raises:
        DataError: There is no permission to read it.
    """
    try:
        open_regular(path).close()  # without permission, h5py.is_hdf5 returns False and no reason
    except PermissionError as err:
        raise _no_permission(path) from err
    return bool(h5py.is_hdf5(path))


def is_store(path: Path) -> bool:
    """Returns whether an HDF5 file is marked as a fedcli store, of any version.

    Raises:
        DataError: The file cannot be opened.
    """
    with open_file(path) as file, reading(str(path)):
        return has_store_format(file.attrs)


def has_store_format(attrs: Any) -> bool:
    """Returns whether the root attributes are those of a fedcli store."""
    name = read_attribute(attrs, "format") if "format" in attrs else None
    return isinstance(name, str) and name == STORE_FORMAT


def read_attribute(attrs: Any, name: str) -> object:
    """Returns an attribute that is one number or one text; None for any other.

    Other types are never read: with a damaged type, HDF5 reads from an invalid address and the
    process dies. Texts of variable length are read from the root group only, because `open_file`
    checks the heaps for these alone.
    """
    attribute = attrs.get_id(name)
    kind = attribute.get_type()
    is_plain = isinstance(kind, _PLAIN_TYPES) and attribute.shape == ()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        is_plain = is_plain and h5py.h5i.get_name(attribute) == b"/"
    value = attrs[name] if is_plain else None
    if isinstance(value, np.bytes_):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns the exceptions that h5py raises on damage into a DataError that starts with `where`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as err:
        raise DataError(
            f"{where}: damaged ({one_line(err)}); fetch or write the file again"
        ) from err


def open_group(parent: Any, name: bytes, where: str) -> Any:
    """Returns the `h5g.GroupID` of a group, which is never a link.

    Raises:
        DataError: It is missing, a link, or not a group.
    """
    opened = _open_object(parent, name, where)
    if not isinstance(opened, h5py.h5g.GroupID):
        raise DataError(
            f"{where}: {_shown(name)} is not a group, but in federated data it is one; give "
            "another file"
        )
    return opened


def open_dataset(parent: Any, name: bytes, where: str) -> Any:
    """Returns the `h5d.DatasetID` of a dataset whose data are in the file itself.

    Raises:
        DataError: It is missing, a link, not a dataset, has its data in other files, or claims far
            more bytes than the file holds.
    """
    opened = _open_object(parent, name, where)
    if not isinstance(opened, h5py.h5d.DatasetID):
        raise DataError(
            f"{where}: {_shown(name)} is not a dataset, but in federated data it is one; give "
            "another file"
        )
    plist = opened.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise DataError(
            f"{where}: the data of {_shown(name)} lie in other files, which are never followed; "
            "store them in this one"
        )
    claimed = math.prod(opened.shape or ()) * opened.get_type().get_size()
    if claimed > _SMALL_BYTES and claimed > _MAX_PACKING * opened.get_storage_size():
        raise DataError(
            f"{where}: {_shown(name)} claims {claimed} bytes but the file holds "
            f"{opened.get_storage_size()}; it was not written whole"
        )
    return opened


def check_chunks(dataset: Any, where: str) -> None:
    """Checks, before they are read, that chunks decompress to no more than their declared size.

    Args:
        dataset: An `h5d.DatasetID`.
        where: Prefix of error messages.

    Raises:
        DataError: A chunk is larger than its dataset, is compressed twice or by an unknown filter,
            or has more bytes than declared, stored or decompressed.
    """
    plist = dataset.get_create_plist()
    if plist.get_layout() != h5py.h5d.CHUNKED:
        return
    name = _shown(h5py.h5i.get_name(dataset).rpartition(b"/")[2])
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    for each in filters:
        if each not in _FILTERS or filters.count(each) > 1:
            raise DataError(
                f"{where}: {name} is packed by filter {each}"
                f"{', twice' if each in _FILTERS else ''}; "
                f"only {', '.join(_FILTERS.values())} are read, each at most once; write the "
                "file again"
            )
        packed_for = plist.get_filter(filters.index(each))[2][2:3]  # the buffer that LZF allocates
        if each == _LZF and packed_for and packed_for[0] > MAX_UNPACKED_BYTES:
            raise DataError(f"{where}: {name} is damaged; fetch or write the file again")
    item_bytes = dataset.get_type().get_size()
    chunk_bytes = math.prod(plist.get_chunk()) * item_bytes
    if chunk_bytes > max(MAX_CHUNK_BYTES, math.prod(dataset.shape or ()) * item_bytes):
        raise DataError(
            f"{where}: a chunk of {name} has {chunk_bytes:,} bytes, more than the dataset; write "
            "the file again with smaller chunks"
        )
    for chunk in _chunks(dataset):
        if chunk.size > chunk_bytes * 1.01 + _CHUNK_OVERHEAD or (
            _DEFLATE in filters
            and chunk.size * _DEFLATE_RATIO > MAX_UNPACKED_BYTES
            and not _unpacks_to(dataset, chunk, filters, chunk_bytes)
        ):
            raise DataError(
                f"{where}: a chunk of {name} stores or unpacks to more than its {chunk_bytes:,} "
                "bytes; it was made to fill the memory, or is damaged"
            )


def _chunks(dataset: Any) -> list[Any]:
    """The offset and size of each stored chunk, as the file declares them."""
    chunks: list[Any] = []
    if hasattr(dataset, "chunk_iter"):
        dataset.chunk_iter(chunks.append)
    else:  # HDF5 before 1.12.3, which searches for each chunk from the first one on
        chunks += map(dataset.get_chunk_info, range(dataset.get_num_chunks()))
    return chunks


def _unpacks_to(dataset: Any, chunk: Any, filters: list[int], most: int) -> bool:
    """Whether a chunk with a deflate filter decompresses to at most `most` bytes."""
    mask, content = dataset.read_direct_chunk(chunk.chunk_offset)
    if mask & 1 << filters.index(_DEFLATE):  # this chunk was stored without compression
        return True
    unpacker = zlib.decompressobj()
    with contextlib.suppress(zlib.error):  # HDF5 stops at the damage, too, and reports it
        return len(unpacker.decompress(content, most + _CHUNK_OVERHEAD)) <= most + 4
    return True


def is_dataset(group: Any, name: bytes) -> bool:
    """Returns whether a name in a group is a dataset and no link."""
    if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        return False
    return isinstance(h5py.h5o.open(group, name), h5py.h5d.DatasetID)


def read_whole(dataset: Any, where: str) -> Any:
    """Returns all values of an `h5d.DatasetID` that `open_dataset` opened, in native byte order.

    Raises:
        DataError: Its chunks claim more than the file holds.
    """
    check_chunks(dataset, where)
    values = np.empty(dataset.shape, dataset.dtype.newbyteorder("="))
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def has_link(group: Any, name: bytes) -> bool:
    """Returns whether a group has a member of that name, without following a link."""
    return bool(group.links.exists(name))


def link_names(group: Any, where: str) -> list[str]:
    """Returns the names in a group, sorted.

    Raises:
        DataError: A name is not UTF-8, or there are more than `MAX_NAMES`.
    """
    count = len(group)
    if count > MAX_NAMES:
        raise DataError(
            f"{where}: a group holds {count:,} names, and at most {MAX_NAMES:,} are read: HDF5 "
            "takes a millisecond for each; give the data as SQLite, LEAF or CSV"
        )
    file_id = h5py.h5i.get_file_id(group)
    _bound_metadata_cache(file_id, _LISTING_CACHE_BYTES)
    try:
        names = sorted(group)
    finally:
        _bound_metadata_cache(file_id)
    return decode_names(names, where)


def decode_names(names: list[bytes], where: str) -> list[str]:
    """Returns names as text. Raises DataError if one is not UTF-8."""
    try:
        return [name.decode() for name in names]
    except UnicodeDecodeError as err:
        raise DataError(f"{where}: a name in it is not UTF-8 ({err.object!r}); rename it") from err


def one_line(err: BaseException) -> str:
    """Returns the message of an exception on one line."""
    return " ".join(str(err).split()) or type(err).__name__


def _open_object(parent: Any, name: bytes, where: str) -> Any:
    if not has_link(parent, name):
        present = ", ".join(map(repr, link_names(parent, where)[:10])) or "nothing"
        raise DataError(f"{where}: has no {_shown(name)}; it holds {present}; correct the file")
    if parent.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise DataError(
            f"{where}: {_shown(name)} is a link, and links are never followed; "
            "store the data themselves"
        )
    return h5py.h5o.open(parent, name)


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))
