from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.errors import ConfigError, RunError
from fedcli.models import weights_files

SHAPES = [(4, 3), (3,)]
KERNEL = np.arange(12, dtype=np.float32).reshape(SHAPES[0])
BIAS = np.array([1, -2, 3], np.float32)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def write_zip(path: Path, *members: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for index, content in enumerate(members):
            archive.writestr(f"arr_{index}.npy", content)


def test_round_trip_keeps_order_names_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    weights_files.save_npz(path, {"dense/kernel": KERNEL, "dense/bias": BIAS})
    with np.load(path, allow_pickle=False) as stored:
        assert stored.files == ["dense/kernel", "dense/bias"]
    loaded = weights_files.load_npz(path, SHAPES)
    for array, expected in zip(loaded, (KERNEL, BIAS), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)
    first = path.read_bytes()
    weights_files.save_npz(path, {"dense/kernel": KERNEL, "dense/bias": BIAS})
    assert path.read_bytes() == first


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes_by_position(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "w.npz"
    save(path, np.asfortranarray(KERNEL.astype(np.float64)), BIAS.astype(np.float16))
    loaded = weights_files.load_npz(path, SHAPES)
    np.testing.assert_array_equal(loaded[0], KERNEL)
    np.testing.assert_array_equal(loaded[1], BIAS)


def test_a_mismatch_shows_both_lists(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, BIAS, KERNEL)
    with pytest.raises(
        ConfigError, match=r"shapes \[3\], \[4, 3\], but the model needs \[4, 3\], \[3\]"
    ):
        weights_files.load_npz(path, SHAPES)
    np.savez(path, KERNEL, BIAS, BIAS, BIAS)
    with pytest.raises(ConfigError, match=r"\[4, 3\], \[3\], \[3\], \.\.\., but the model needs"):
        weights_files.load_npz(path, SHAPES)
    np.savez(path)
    with pytest.raises(ConfigError, match="shapes none"):
        weights_files.load_npz(path, SHAPES)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([npy(KERNEL), npy(np.array([np.nan, 1, 2]))], "array 1 holds NaN"),
        ([npy(KERNEL), npy(np.array([1e300, 1, 2]))], "array 1 holds NaN or infinity"),
        ([npy(KERNEL.astype(int)), npy(BIAS)], "holds int64"),
        ([npy(KERNEL.astype(complex)), npy(BIAS)], "holds complex128"),
        ([npy(KERNEL), npy(BIAS) + b"more"], "does not hold the array that its header declares"),
        ([npy(KERNEL), npy(BIAS)[:-1]], "does not hold the array that its header declares"),
        ([npy(KERNEL), b"text"], "it does not begin as .npy does"),
        ([npy(KERNEL), b""], "it does not begin as .npy does"),
        ([npy(KERNEL), npy(BIAS).replace(b"{'descr'", b"exit(  )")], "its header is garbled"),
        ([npy(KERNEL), npy(BIAS).replace(b"{'descr'", b"((((((((")], "its header is garbled"),
        ([npy(np.array([Bomb()], object)), npy(BIAS)], "holds object"),
        ([pickle.dumps(Bomb()), npy(BIAS)], "it does not begin as .npy does"),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[bytes], fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "w.npz", *members)
    with pytest.raises(ConfigError, match=fault) as caught:
        weights_files.load_npz(tmp_path / "w.npz", SHAPES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    # 100 MB of zeros after a header that declares the right shape.
    write_zip(path, npy(KERNEL) + bytes(100_000_000), npy(BIAS), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="does not hold the array that its header declares"):
        weights_files.load_npz(path, SHAPES)
    header = npy(KERNEL).replace(b"(4, 3)", b"(2**9)")
    write_zip(path, header, npy(BIAS))
    with pytest.raises(ConfigError, match="its header is garbled"):
        weights_files.load_npz(path, SHAPES)


def test_unusual_packing_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "w.npz", npy(KERNEL), npy(BIAS), method=zipfile.ZIP_LZMA)
    with pytest.raises(ConfigError, match="unusual method"):
        weights_files.load_npz(tmp_path / "w.npz", SHAPES)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the weights"):
        weights_files.load_npz(tmp_path / "none.npz", SHAPES)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ConfigError, match=r"is not an \.npz archive"):
        weights_files.load_npz(tmp_path / "text.npz", SHAPES)
    write_zip(tmp_path / "cut.npz", npy(KERNEL), npy(BIAS))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"is not an \.npz archive"):
        weights_files.load_npz(tmp_path / "cut.npz", SHAPES)


def test_saving_replaces_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="is not a regular file"):
        weights_files.save_npz(tmp_path / "folder", {"a": BIAS})
    with pytest.raises(RunError, match="cannot write"):
        weights_files.save_npz(tmp_path / "none" / "w.npz", {"a": BIAS})
    (tmp_path / "old.npz").write_text("old")
    weights_files.save_npz(tmp_path / "old.npz", {"a": BIAS})
    np.testing.assert_array_equal(weights_files.load_npz(tmp_path / "old.npz", [(3,)])[0], BIAS)


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "w.npz"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="No space left"):
        weights_files.save_npz(path, {"a": BIAS})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
