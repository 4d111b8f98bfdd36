"""Parquet and MATLAB files, CSV columns that are not pixels, and arrays in another order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.datasets.importers import recognising
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.errors import DataError, FedcliError

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
GREY = IMAGES[..., 0]
LABELS = np.arange(20) % 10


def read(path: Path, **options: Any) -> Imported:
    return recognising.read([path], ImportOptions(**options))


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(FedcliError) as caught:
        read(path, **options)
    return str(caught.value)


# ---- MATLAB --------------------------------------------------------------------------------------


def write_mat(path: Path, images: Any, labels: Any, names: tuple[str, str] = ("X", "y")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file[names[0]] = np.asarray(images).T
        file[names[1]] = np.asarray(labels).T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def test_mat_in_the_layout_of_svhn(tmp_path: Path) -> None:
    tens = np.where(LABELS == 0, 10, LABELS).reshape(-1, 1)
    for name in ("train", "test"):
        write_mat(tmp_path / f"{name}_8x8.mat", np.moveaxis(IMAGES, 0, -1), tens.astype(np.uint8))
    found = read(tmp_path)
    assert (found.format, list(found.tables)) == ("mat", ["train", "test"])
    np.testing.assert_array_equal(found.tables["train"].pixels, IMAGES)
    np.testing.assert_array_equal(found.tables["test"].labels, LABELS)
    assert any("10 is the digit 0" in note for note in found.notes)


@pytest.mark.parametrize("labels", [LABELS.reshape(1, -1), LABELS.astype(float).reshape(-1, 1)])
def test_mat_of_grey_images(tmp_path: Path, labels: Any) -> None:
    path = write_mat(tmp_path / "a.mat", np.moveaxis(GREY, 0, -1), labels, ("images", "labels"))
    table = read(path).tables["train"]
    np.testing.assert_array_equal(table.pixels, GREY)
    np.testing.assert_array_equal(table.labels, LABELS)


def test_mat_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", np.moveaxis(GREY, 0, -1), LABELS, ("A", "B"))
    assert "A [8, 8, 20], B [20]; 0 of these arrays have a name like 'x', but" in message_of(path)
    path = write_mat(tmp_path / "b.mat", np.moveaxis(GREY, 0, -1), LABELS[:7])
    assert "does not fit 7 labels" in message_of(path)
    path = write_mat(tmp_path / "c.mat", np.moveaxis(GREY, 0, -1), LABELS)
    path.write_bytes(path.read_bytes()[:-900])
    assert str(path) in message_of(path)


def test_older_mat(tmp_path: Path) -> None:
    io_module = pytest.importorskip("scipy.io")
    path = tmp_path / "a.mat"
    io_module.savemat(path, {"X": np.moveaxis(IMAGES, 0, -1), "y": LABELS.reshape(-1, 1)})
    np.testing.assert_array_equal(read(path).tables["train"].pixels, IMAGES)
    path.write_bytes(path.read_bytes()[:400])
    assert "not a complete .mat file" in message_of(path)


# ---- Parquet -------------------------------------------------------------------------------------


def png(image: Any) -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    pillow.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_parquet(path: Path, columns: dict[str, Any], features: Any = None) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table(columns)
    if features is not None:
        noted = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": noted})
    parquet.write_table(table, path)
    return path


def test_parquet_in_the_layout_of_hugging_face(tmp_path: Path) -> None:
    pictures = [{"bytes": png(image), "path": None} for image in IMAGES]
    names = [f"class {index}" for index in range(10)]
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        columns = {"img": pictures, "label": LABELS, "writer_id": LABELS % 2}
        write_parquet(tmp_path / "data" / f"{name}.parquet", columns, features)
    found = read(tmp_path)
    assert (found.format, found.class_names) == ("parquet", tuple(names))
    assert {split: len(table) for split, table in found.tables.items()} == {"train": 40, "test": 20}
    np.testing.assert_array_equal(found.tables["train"].pixels[20:], IMAGES)
    assert list(found.tables["train"].owner_ids) == ["0", "1"]


def test_parquet_of_pixels_and_of_bytes(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        {"x": GREY.reshape(20, -1).tolist(), "y": [f"{label}.0" for label in LABELS], "z": LABELS},
    )
    found = read(path)
    np.testing.assert_array_equal(found.tables["train"].pixels, GREY)
    np.testing.assert_array_equal(found.tables["train"].labels, LABELS)
    assert any("not used: z" in note for note in found.notes)
    path = write_parquet(
        tmp_path / "b.parquet", {"image": list(map(png, GREY)), "label": ["cat", "dog"] * 10}
    )
    assert read(path).class_names == ("cat", "dog")


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"x": GREY.reshape(20, -1).tolist(), "k": LABELS})
    assert (
        "no column has a usual name for the labels (x, k); name it with --label-col"
        in message_of(path)
    )
    path = write_parquet(
        tmp_path / "b.parquet", {"image": [png(GREY[0]), b"no"], "label": [0, None]}
    )
    assert "b.parquet: row 1: label 'null' is missing" in message_of(path)
    path = write_parquet(tmp_path / "c.parquet", {"image": [png(GREY[0]), b"no"], "label": [0, 1]})
    assert "c.parquet: row 1: not a complete image" in message_of(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "not a complete Parquet file" in message_of(path)


# ---- CSV of Kaggle and FER2013 -------------------------------------------------------------------


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_columns_that_are_no_pixels_are_left_out_and_named(tmp_path: Path) -> None:
    pixels = [",".join(map(str, image.reshape(-1))) for image in GREY]
    names = ",".join(f"pixel{index}" for index in range(64))
    for number, (before, after) in enumerate(
        [("Unnamed: 0,", ""), ("id,", ""), (",", ""), ("", ",weight"), ("", ",")]
    ):
        path = write_csv(
            tmp_path / f"{number}.csv",
            f"{before}label,{names}{after}",
            [
                f"{'7,' * bool(before)}{label},{row}{',3' * (after == ',weight') or after}"
                for label, row in zip(LABELS, pixels, strict=True)
            ],
        )
        found = read(path)
        np.testing.assert_array_equal(found.tables["train"].pixels, GREY)
        name = (before + after).strip(",") or "(without a name)"
        assert any(f"not pixels were left out: {name}" in note for note in found.notes)


def test_fer_2013(tmp_path: Path) -> None:
    usages = ["Training"] * 10 + ["PublicTest"] * 5 + ["PrivateTest"] * 5
    rows = [
        f"{label},{' '.join(map(str, image.reshape(-1)))},{usage}"
        for label, image, usage in zip(LABELS, GREY, usages, strict=True)
    ]
    path = write_csv(tmp_path / "fer.csv", "emotion,pixels,Usage", rows)
    found = read(path)
    sizes = {split: len(table) for split, table in found.tables.items()}
    assert sizes == {"train": 10, "test": 5, "validation": 5}
    np.testing.assert_array_equal(found.tables["test"].pixels, GREY[15:])
    assert list(read(path, splits={}).tables) == ["train"]
    path = write_csv(tmp_path / "short.csv", "emotion,pixels,Usage", [*rows, "1,2 3 4,Training"])
    assert "line 22: column 'pixels' holds 3 pixels" in message_of(path)


# ---- Order of channels ---------------------------------------------------------------------------


def test_channels_before_the_sides(tmp_path: Path) -> None:
    first = IMAGES.transpose(0, 3, 1, 2)
    for name, images, shape in (
        ("a", first, None),
        ("b", first.reshape(20, -1), (3, 8, 8)),
        ("c", IMAGES.reshape(20, -1), (8, 8, 3)),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x=images, y=LABELS)
        np.testing.assert_array_equal(read(path, image_shape=shape).tables["train"].pixels, IMAGES)
    np.savez(tmp_path / "d.npz", x=GREY[:, None], y=LABELS)
    np.testing.assert_array_equal(read(tmp_path / "d.npz").tables["train"].pixels, GREY)
    np.savez(tmp_path / "e.npz", x=first.reshape(20, -1), y=LABELS)
    message = message_of(tmp_path / "e.npz")
    assert "--image-shape 8x8x3" in message
    assert "--image-shape 3x8x8" in message


def test_a_note_where_the_other_order_fits_far_better(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(16), np.arange(16)) * 4
    image = np.stack([ramp, np.full((16, 16), 200), ramp.T // 2], -1).astype(np.uint8)
    images = np.stack([image] * 20)
    for shape, rows in (((16, 16, 3), images.transpose(0, 3, 1, 2)), ((3, 16, 16), images)):
        np.savez(tmp_path / "a.npz", x=rows.reshape(20, -1), y=LABELS)
        notes = read(tmp_path / "a.npz", image_shape=shape).notes
        assert any("in the other order" in note for note in notes)
    np.savez(tmp_path / "b.npz", x=images.reshape(20, -1), y=LABELS)
    notes = read(tmp_path / "b.npz", image_shape=(16, 16, 3)).notes
    assert not any("in the other order" in note for note in notes)


def test_medmnist_has_three_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": GREY, f"{split}_labels": LABELS[:, None]}
    np.savez(path, **arrays)
    assert list(read(path).tables) == ["train", "test", "validation"]
    several = np.eye(4, dtype=int)[LABELS % 4] | np.eye(4, dtype=int)[0]
    np.savez(path, train_images=GREY, train_labels=several)
    with pytest.raises(DataError, match="is not one-hot"):
        read(path)
