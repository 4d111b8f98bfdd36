"""One NumPy archive: the headers of its arrays, and their values, streamed from the zip file."""

from __future__ import annotations

import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.importers.shared import check_id
from fedcli.datasets.importers.source_files import start_of
from fedcli.errors import DataError
from fedcli.zips import MAX_HEADER_BYTES, open_zip, read_npy_header

_ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_IS_ENCRYPTED = 1  # bit of a member's flags
_MAX_PACKING = 1032  # largest compression ratio of deflate
_MAX_REASON = 100  # characters shown of a message, because NumPy's messages quote the header
# The exceptions of zipfile, and those of parsing a damaged header.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError),
    *(RuntimeError, NotImplementedError, TypeError, MemoryError),
)


class Members(Protocol):
    """Named arrays: a zip file, or .npy files with the same interface."""

    def infolist(self) -> list[zipfile.ZipInfo]:
        """Returns the directory entry of each array."""

    def open(self, name: zipfile.ZipInfo) -> IO[bytes]:
        """Opens the bytes of one array."""


@dataclass(frozen=True)
class Array:
    """One array of the archive.

    Attributes:
        info: The directory entry.
        key: Its name without ".npy".
        dtype: The type of the stored values.
        shape: The declared shape, which fits the number of bytes.
        start: The offset of the values in the member.
        where: Prefix of error messages.
    """

    info: zipfile.ZipInfo
    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    where: str


def has_arrays(path: Path) -> bool:
    """Returns whether a file is a zip file with an array in it, or is a damaged zip file."""
    if start_of(path, 4) not in _ZIP_SIGNATURES:
        return False
    try:
        with open_zip(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except _DAMAGE:
        return True  # `open_archive` reports what is wrong


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive.

    Raises:
        DataError: It is damaged.
    """
    with ExitStack() as stack:
        with reading(path):
            archive = stack.enter_context(open_zip(path))
        yield archive


def members_of(archive: Members, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the arrays' members by key.

    Raises:
        DataError: Two arrays have the same key.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        key = info.filename.removesuffix(".npy")
        if key in members:
            raise DataError(f"{path}: holds {key!r} twice; save it again with np.savez")
        members[key] = info
    return members


def read_header(
    archive: Members, info: zipfile.ZipInfo, key: str, path: Path, *, may_hold_objects: bool = False
) -> Array:
    """Returns one array's header, checked against the archive's directory.

    The length of an array of objects, if one is allowed, is not checked: its values are a pickle.

    Raises:
        DataError: It is damaged or encrypted, holds objects, or declares a wrong size.
    """
    where = f"{path}: array {key!r}"
    if info.flag_bits & _IS_ENCRYPTED:
        raise DataError(f"{where}: is encrypted; save it again with np.savez")
    if info.compress_type not in _PLAIN_METHODS:
        raise DataError(f"{where}: is compressed by an unusual method; save it again with np.savez")
    with reading(where), archive.open(info) as member:
        shape, is_fortran, dtype, start = read_npy_header(member.read(MAX_HEADER_BYTES))
    if dtype.hasobject and may_hold_objects:
        return Array(info, key, dtype, shape, start, where)
    if dtype.hasobject:
        raise DataError(
            f"{where}: holds Python objects, which are never unpickled; save numbers or texts, "
            "which array.astype(int) or array.astype(str) returns"
        )
    if is_fortran and len(shape) > 1:
        raise DataError(
            f"{where}: is stored in Fortran order; save np.ascontiguousarray(array) instead"
        )
    _check_length(shape, dtype, start, info, where)
    return Array(info, key, dtype, shape, start, where)


@contextmanager
def open_values(archive: Members, array: Array) -> Iterator[Values]:
    """Opens an array, positioned after its header.

    Raises:
        DataError: It is damaged. Later reads may raise this, too.
    """
    with reading(array.where):
        member = archive.open(array.info)
    with member:
        with reading(array.where):
            member.read(array.start)
        yield Values(array, member)


class Values:
    """The values of an array that is being unpacked, in order."""

    def __init__(self, array: Array, member: IO[bytes]) -> None:
        """Takes the open member, positioned after the array's header."""
        self._array = array
        self._member = member

    def read(self, count: int) -> NDArray[Any]:
        """Returns the next values [count, ...] in native byte order. Raises DataError."""
        array = self._array
        shape = (count, *array.shape[1:])
        num_bytes = math.prod(shape) * array.dtype.itemsize
        with reading(array.where):
            content = self._member.read(num_bytes)
        if len(content) != num_bytes:
            raise DataError(f"{array.where}: ends too early; fetch or save it again")
        if array.dtype.kind == "b":
            is_set: NDArray[np.bool_] = np.frombuffer(content, np.uint8).reshape(shape) != 0
            return is_set
        values = np.frombuffer(content, array.dtype).reshape(shape)
        values = values.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.kind == "U" and values.size and array.dtype.itemsize:
            codes = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
            if codes.max() > sys.maxunicode:  # Python cannot make a text of such codes
                raise DataError(
                    f"{array.where}: a text in it has a code that is not a character; fetch or "
                    "save it again"
                )
        return values

    def read_ids(self, count: int) -> list[str]:
        """Returns the next values as client ids. Raises DataError if one is not allowed."""
        where = self._array.where
        try:
            values = self.read(count).tolist()
            names = [each.decode() if isinstance(each, bytes) else str(each) for each in values]
        except ValueError as err:  # it is not UTF-8, or not a valid character
            raise DataError(f"{where}: a client id is not text ({err}); rename it") from err
        known = {name: check_id(name, where) for name in dict.fromkeys(names)}
        return [known[name] for name in names]


def _check_length(
    shape: tuple[int, ...], dtype: np.dtype[Any], start: int, info: zipfile.ZipInfo, where: str
) -> None:
    declared = start + math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or declared != info.file_size:
        raise DataError(
            f"{where}: its shape {list(shape)} of {dtype} needs {declared} bytes but it has "
            f"{info.file_size}; save it again"
        )
    if info.file_size > _MAX_PACKING * (info.compress_size + 1):
        raise DataError(
            f"{where}: claims to unpack {info.file_size} bytes from {info.compress_size}, which is "
            "impossible; save it again"
        )


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turns the exceptions of zipfile for damage into a DataError that begins with `where`."""
    try:
        yield
    except _DAMAGE as err:
        reason = " ".join(str(err).split())[:_MAX_REASON] or type(err).__name__
        raise DataError(
            f"{where}: not a complete .npz archive ({reason}); fetch or save it again"
        ) from err
