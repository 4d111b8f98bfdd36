"""One IDX file: its header, and its values in order, raw or gzip.

A file consists of two zero bytes, a byte for the type, a byte for the rank, the sizes as big-endian
uint32, and the values row by row, also big-endian.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.importers.shared import BLOCK_BYTES
from fedcli.datasets.importers.source_files import start_of
from fedcli.errors import DataError
from fedcli.files import open_regular

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_RANK = 4
_GZIP_SIGNATURE = b"\x1f\x8b"
# Deflate compresses by at most 1032 to 1. A gzip file with a larger ratio is truncated or
# malicious.
_MAX_PACKING = 1032
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class IdxFile:
    """The header of one file.

    Attributes:
        path: The file.
        dtype: The type of its values, big-endian.
        shape: The shape that the header declares.
        is_packed: Whether it is gzip.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_packed: bool

    @property
    def num_header_bytes(self) -> int:
        """The number of bytes of the header."""
        return 4 + 4 * len(self.shape)

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def has_signature(path: Path) -> bool:
    """Returns whether a file begins like IDX. Its sizes are not checked."""
    start = start_of(path, 4)
    if start[:2] == _GZIP_SIGNATURE:
        try:
            with gzip.open(path) as stream:
                start = stream.read(4)
        except _DAMAGE:
            return False
    return len(start) == 4 and not any(start[:2]) and start[2] in _TYPES and 1 <= start[3] <= 4


def read_header(path: Path) -> IdxFile:
    """Returns the header of a file, after checking its sizes against the file's length.

    Raises:
        DataError: The file is cut or damaged, or not an IDX file.
    """
    is_packed = start_of(path, 2) == _GZIP_SIGNATURE
    with _opened(path, is_packed=is_packed) as stream, _reading(path):
        start = stream.read(4)
        if len(start) < 4 or any(start[:2]) or start[2] not in _TYPES:
            raise DataError(
                f"{path}: begins with {start.hex(' ') or 'nothing'}, not with 00 00 and a type of "
                "IDX; fetch it again, or leave it out"
            )
        rank = start[3]
        if not 1 <= rank <= _MAX_RANK:
            raise DataError(
                f"{path}: declares {rank} dimensions, but only 1 to {_MAX_RANK} are allowed; leave "
                "it out"
            )
        sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise _cut_error(path)
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    header = IdxFile(path, np.dtype(_TYPES[start[2]]), shape, is_packed)
    _check_length(header)
    return header


@contextmanager
def open_values(header: IdxFile) -> Iterator[Values]:
    """Opens a file after its header, and checks at the end that the file is complete.

    Raises:
        DataError: The file is cut, damaged, or longer than its header says.
    """
    with _opened(header.path, is_packed=header.is_packed) as stream:
        with _reading(header.path):
            stream.read(header.num_header_bytes)
        values = Values(header, stream)
        yield values
        values.finish()


class Values:
    """The values of an open file, in order."""

    def __init__(self, header: IdxFile, stream: BinaryIO) -> None:
        """Takes the open file, positioned after its header."""
        self._header = header
        self._stream = stream
        self._num_left = header.num_bytes

    def read(self, count: int) -> NDArray[Any]:
        """Returns the next examples, labels or rows [count, ...]."""
        header = self._header
        shape = (count, *header.shape[1:])
        content = self._take(math.prod(shape) * header.dtype.itemsize)
        values = np.frombuffer(content, header.dtype).reshape(shape)
        return values.astype(header.dtype.newbyteorder("="), copy=False)

    def finish(self) -> None:
        """Checks that the file ends where its header says. Raises DataError."""
        while self._num_left:
            self._take(min(self._num_left, BLOCK_BYTES))
        with _reading(self._header.path):
            extra = self._stream.read(1)
        if extra:
            raise DataError(
                f"{self._header.path}: is longer than the {self._header.num_bytes} bytes that its "
                f"shape {list(self._header.shape)} needs; fetch it again"
            )

    def _take(self, num_bytes: int) -> bytes:
        with _reading(self._header.path):
            content = self._stream.read(num_bytes)
        if len(content) != num_bytes:
            raise _cut_error(self._header.path)
        self._num_left -= num_bytes
        return content


def _check_length(header: IdxFile) -> None:
    """Checks the size that a header declares against the file's length, before allocation."""
    path, size = header.path, header.path.stat().st_size
    declared = header.num_header_bytes + header.num_bytes
    is_possible = declared <= _MAX_PACKING * size if header.is_packed else declared == size
    if not is_possible:
        raise DataError(
            f"{path}: its shape {list(header.shape)} needs {declared} bytes but the file has "
            f"{size}{' compressed' if header.is_packed else ''}; fetch it again"
        )
    if header.shape[0] > MAX_COUNT:
        raise DataError(
            f"{path}: declares {header.shape[0]} examples, but at most {MAX_COUNT} are allowed; "
            "leave it out"
        )


@contextmanager
def _opened(path: Path, *, is_packed: bool) -> Iterator[BinaryIO]:
    with open_regular(path) as raw:
        if not is_packed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast(BinaryIO, stream)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the exceptions of gzip for damaged files into a DataError."""
    try:
        yield
    except _DAMAGE as err:
        raise DataError(f"{path}: truncated or damaged gzip file ({err}); fetch it again") from err


def _cut_error(path: Path) -> DataError:
    return DataError(f"{path}: ends too early; fetch it again")
