"""Train and test data of two files: their classes must be the same names or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.opening import DataSource, load, open_splits
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo
from fedcli.errors import DataError

PETS = ("cat", "dog", "emu")


def store(path: Path, names: tuple[str, ...] = (), num_classes: int = 3) -> Path:
    info = StoreInfo(num_classes=num_classes, pixel_convention="ink", class_names=names)
    pixels = np.zeros((3, 4, 4), np.uint8)
    client = ClientDataset("a", pixels, np.arange(3, dtype=np.int32), 1 / 255, 0.0, "drawn")
    store_writer.create(path, {"train": [client]}, info)
    return path


def tff(path: Path, labels: Any = (0, 1, 2)) -> Path:
    with h5py.File(path, "w") as file:
        file["examples/f0000_10/pixels"] = np.ones((3, 4, 4), np.float32)
        file["examples/f0000_10/label"] = np.array(labels, np.int32)
    return path


def opened(train: Path, test: Path, **options: Any) -> Any:
    splits = open_splits(DataSource(str(train), test_data=str(test), **options))
    return splits["train"], splits["test"]


def test_load_takes_the_two_files_in_order(tmp_path: Path) -> None:
    train, test = str(tff(tmp_path / "train.h5")), str(tff(tmp_path / "test.h5", (0, 1, 1)))
    ours, theirs = load(train, test)
    assert theirs is not None
    assert ours.labels("f0000_10").tolist() == [0, 1, 2]
    assert theirs.labels("f0000_10").tolist() == [0, 1, 1]
    assert load(train)[1] is None


@pytest.mark.parametrize(
    ("ours", "theirs"), [(PETS, PETS), ((), ()), (("0", "1", "2"), ()), ((), ("0", "1", "2"))]
)
def test_classes_that_are_the_same(tmp_path: Path, ours: Any, theirs: Any) -> None:
    train, test = opened(store(tmp_path / "a.h5", ours), store(tmp_path / "b.h5", theirs))
    assert train.num_classes == test.num_classes == 3


@pytest.mark.parametrize(
    ("ours", "theirs", "fault"),
    [
        (
            PETS,
            ("dog", "cat", "emu"),
            "class 0 is called 'cat' in train .* but 'dog' in test .*by name",
        ),
        (PETS, ("cat", "dog", "gnu"), "class 2 is called 'emu' in train"),
        (PETS, (), "train names its classes (cat, dog, emu; .*test numbers them"),
        ((), PETS, "test names its classes .*train numbers them"),
        (PETS, ("0", "1", "2"), "class 0 is called 'cat' in train"),
    ],
)
def test_labels_are_never_matched_by_position(
    tmp_path: Path, ours: Any, theirs: Any, fault: str
) -> None:
    with pytest.raises(DataError, match=fault.replace("(cat", r"\(cat")):
        opened(store(tmp_path / "a.h5", ours), store(tmp_path / "b.h5", theirs))


def test_a_tff_file_has_as_many_classes_as_the_store_beside_it(tmp_path: Path) -> None:
    few = store(tmp_path / "few.h5")
    train, test = opened(few, tff(tmp_path / "t.h5"), pixels="ink")
    assert train.num_classes == test.num_classes == 3
    assert test.labels("f0000_10").tolist() == [0, 1, 2]
    _, test = opened(few, tff(tmp_path / "u.h5", (0, 1, 7)), pixels="ink")
    with pytest.raises(DataError, match="label 7 is outside 0 to 2; pass --num-classes 8 or more"):
        test.labels("f0000_10")


def test_names_of_a_store_do_not_match_numbers_of_a_tff_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train names its classes .*test numbers them"):
        opened(store(tmp_path / "a.h5", PETS), tff(tmp_path / "t.h5"), pixels="ink")
    digits = store(tmp_path / "b.h5", tuple("0123456789"), num_classes=10)
    _, test = opened(digits, tff(tmp_path / "t.h5"), pixels="ink")
    assert test.num_classes == 10


def test_a_tff_file_beside_a_store_of_fewer_classes(tmp_path: Path) -> None:
    few, train = store(tmp_path / "few.h5"), tff(tmp_path / "t.h5")
    with pytest.raises(DataError, match="pass --num-classes 10, the larger number"):
        opened(train, few, pixels="ink")
    assert opened(train, few, pixels="ink", num_classes=10)[1].num_classes == 10
