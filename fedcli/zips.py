"""Opens zip archives from untrusted sources, and reads the headers of NumPy arrays in them."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from fedcli.files import open_regular

# Size of an archive's central directory, which is read whole: about 50,000 members.
MAX_DIRECTORY_BYTES = 4 << 20
# Size of the header of a .npy file: more than NumPy writes for arrays of few dimensions.
MAX_HEADER_BYTES = 4096

# The records at an archive's end (APPNOTE.TXT, 4.3.14 to 4.3.16): the signature, the size, and the
# place in the record where the size of the central directory is written.
_END, _END_BYTES, _END_SIZE = b"PK\5\6", 22, 12
_LOCATOR, _LOCATOR_BYTES = b"PK\6\7", 20
_END64, _END64_BYTES, _END64_SIZE = b"PK\6\6", 56, 40
_MAX_COMMENT = 1 << 16
_VERSIONS = ((1, 0), (2, 0))


@contextlib.contextmanager
def open_zip(
    source: Path | bytes, max_directory_bytes: int = MAX_DIRECTORY_BYTES
) -> Iterator[zipfile.ZipFile]:
    """Opens an archive.

    Args:
        source: The file, or its content.
        max_directory_bytes: Largest size of the central directory, the list of the members.
            Reading it takes about ten times this size in memory.

    Raises:
        OSError: The file cannot be opened, or is a pipe, device or folder.
        zipfile.BadZipFile: It is damaged, or lists far too many members.
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
    with opened as file:
        num_bytes = _directory_bytes(file)
        if num_bytes > max_directory_bytes:
            raise zipfile.BadZipFile(
                f"its list of members has {num_bytes:,} bytes, and at most "
                f"{max_directory_bytes:,} are read"
            )
        with zipfile.ZipFile(file) as archive:
            yield archive


def read_npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Returns the shape, whether the order is Fortran's, the dtype, and the offset of the values.

    Args:
        start: The first `MAX_HEADER_BYTES` of a .npy file, or all of it.

    Raises:
        ValueError: It has another version, or is damaged. The message is short and does not quote
            the header.
    """
    stream = io.BytesIO(start)
    try:
        version = npy.read_magic(stream)
    except ValueError as err:
        raise ValueError("it does not begin as .npy does") from err
    if version not in _VERSIONS:
        raise ValueError(f".npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of the sizes that Python 2 wrote: 10L
            shape, is_fortran, dtype = read(stream)
    except Exception as err:  # Python's parser of literals raises many types
        raise ValueError("its header is garbled") from err
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("its header is garbled")
    return shape, is_fortran, dtype, stream.tell()


def _directory_bytes(file: BinaryIO) -> int:
    """The size of the central directory that the records at the end state; 0 without records."""
    size = file.seek(0, io.SEEK_END)
    tail_bytes = min(size, _MAX_COMMENT + _END_BYTES + _LOCATOR_BYTES + _END64_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    file.seek(0)
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        return 0
    num_bytes: int = struct.unpack_from("<I", tail, at + _END_SIZE)[0]
    locator = at - _LOCATOR_BYTES
    record = locator - _END64_BYTES
    if record >= 0 and tail.startswith(_LOCATOR, locator) and tail.startswith(_END64, record):
        num_bytes = max(num_bytes, struct.unpack_from("<Q", tail, record + _END64_SIZE)[0])
    return num_bytes
