"""CIFAR's binary files: planes become pixels; files with an incomplete record are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.datasets.importers import cifar, recognising, shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.errors import DataError

NAMES = [*"abcdefghij"]


def images_of(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def packed(images: NDArray[np.uint8], *labels: Any) -> bytes:
    """Returns records: a byte for each label, then the planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [np.asarray(each, np.uint8)[:, None] for each in labels]
    return np.concatenate([*columns, planes], axis=1).tobytes()


def write_ten(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(1, 12):
        content = packed(images_of(2, number), [number % 10, 0])
        (folder / f"data_batch_{number}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(packed(images_of(1, 99), [4]))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (folder / "readme.html").write_text("<html>")
    return folder


def message_of(*sources: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        recognising.read(sources, ImportOptions(format="cifar", **options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(sources[0]) in message
    return message


def read(*sources: Path, **options: Any) -> Imported:
    return recognising.read(sources, ImportOptions(**options))


def test_cifar_10(tmp_path: Path) -> None:
    found = read(write_ten(tmp_path / "cifar-10-batches-bin"))
    assert (found.format, found.num_classes, found.pixel_convention) == ("cifar", 10, "ink")
    assert found.class_names == tuple(NAMES)
    train, test = found.tables["train"], found.tables["test"]
    # Batches are sorted by number, not by name: batch 10 comes after batch 2.
    assert train.labels.tolist() == [each for n in range(1, 12) for each in (n % 10, 0)]
    expected = np.concatenate([images_of(2, number) for number in range(1, 12)])
    np.testing.assert_array_equal(train.pixels, expected)
    np.testing.assert_array_equal(test.pixels, images_of(1, 99))
    assert (train.scale, train.offset, len(train.owners)) == (1 / 255, 0.0, 0)


def test_cifar_100_takes_fine_labels(tmp_path: Path) -> None:
    for name, labels in (("train.bin", [99, 7]), ("test.bin", [3, 4])):
        (tmp_path / name).write_bytes(packed(images_of(2), [19, 0], labels))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"n{k}" for k in range(100)))
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"c{k}" for k in range(20)))
    found = read(tmp_path)
    assert found.num_classes == 100
    assert found.class_names[99] == "n99"
    assert found.tables["train"].labels.tolist() == [99, 7]
    assert found.tables["test"].labels.tolist() == [3, 4]
    np.testing.assert_array_equal(found.tables["train"].pixels, images_of(2))


def test_files_without_names_beside_them(tmp_path: Path) -> None:
    folder = write_ten(tmp_path / "set")
    (folder / "batches.meta.txt").unlink()
    found = read(folder / "data_batch_1.bin", folder / "test_batch.bin")
    assert [len(table) for table in found.tables.values()] == [2, 1]
    assert found.class_names == ()
    (folder / "batches.meta.txt").write_text("a\nb\n")
    found = read(folder / "data_batch_1.bin")
    assert found.class_names == ()
    assert found.notes == ("2 class names for 10 classes, so the names were left out",)


@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    images = images_of(data.draw(st.integers(1, 7)), data.draw(st.integers(0, 99)))
    is_fine = data.draw(st.booleans())
    classes = 100 if is_fine else 10
    size = len(images)
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    coarse = [[each % 20 for each in labels]] if is_fine else []
    path = tmp_path_factory.mktemp("cifar") / "records"
    path.write_bytes(packed(images, *coarse, labels))
    found = read(path)
    assert found.num_classes == classes
    np.testing.assert_array_equal(found.tables["train"].pixels, images)
    assert found.tables["train"].labels.tolist() == labels


def test_many_blocks_read_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 2 * 3073)
    path = tmp_path / "train.bin"
    path.write_bytes(packed(images_of(5), [1, 2, 3, 4, 5]))
    told: list[tuple[int, int | None]] = []
    found = recognising.read([path], None, None, lambda *at: told.append(at))
    np.testing.assert_array_equal(found.tables["train"].pixels, images_of(5))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_fit_is_applied(tmp_path: Path) -> None:
    found = read(write_ten(tmp_path / "set"), fit=lambda pixels: pixels[:, ::2, ::2])
    assert found.tables["train"].pixels.shape == (22, 16, 16, 3)


def test_a_cut_file(tmp_path: Path) -> None:
    folder = write_ten(tmp_path / "set")
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    message = message_of(folder)
    assert f"{path}: 6145 bytes are not a whole number of CIFAR-10's records of 3073" in message
    # A single file is recognised by the labels of its first records.
    path.write_bytes(packed(images_of(70), range(0, 70) % np.array([10]))[:-5])
    assert cifar.recognises(path)
    assert "not a whole number" in message_of(path)


def test_labels_that_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BLOCK_BYTES", 50 * 3073)
    folder = write_ten(tmp_path / "set")
    labels = np.zeros(70, int)
    labels[66] = 10
    (folder / "data_batch_2.bin").write_bytes(packed(images_of(70), labels))
    message = message_of(folder)
    assert "data_batch_2.bin: record 66: label 10 is outside 0 to 9 of CIFAR-10" in message
    (folder / "data_batch_2.bin").write_bytes(packed(images_of(1), [255]))
    assert "data_batch_2.bin: record 0: label 255" in message_of(folder)


def test_labels_beyond_the_number_of_classes_asked_for(tmp_path: Path) -> None:
    folder = write_ten(tmp_path / "set")
    assert "label 9 is outside 0 to 8; pass --num-classes 10" in message_of(folder, num_classes=9)
    wide = read(folder, num_classes=12)
    assert (wide.num_classes, wide.class_names) == (12, ())


def test_both_sets_at_once(tmp_path: Path) -> None:
    folder = write_ten(tmp_path / "set")
    (folder / "train.bin").write_bytes(packed(images_of(2), [1, 2], [70, 80]))
    assert "is of CIFAR-10 but" in message_of(folder)


@pytest.mark.parametrize("content", [b"", b"\x01" * 3072, b"\x14" + bytes(3072), b"text\n" * 3074])
def test_other_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    assert not cifar.recognises(path)
    assert "holds no records of CIFAR-10" in message_of(path)


def test_python_version_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02}q\x01(U\x0bbatch_label" + bytes(40_000))
    assert "give complete files of the binary version" in message_of(tmp_path)
