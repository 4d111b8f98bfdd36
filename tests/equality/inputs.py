"""Small inputs for the equality check: one of each file format, weights, and models in files.

Everything is drawn from one fixed seed, so that both programs read the same bytes.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tests.kit.keras_samples import image_input, layer, legacy, sequential

MY_MODEL = Path(__file__).parents[1] / "data" / "my_model.py"
SIDE = 8  # height and width of the images of most files
NUM_CLASSES = 10

LAYERS_MODEL = """
from fedcli import layers, models


def build(input_shape, num_classes, filters=4):
    stack = [
        layers.Conv2D(filters, 3, padding="same"),
        layers.GroupNorm(2),
        layers.Activation("tanh"),
        layers.AveragePool2D(2),
        layers.Conv2D(filters, 3, strides=2, activation="relu"),
        layers.MaxPool2D(2),
        layers.Dropout(0.2),
        layers.Flatten(),
        layers.Dense(12, activation="sigmoid"),
        layers.Dense(num_classes),
    ]
    return models.sequential(stack, input_shape=input_shape)
"""

# MY_MODEL imports two classes from fedcli by their public name, as users' files do. In one of the
# inputs a substitute replaces this import, so that programs without this name can read the file.
_PUBLIC_CLASSES = "from fedcli.own_models import ArraySpec, BatchOutput"
_OWN_CLASSES = """from collections import namedtuple
from types import SimpleNamespace as BatchOutput

ArraySpec = namedtuple("ArraySpec", ["shape", "dtype"])
"""


def write_inputs(folder: Path) -> None:
    """Writes all inputs into `folder`, which is empty."""
    rng = np.random.default_rng(7)
    train, test = _clients(rng, 6, 40), _clients(rng, 6, 5)
    pixels, labels, owners = _flat(train)
    _write_tff(folder / "train.h5", train)
    _write_tff(folder / "test.h5", test)
    _write_sqlite(folder / "digits.sqlite", {"train": train, "test": test})
    _write_leaf(folder / "leaf", {"train": train, "test": test})
    _write_idx(folder / "idx", {"train": (pixels, labels), "t10k": _flat(test)[:2]})
    _write_csv(folder / "table.csv", pixels, labels, owners)
    np.savez(folder / "arrays.npz", x=pixels, y=labels, client_ids=owners)
    _write_cifar(folder / "cifar", rng)
    _write_images(folder, pixels, labels, owners)
    _write_models(folder, rng)


def _clients(
    rng: np.random.Generator, count: int, size: int
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Returns clients by id: grey images uint8 [n, SIDE, SIDE] and labels int64 [n]; n varies.

    The label decides which rows of an image are bright. A model can learn the labels from this, so
    metrics change between rounds.
    """
    clients = {}
    for index in range(count):
        labels = rng.integers(0, NUM_CLASSES, size + index)
        pixels = rng.integers(0, 120, (len(labels), SIDE, SIDE))
        pixels[np.arange(len(labels)), labels % SIDE] += 30 + 10 * labels[:, None]
        clients[f"w{index:03}"] = (pixels.astype(np.uint8), labels)
    return clients


def _flat(
    clients: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """Returns the pixels, the labels and the client ids of all examples."""
    owners = [name for name, (_, labels) in clients.items() for _ in labels]
    pixels, labels = (np.concatenate(parts) for parts in zip(*clients.values(), strict=True))
    return pixels, labels, np.array(owners)


def _paper(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns pixels as TFF stores EMNIST: float32, 1.0 is background."""
    return (1 - pixels / 255).astype(np.float32)


def _write_tff(path: Path, clients: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, (pixels, labels) in clients.items():
            file[f"examples/{name}/pixels"] = _paper(pixels)
            file[f"examples/{name}/label"] = labels.astype(np.int32)


def _field(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field of a protocol buffer."""
    size, head = len(content), [number << 3 | 2]
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + content


def _example(pixels: NDArray[np.float32], label: int) -> bytes:
    """Encodes a tf.train.Example: the feature `pixels` of floats, `label` of one integer."""
    floats = _field(2, _field(1, pixels.astype("<f4").tobytes()))
    integers = _field(3, _field(1, bytes([label])))
    features = {b"pixels": floats, b"label": integers}
    entries = (_field(1, _field(1, name) + _field(2, each)) for name, each in features.items())
    return _field(1, b"".join(entries))


def _write_sqlite(path: Path, splits: dict[str, Any]) -> None:
    with sqlite3.connect(path) as file:
        file.executescript(
            "CREATE TABLE examples (split_name TEXT, client_id TEXT, "
            "serialized_example_proto BLOB);"
            "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER);"
        )
        for split, clients in splits.items():
            for name, (pixels, labels) in clients.items():
                count = (name, f"digits_only_{split}", len(labels))
                file.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", count)
                pairs = zip(_paper(pixels), labels.tolist(), strict=True)
                rows = [(f"digits_only_{split}", name, _example(*pair)) for pair in pairs]
                file.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
    file.close()


def _write_leaf(folder: Path, splits: dict[str, Any]) -> None:
    for split, clients in splits.items():
        data = {
            name: {
                "x": np.round(pixels.reshape(len(labels), -1) / 255, 4).tolist(),
                "y": labels.tolist(),
            }
            for name, (pixels, labels) in clients.items()
        }
        counts = [len(labels) for _, labels in clients.values()]
        (folder / split).mkdir(parents=True)
        text = json.dumps({"users": list(data), "num_samples": counts, "user_data": data})
        (folder / split / "all_data.json").write_text(text)


def _write_idx(folder: Path, splits: dict[str, Any]) -> None:
    """Writes the training files packed by gzip, as they are published, and the test files raw."""
    folder.mkdir()
    for prefix, (pixels, labels) in splits.items():
        arrays = {"images-idx3-ubyte": pixels, "labels-idx1-ubyte": labels.astype(np.uint8)}
        for name, array in arrays.items():
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path, content = folder / f"{prefix}-{name}", head + array.tobytes()
            if prefix == "train":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                path.write_bytes(content)


def _write_csv(path: Path, pixels: Any, labels: Any, owners: Any) -> None:
    lines = [",".join(["writer", "digit", *(f"p{each}" for each in range(SIDE * SIDE))])]
    for image, label, owner in zip(pixels.reshape(len(labels), -1), labels, owners, strict=True):
        lines.append(",".join([owner, str(label), *map(str, image.tolist())]))
    path.write_text("\n".join(lines) + "\n")


def _write_cifar(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    for name, count in (("data_batch_1", 24), ("data_batch_2", 24), ("test_batch", 12)):
        records = rng.integers(0, 256, (count, 1 + 32 * 32 * 3), np.uint8)
        records[:, 0] %= NUM_CLASSES
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes a grey image [h, w] or an RGB image [h, w, 3]."""
    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    packed = (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _write_images(folder: Path, pixels: Any, labels: Any, owners: Any) -> None:
    """Writes folders by class, by client (with the class in file names), and by both."""
    for index, (image, label, owner) in enumerate(zip(pixels, labels, owners, strict=True)):
        if index % 3:  # a third of the images is enough
            continue
        for name, content in (
            (f"by_class/c{label}/{index}.png", image),
            (f"by_client/{owner}/{label}_{index}.png", image),
            (f"by_both/{owner}/c{label}/{index}.png", np.stack([image, image // 2, image.T], -1)),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(content))


def _write_models(folder: Path, rng: np.random.Generator) -> None:
    for name, line in (("numpy", _OWN_CLASSES), ("documented", _PUBLIC_CLASSES)):
        text = re.sub(r"^from fedcli.*$", line, MY_MODEL.read_text(), flags=re.MULTILINE)
        (folder / f"model_{name}.py").write_text(text)
    (folder / "model_layers.py").write_text(LAYERS_MODEL)

    layers = [
        layer("Conv2D", "conv", filters=4, kernel_size=[3, 3], activation="relu", padding="same"),
        layer("MaxPooling2D", "pool", pool_size=[2, 2], padding="valid"),
        layer("Flatten", "flat"),
        layer("Dropout", "drop", rate=0.3),
        layer("Dense", "out", units=NUM_CLASSES, activation="softmax"),
    ]
    model = sequential(image_input(SIDE, SIDE, 1), *layers)
    shapes = {"conv": ((3, 3, 1, 4), 4), "out": ((SIDE // 2 * SIDE // 2 * 4, NUM_CLASSES), 10)}
    tensors = {
        name: {
            f"{name}/kernel:0": rng.normal(0, 0.1, kernel).astype(np.float32),
            f"{name}/bias:0": rng.normal(0, 0.1, bias).astype(np.float32),
        }
        for name, (kernel, bias) in shapes.items()
    }
    names = [each["config"]["name"] for each in layers]
    (folder / "model.json").write_text(json.dumps(model))
    content = legacy({name: tensors.get(name, {}) for name in names}, model)
    (folder / "model_keras2.h5").write_bytes(content)
    softmax = {
        "dense/kernel": rng.normal(0, 0.01, (784, NUM_CLASSES)).astype(np.float32),
        "dense/bias": np.zeros(NUM_CLASSES, np.float32),
    }
    np.savez(folder / "softmax.npz", **softmax)  # type: ignore[arg-type]
    (folder / "clients.txt").write_text("s0000001\ns0000003\n")
