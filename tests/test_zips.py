"""Zip archives: the sizes that their last records state, and the headers of arrays in them."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.zips import MAX_DIRECTORY_BYTES, open_zip, read_npy_header


def npy(header: bytes, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("array", [np.zeros((2, 3), "f4"), np.zeros(()), np.asfortranarray([[1]])])
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    shape, is_fortran, dtype, start = read_npy_header(stream.getvalue())
    assert (shape, dtype) == (array.shape, array.dtype)
    assert is_fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)
    assert len(stream.getvalue()) == start + array.nbytes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (2 * 1,4), }\n"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,4), }\n"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (True,), }\n"),
        npy(b"{'descr': lambda: 0, 'fortran_order': False, 'shape': (1,), }\n"),
        npy(b"(" * 3000),
        npy(b"{'descr': '|u1'}", b"\7\0"),
        npy(b"\xff" * 20),
    ],
)
def test_a_garbled_header_is_told_without_what_it_holds(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[\w .(),]{5,40}$") as raised:
        read_npy_header(content)
    assert not re.search("0x|object|descr", str(raised.value))


@given(st.binary(max_size=80))
def test_any_header_is_read_or_told(header: bytes) -> None:
    try:
        shape, *_ = read_npy_header(npy(header))
        assert all(size >= 0 for size in shape)
    except ValueError:
        pass


def zipped(num_members: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for index in range(num_members):
            archive.writestr(f"{index}", b"")
    return stream.getvalue()


def test_an_archive_is_opened_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(3))
    for source in (tmp_path / "a.zip", zipped(3)):
        with open_zip(source) as archive:
            assert archive.namelist() == ["0", "1", "2"]


def test_a_list_of_members_beyond_all_measure_is_not_read() -> None:
    content = bytearray(zipped(1))
    struct.pack_into("<I", content, content.rindex(b"PK\5\6") + 12, MAX_DIRECTORY_BYTES + 1)
    with (
        pytest.raises(zipfile.BadZipFile, match="at most 4,194,304 are read"),
        open_zip(bytes(content)),
    ):
        pass
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with (
        pytest.raises(zipfile.BadZipFile, match=r"at most|has 1,099,511,627,776"),
        open_zip(record + locator + end),
    ):
        pass


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(OSError, match="named pipe"), open_zip(tmp_path / "a.zip"):
        pass
