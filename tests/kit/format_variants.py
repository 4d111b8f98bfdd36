"""Variants of each file format: the same twelve images in different ways, and a refused file.

Every right variant has the images `GREY` (or `COLOUR`) and `LABELS` as its train split.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from tests.kit.own_data import draw
from tests.kit.tff_databases import example
from tests.kit.tff_databases import write as write_database

Maker = Callable[[Path], Path]
LABELS = np.arange(12) % 3
GREY = np.stack([draw(int(label), index) for index, label in enumerate(LABELS)])
COLOUR = np.stack([np.roll(GREY, shift, axis=1) for shift in range(3)], axis=-1)
SHARES = (GREY / 255).astype(np.float32)
_LARGE = COLOUR.repeat(4, axis=1).repeat(4, axis=2)  # 32 x 32, as CIFAR's


@dataclass(frozen=True)
class Variants:
    """How a format is written.

    Attributes:
        right: Variants that are read, by name. Each function writes one into a folder and returns
            its path.
        wrong: Writes a source that is refused.
        words: Part of the error message.
        images: The images of the right variants; None: `GREY` or `COLOUR`.
        module: Package that reads or writes the format; "": only what fedcli itself needs.
        options: `ImportOptions` by the name of the variant that they belong to.
    """

    right: dict[str, Maker]
    wrong: Maker
    words: str
    images: Any = None
    module: str = ""
    options: dict[str, dict[str, Any]] | None = None


def _file(name: str, content: bytes | str) -> Maker:
    def make(root: Path) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def _folder(*makers: Maker) -> Maker:
    def make(root: Path) -> Path:
        for each in makers:
            each(root)
        return root

    return make


# ---- Tables --------------------------------------------------------------------------------------


def _csv(
    labels: Sequence[Any] = tuple(LABELS.tolist()),
    *,
    between: str = ",",
    header: str = "label",
    quote: str = "",
    pixels: Any = GREY,
) -> str:
    names = [header, *(f"pixel{index}" for index in range(64))]
    rows = [names, *([label, *row] for label, row in zip(labels, _rows(pixels), strict=True))]
    return "".join(between.join(f"{quote}{x}{quote}" for x in row) + "\n" for row in rows)


def _rows(pixels: Any) -> Any:
    return pixels.reshape(len(pixels), -1).tolist()


_PACKED = "id,emotion,pixels\n" + "".join(
    f'{index},{label},"{row}"\n'
    for index, (label, row) in enumerate(zip(LABELS.tolist(), _rows(GREY), strict=True))
)
_LAST = "".join(
    ",".join([*line.split(",")[1:], line.split(",")[0], str(index)]) + "\n"
    for index, line in enumerate(_csv().splitlines())
).replace(",label,0", ",label,id")

# ---- Arrays --------------------------------------------------------------------------------------


def _npz(*unnamed: Any, **arrays: Any) -> Maker:
    buffer = io.BytesIO()
    np.savez(buffer, *unnamed, **arrays)
    return _file("a.npz", buffer.getvalue())


def _npy(name: str, array: Any) -> Maker:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return _file(name, buffer.getvalue())


def _idx(array: Any, kind: int = 8) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def _idx_pair(
    images: bytes, labels: bytes, names: Sequence[str] = ("train-images", "train-labels")
) -> Maker:
    return _folder(_file(names[0], images), _file(names[1], labels))


_BYTES = LABELS.astype(np.uint8)

# ---- TensorFlow Federated and LEAF ---------------------------------------------------------------


def _tff(images: Any = GREY, labels: Any = LABELS, feature: str = "image", **storage: Any) -> Maker:
    def make(root: Path) -> Path:
        with h5py.File(root / "t.h5", "w") as file:
            group = file.create_group("examples/ann")
            group.create_dataset(feature, data=images, **storage)
            if labels is not None:
                group["label"] = labels
        return root / "t.h5"

    return make


_NUMBERS = GREY.astype(np.int64)


def _blobs(images: Any = _NUMBERS, name: str = "image") -> list[bytes]:
    return [
        example(**{name: image, "label": [label]})
        for image, label in zip(images, LABELS.tolist(), strict=True)
    ]


def _database(*, packed: int | None = None, counts: Any = None, **splits: list[bytes]) -> Maker:
    def make(root: Path) -> Path:
        clients = {name: {"ann": blobs} for name, blobs in splits.items()}
        path = write_database(root / "d.sqlite", clients, counts=counts)
        if packed is not None:
            path.write_bytes(lzma.compress(path.read_bytes(), packed, preset=0))
        return path

    return make


def _leaf(
    pixels: Any = SHARES, labels: Any = None, *, count: int = 12, name: str = "a.json"
) -> Maker:
    found = {
        "users": ["ann"],
        "num_samples": [count],
        "user_data": {
            "ann": {
                "x": pixels if isinstance(pixels, list) else _rows(pixels),
                "y": LABELS.tolist() if labels is None else labels,
            }
        },
    }
    return _file(name, json.dumps(found))


# ---- CIFAR, STL-10, Parquet, MATLAB --------------------------------------------------------------


def _pickle(name: str = "data_batch_1", protocol: int = 4, **content: Any) -> Maker:
    whole = {"data": _LARGE.transpose(0, 3, 1, 2).reshape(12, -1), **content}
    return _file(name, pickle.dumps(whole, protocol))


def _records(*labels: Any) -> bytes:
    lead = [np.asarray(each, np.uint8).reshape(-1, 1) for each in labels]
    return np.hstack([*lead, _LARGE.transpose(0, 3, 1, 2).reshape(12, -1)]).tobytes()


def _stl(labels: Any = LABELS + 1, split: str = "train") -> Maker:
    pixels = COLOUR.repeat(12, axis=1).repeat(12, axis=2).transpose(0, 3, 2, 1)
    return _folder(
        _file(f"{split}_X.bin", pixels.tobytes()),
        _file(f"{split}_y.bin", labels.astype(np.uint8).tobytes()),
    )


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _parquet(columns: Callable[[], dict[str, Any]], name: str = "a.parquet", cut: int = 0) -> Maker:
    def make(root: Path) -> Path:
        import pyarrow
        from pyarrow import parquet

        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns()), path)
        path.write_bytes(path.read_bytes()[: -cut or None])
        return path

    return make


def _mat_7(images: Any, labels: Any, names: tuple[str, str] = ("X", "y"), start: str = "") -> Maker:
    def make(root: Path) -> Path:
        path = root / "a.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            file[start + names[0]], file[start + names[1]] = images.T, labels.T
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
        return path

    return make


def _mat_5(content: Callable[[], dict[str, Any]]) -> Maker:
    def make(root: Path) -> Path:
        from scipy.io import savemat

        savemat(root / "a.mat", content())
        return root / "a.mat"

    return make


_LAST_AXIS = np.moveaxis(GREY, 0, -1)

FORMATS: dict[str, Variants] = {
    "csv": Variants(
        {
            "commas": _file("a.csv", _csv()),
            "semicolons": _file("a.csv", _csv(between=";")),
            "tabs": _file("a.tsv", _csv(between="\t")),
            "quotes": _file("a.csv", _csv(quote='"')),
            "gzip, with a byte order mark": _file(
                "a.csv.gz", gzip.compress(b"\xef\xbb\xbf" + _csv().encode())
            ),
            "labels 1.0": _file("a.csv", _csv([f"{label}.0" for label in LABELS])),
            "shares of one": _file("a.csv", _csv(pixels=SHARES)),
            "the label and an id last": _file("a.csv", _LAST),
            "pixels in one field": _file("a.csv", _PACKED),
        },
        _file("a.csv", _csv() + "1,2,3\n"),
        "line 14: 3 fields but the header has 65",
    ),
    "idx": Variants(
        {
            "raw": _idx_pair(_idx(GREY), _idx(_BYTES)),
            "gzip": _idx_pair(gzip.compress(_idx(GREY)), gzip.compress(_idx(_BYTES))),
            "labels [n, 1] of 32 bits": _idx_pair(
                _idx(GREY), _idx(LABELS.astype(np.int32)[:, None], 12)
            ),
            "float32 shares": _idx_pair(_idx(SHARES, 13), _idx(_BYTES)),
            "names that say nothing": _idx_pair(_idx(GREY), _idx(_BYTES), ("a", "b")),
        },
        _idx_pair(_idx(GREY)[:-1], _idx(_BYTES)),
        "train-images",
    ),
    "npz": Variants(
        {
            "x, y": _npz(x=GREY, y=LABELS),
            "trainX, trainY": _npz(trainX=GREY, trainY=LABELS),
            "train_images, train_labels [n, 1]": _npz(
                train_images=GREY, train_labels=LABELS[:, None]
            ),
            "by place": _npz(GREY, LABELS),
            "flat rows": _npz(x=GREY.reshape(12, -1), y=LABELS),
            "[n, 1, p]": _npz(x=GREY.reshape(12, 1, -1), y=LABELS),
            "[n, 1, h, w]": _npz(x=GREY[:, None], y=LABELS),
            "[n, h, w, 1]": _npz(x=GREY[..., None], y=LABELS),
            "shares of one": _npz(x=SHARES, y=LABELS.astype(float)),
            "float64, 0 to 255": _npz(x=GREY.astype(float), y=LABELS.astype(">i2")),
            "16 bits": _npz(x=GREY.astype(np.uint16), y=LABELS),
            "one-hot": _npz(images=GREY, labels=np.eye(3)[LABELS]),
            "a pickled dictionary": _npz(data=np.array({"x": GREY, "y": LABELS})),
        },
        _npz(x=GREY, y=np.array([None] * 12)),
        "never unpickled",
    ),
    "npy": Variants(
        {
            "x, y": _folder(_npy("x.npy", GREY), _npy("y.npy", LABELS)),
            "x_train, y_train": _folder(_npy("x_train.npy", GREY), _npy("y_train.npy", LABELS)),
            "images, labels": _folder(_npy("images.npy", GREY), _npy("labels.npy", LABELS)),
            "shares of one": _folder(_npy("data.npy", SHARES), _npy("targets.npy", LABELS)),
            "a README beside": _folder(
                _npy("x.npy", GREY), _npy("y.npy", LABELS), _file("README.md", "# data")
            ),
        },
        _folder(_npy("x.npy", GREY), _npy("y.npy", LABELS[:7])),
        "12 images but 7 labels",
    ),
    "tff-h5": Variants(
        {
            "bytes": _tff(),
            "shares of one, in ink": _tff(SHARES, feature="pixels"),
            "packed": _tff(chunks=(3, 8, 8), compression="gzip", shuffle=True),
            "[n, 1, h, w]": _tff(GREY[:, None]),
            "labels [n, 1] of float32": _tff(labels=LABELS.astype(np.float32)[:, None]),
            "one-hot": _tff(labels=np.eye(3, dtype=np.int8)[LABELS]),
        },
        _tff(labels=None),
        "client 'ann'",
    ),
    "tff-sqlite": Variants(
        {
            "as TFF has CIFAR's": _database(train=_blobs()),
            "packed by xz": _database(packed=lzma.FORMAT_XZ, train=_blobs()),
            "packed by LZMA": _database(packed=lzma.FORMAT_ALONE, train=_blobs()),
            "with test": _database(train=_blobs(), test=_blobs()[:3]),
            "features of floats": _database(train=_blobs(SHARES, "pixels")),
        },
        _database(train=_blobs(), counts={("train", "ann"): 13}),
        "ann",
    ),
    "tf-examples": Variants(
        {
            name: _database(train=blobs)
            for name, blobs in {
                "whole numbers": _blobs(),
                "floats": _blobs(SHARES, "pixels"),
                "a feature more": [
                    example(image=image.astype(np.int64), label=[label], coarse_label=[9])
                    for image, label in zip(GREY, LABELS.tolist(), strict=True)
                ],
                "the label first": [
                    example(label=[label], image=image.astype(np.int64))
                    for image, label in zip(GREY, LABELS.tolist(), strict=True)
                ],
                "a feature of bytes more": [
                    example(image=image.astype(np.int64), label=[label], id=b"x")
                    for image, label in zip(GREY, LABELS.tolist(), strict=True)
                ],
            }.items()
        },
        _database(train=[*_blobs()[:-1], _blobs()[-1][:-9]]),
        "ann",
    ),
    "leaf": Variants(
        {
            "shares of one": _leaf(),
            "labels 1.0": _leaf(labels=LABELS.astype(float).tolist()),
            "labels as texts": _leaf(labels=[str(label) for label in LABELS]),
            "one-hot": _leaf(labels=np.eye(3, dtype=int)[LABELS].tolist()),
            "rows of rows, 0 to 255": _leaf(GREY.tolist()),
            "in data/train": _folder(_leaf(name="data/train/a.json")),
        },
        _leaf(count=11),
        "12 examples but num_samples says 11",
    ),
    "cifar-python": Variants(
        {
            **{
                f"protocol {protocol}": _pickle(protocol=protocol, labels=LABELS.tolist())
                for protocol in (2, 3, 4, 5)
            },
            "CIFAR-100": _pickle("train", fine_labels=LABELS.tolist(), coarse_labels=[0] * 12),
            "labels as an array": _pickle(labels=LABELS),
            "in a folder": _folder(_pickle(labels=LABELS.tolist()), _file("readme.html", "x")),
        },
        _pickle(labels=LABELS.tolist()[:-1]),
        "12 images but 11 labels",
        images=_LARGE,
    ),
    "cifar": Variants(
        {
            "CIFAR-10": _file("data_batch_1.bin", _records(LABELS)),
            "CIFAR-100": _file("train.bin", _records(LABELS * 0, LABELS)),
            "two batches": _folder(
                _file("data_batch_1.bin", _records(LABELS)[: 7 * 3073]),
                _file("data_batch_2.bin", _records(LABELS)[7 * 3073 :]),
            ),
            "with test": _folder(
                _file("data_batch_1.bin", _records(LABELS)),
                _file("test_batch.bin", _records(LABELS)),
            ),
            "any name": _file("images.dat", _records(LABELS)),
        },
        _folder(
            _file("data_batch_1.bin", _records(LABELS)),
            _file("data_batch_2.bin", _records(LABELS)[:-5]),
        ),
        "not a whole number of CIFAR-10's",
        images=_LARGE,
    ),
    "stl10": Variants(
        {
            "train": _stl(),
            "any name": _stl(split="a"),
            "with test": _folder(_stl(), _stl(split="test")),
            "names of classes": _folder(_stl(), _file("class_names.txt", "a b c d e f g h i j")),
            "images without labels": _folder(_stl(), _file("unlabeled_X.bin", bytes(27648))),
        },
        _stl(LABELS),
        "label 0 is outside 1 to 10",
        images=COLOUR.repeat(12, axis=1).repeat(12, axis=2),
    ),
    "parquet": Variants(
        {
            "rows of pixels": _parquet(lambda: {"pixels": _rows(GREY), "label": LABELS}),
            "shares of one": _parquet(lambda: {"x": _rows(SHARES), "y": LABELS}),
            "pictures": _parquet(lambda: {"image": list(map(_png, GREY)), "label": LABELS}),
            "pictures as Hugging Face has them": _parquet(
                lambda: {
                    "img": [{"bytes": _png(each), "path": "a.png"} for each in GREY],
                    "label": LABELS,
                },
                "data/train-00000-of-00001.parquet",
            ),
            "images as lists of lists": _parquet(lambda: {"image": GREY.tolist(), "label": LABELS}),
            "labels as texts": _parquet(lambda: {"x": _rows(GREY), "y": list(map(str, LABELS))}),
        },
        _parquet(lambda: {"x": _rows(GREY), "y": LABELS}, cut=20),
        "not a complete Parquet file",
        module="pyarrow",
    ),
    "mat": Variants(
        {
            "7.3": _mat_7(_LAST_AXIS, LABELS[:, None]),
            "7.3, labels [1, n]": _mat_7(_LAST_AXIS, LABELS[None].astype(float)),
            "7.3, images, labels": _mat_7(_LAST_AXIS, LABELS[None], ("images", "labels")),
            "7.3, in a structure": _mat_7(_LAST_AXIS, LABELS[None], start="dataset/"),
            "7.3, flat columns": _mat_7(GREY.reshape(12, -1).T, LABELS[None], ("data", "label")),
        },
        _mat_7(_LAST_AXIS, LABELS[:7, None]),
        "does not fit 7 labels",
    ),
    "older mat": Variants(
        {
            "X, y": _mat_5(lambda: {"X": _LAST_AXIS, "y": LABELS[:, None]}),
            "flat rows": _mat_5(lambda: {"data": GREY.reshape(12, -1), "label": LABELS}),
            "flat columns": _mat_5(lambda: {"data": GREY.reshape(12, -1).T, "label": LABELS}),
            "[n, h, w]": _mat_5(lambda: {"images": GREY, "labels": LABELS}),
            "structures of EMNIST": _mat_5(
                lambda: {
                    "dataset": {
                        "train": {
                            "images": GREY.transpose(0, 2, 1).reshape(12, -1),
                            "labels": LABELS[:, None],
                            "writers": LABELS[:, None],
                        }
                    }
                }
            ),
        },
        _mat_5(lambda: {"A": GREY, "B": LABELS}),
        "0 of these arrays have a name like 'x', but there must be exactly one",
        module="scipy",
    ),
}
