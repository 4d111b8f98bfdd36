"""HDF5 files that unpack to far more than they declare are refused before memory is allocated."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli import hdf5
from fedcli.errors import DataError

SHAPE = (5, 4, 4)
REPOSITORY = Path(__file__).resolve().parents[2]


def packed_zeros(num_mebibytes: int) -> bytes:
    """Returns `num_mebibytes` MiB of zeros packed by zlib; one packed block is repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler32 = ((num_mebibytes << 20) % 65521 << 16) | 1
    return b"\x78\xda" + block * num_mebibytes + packer.flush() + adler32.to_bytes(4, "big")


def test_packed_zeros_unpack_to_zeros() -> None:
    assert zlib.decompress(packed_zeros(3)) == bytes(3 << 20)


def write(path: Path, chunk: bytes, *filters: str, chunks: Any = SHAPE, shape: Any = SHAPE) -> Path:
    """Writes client a with 5 images; the bytes of `chunk` are stored as their pixels."""
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/a")
        group["label"] = np.arange(5, dtype="i4")
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(chunks)
        for name in filters:
            if name == "deflate":
                plist.set_deflate(9)
            elif name == "scaleoffset":
                plist.set_scaleoffset(h5py.h5z.SO_INT, 0)
            else:
                getattr(plist, f"set_{name}")()
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        made = h5py.h5d.create(group.id, b"pixels", h5py.h5t.STD_U8LE, space, plist)
        made.write_direct_chunk((0, 0, 0), chunk)
    return path


# A small process starts the command, because the peak memory that the kernel reports for a
# child includes the memory of the process that forked it.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def read_and_measure(path: Path) -> tuple[str, int]:
    """Returns what inspect-clients prints for a file, and the command's peak memory in MiB."""
    command = [sys.executable, "-m", "fedcli", "inspect-clients", "--data", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr, int(done.stdout) >> (20 if sys.platform == "darwin" else 10)


@pytest.mark.parametrize(
    ("filters", "fault"),
    [
        (("deflate", "deflate"), "packed by filter 1, twice"),
        (("deflate",), "stores or unpacks to more than its 80 bytes"),
        (("shuffle", "deflate", "fletcher32"), "stores or unpacks to more than its 80 bytes"),
    ],
)
def test_a_chunk_that_unpacks_to_gigabytes(
    tmp_path: Path, filters: tuple[str, ...], fault: str
) -> None:
    once = packed_zeros(1000)
    chunk = zlib.compress(once, 9) if filters.count("deflate") > 1 else once
    said, peak = read_and_measure(write(tmp_path / "bomb.h5", chunk, *filters))
    assert fault in said
    assert peak < 400


def test_a_chunk_whose_stored_size_fits_and_which_unpacks_to_more(tmp_path: Path) -> None:
    shape = (5, 1000, 1000)
    chunk = packed_zeros(2000)  # 2 MB, which unpack to 2,000 MiB; the pixels are only 5 MB
    path = write(tmp_path / "bomb.h5", chunk, "deflate", chunks=shape, shape=shape)
    said, peak = read_and_measure(path)
    assert "a chunk of 'pixels' stores or unpacks to more than its 5,000,000 bytes" in said
    assert peak < 400


def test_a_chunk_far_larger_than_its_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.h5", b"x", "deflate", chunks=(1 << 16, 1 << 7, 1 << 7))
    said, peak = read_and_measure(path)
    assert "a chunk of 'pixels' has 1,073,741,824 bytes, more than the dataset" in said
    assert peak < 400


def test_filters_that_nobody_uses_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.h5", bytes(80), "scaleoffset")
    fault = "packed by filter 6; only gzip, shuffle, fletcher32"
    with h5py.File(path) as file, pytest.raises(DataError, match=fault):
        hdf5.check_chunks(file["examples/a/pixels"].id, "here")


@pytest.mark.parametrize(
    "storage",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"chunks": (64, 28, 28), "maxshape": (None, 28, 28), "compression": "gzip"},
        {"chunks": (3, 7, 28)},
        {},
    ],
)
@pytest.mark.parametrize("is_noise", [False, True])
def test_files_of_h5py_are_read(tmp_path: Path, storage: Any, is_noise: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((20, 28, 28), np.uint8)
    if is_noise:  # noise becomes larger when it is compressed
        pixels = rng.integers(0, 256, pixels.shape, np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        hdf5.check_chunks(file.create_dataset("pixels", data=pixels, **storage).id, "here")


def test_a_large_correct_chunk_is_read(tmp_path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 40, 40), np.uint8)
    pixels[:, ::2] = 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", data=pixels, chunks=pixels.shape, compression="gzip")
        stored = made.id.get_chunk_info(0).size
        assert stored * 1032 > hdf5.MAX_UNPACKED_BYTES or stored > 200_000
        hdf5.check_chunks(made.id, "here")


def test_a_group_of_far_too_many_clients_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for index in range(6):
            file.create_group(f"examples/{index}")
        monkeypatch.setattr(hdf5, "MAX_NAMES", 5)
        with pytest.raises(DataError, match="a group holds 6 names, and at most 5 are read"):
            hdf5.link_names(file["examples"].id, "here")
        monkeypatch.setattr(hdf5, "MAX_NAMES", 6)
        assert hdf5.link_names(file["examples"].id, "here") == list("012345")
