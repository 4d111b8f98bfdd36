"""CIFAR's Python version is read without executing its pickles; other pickles are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli.datasets.importers import recognising
from fedcli.errors import DataError

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
ROWS = IMAGES.transpose(0, 3, 1, 2).reshape(6, 3072)
LABELS = [3, 0, 9, 1, 2, 3]


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode])
def test_files_of_any_protocol(tmp_path: Path, protocol: int, key: Any) -> None:
    content = {key("data"): ROWS, key("labels"): LABELS, key("batch_label"): b"batch 1 of 5"}
    for name in ("data_batch_1", "data_batch_10", "data_batch_2", "test_batch"):
        write(tmp_path / name, content, protocol)
    names = [f"class {index}" for index in range(10)]
    write(tmp_path / "batches.meta", {key("label_names"): names}, protocol)
    (tmp_path / "readme.html").write_text("text")
    found = recognising.read([tmp_path])
    assert (found.format, found.class_names) == ("cifar-python", tuple(names))
    assert {split: len(table) for split, table in found.tables.items()} == {"train": 18, "test": 6}
    np.testing.assert_array_equal(found.tables["test"].pixels, IMAGES)
    assert found.tables["test"].labels.tolist() == LABELS


def test_cifar_100_and_a_file_alone(tmp_path: Path) -> None:
    content = {"data": ROWS, "fine_labels": [99, *LABELS[1:]], "coarse_labels": [0] * 6}
    write(tmp_path / "train", content)
    write(tmp_path / "test", content)
    found = recognising.read([tmp_path])
    assert (list(found.tables), found.num_classes) == (["train", "test"], 100)
    alone = recognising.read([tmp_path / "test"])
    assert list(alone.tables) == ["train"]
    np.testing.assert_array_equal(alone.tables["train"].pixels, IMAGES)


def test_files_written_by_python_2(tmp_path: Path) -> None:
    small = bytes(3072)
    path = tmp_path / "data_batch_1"
    path.write_bytes(
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x07aU\x04dataq\x04cnumpy.core.multiarray\n"
        b"_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x01"
        b"M\x00\x0c\x86q\x0bcnumpy\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01|q"
        b"\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11b\x89T\x00\x0c\x00\x00"
        + small
        + b"q\x12tq\x13bu."
    )
    table = recognising.read([path]).tables["train"]
    assert (table.pixels.shape, table.labels.tolist()) == ((1, 32, 32, 3), [7])


class _Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm_was_done"),))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (_Harmful(), "holds more than plain values (pathlib"),
        ({"data": ROWS, "labels": _Harmful()}, "holds more than plain values"),
        ({"data": np.array([None]), "labels": [1]}, "not of plain numbers"),
        ({"data": ROWS[:, :3000], "labels": LABELS}, "CIFAR's are uint8 [n, 3072]"),
        ({"data": ROWS.astype(float), "labels": LABELS}, "CIFAR's are uint8 [n, 3072]"),
        ({"data": ROWS, "labels": LABELS[:5]}, "6 images but 5 labels"),
        ({"data": ROWS, "labels": [0.5] * 6}, "label 0.5 is not a whole number"),
        ({"x": ROWS, "y": LABELS}, "not CIFAR's data and labels; save the arrays with numpy"),
        ([1, 2], "not a file of CIFAR-10 or CIFAR-100; save the arrays with numpy"),
        ({"data": {1, 2}}, "holds more than plain values (instruction"),
    ],
)
def test_no_other_pickle_is_read_and_nothing_is_run(
    tmp_path: Path, content: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "data_batch_1", content)
    with pytest.raises(DataError) as caught:
        recognising.read([path])
    assert fault in str(caught.value)
    assert not (tmp_path / "harm_was_done").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": ROWS, "labels": LABELS}, 4)
    rng = np.random.default_rng(0)
    path = tmp_path / "data_batch_1"
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(2, 120, 2).tolist():
            content[place] = int(rng.integers(256))
        if rng.random() < 0.3:
            content = content[: int(rng.integers(2, len(content)))]
        path.write_bytes(content)
        try:
            recognising.read([path])
        except DataError as err:
            assert str(err).startswith(str(path))  # noqa: PT017


def test_tensors_of_torch_are_named(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps([1]))
        archive.writestr("a/version", "3")
    with pytest.raises(DataError, match=r"a\.pt: holds PyTorch's tensors .* numpy\.savez"):
        recognising.read([path])
