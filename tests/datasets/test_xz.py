"""LZMA with bounded memory."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.datasets.importers.xz import XzReader


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=3), st.integers(1, 5000))
def test_packed_data_are_read_back(parts: list[bytes], step: int) -> None:
    with XzReader(io.BytesIO(b"".join(map(lzma.compress, parts)))) as reader:
        read = iter(lambda: reader.read(step), b"")
        assert b"".join(read) == b"".join(parts)


def test_a_file_that_needs_gigabytes_to_unpack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.xz"
    packed = lzma.compress(b"x" * 1000)
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    packed += lzma.compress(b"y", filters=large)
    # In the second stream's block header, the byte of the dictionary's size is set to 3 GiB, and
    # the checksum is computed again.
    at = len(lzma.compress(b"x" * 1000)) + 12
    header = bytearray(packed[at : at + 8])
    assert header[2] == lzma.FILTER_LZMA2
    header[4] = 39
    import zlib

    signed = bytes(header) + zlib.crc32(header).to_bytes(4, "little")
    path.write_bytes(packed[:at] + signed + packed[at + 12 :])
    with XzReader(path) as reader:
        assert reader.read(1000) == b"x" * 1000
        with pytest.raises(lzma.LZMAError, match="Memory usage limit"):
            reader.read(1)


def test_a_truncated_file_is_refused() -> None:
    with XzReader(io.BytesIO(lzma.compress(b"x" * 1000)[:-5])) as reader:
        assert reader.read(1000) == b"x" * 1000
        with pytest.raises(EOFError):
            reader.read(1)
