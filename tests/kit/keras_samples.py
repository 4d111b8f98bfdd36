"""Small files as Keras 2 and Keras 3 write them, made without Keras."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Change = Callable[[Any], None]


def layer(class_name: str, name: str, **options: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {"name": name, "trainable": True, "dtype": "float32", **options},
        "registered_name": None,
    }


def image_input(*shape: int) -> dict[str, Any]:
    return layer("InputLayer", "input_layer", batch_shape=[None, *shape], sparse=False)


def sequential(*layers: Any, name: str = "sequential") -> dict[str, Any]:
    config = {"name": name, "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": config}


def functional(layers: Sequence[Any], sources: Mapping[str, str], keras: int) -> dict[str, Any]:
    """The layers as a functional model.

    `sources` names, for each layer except the input, the layers that it reads, separated by spaces.
    """
    items = []
    for each in layers:
        name = each["config"]["name"]
        source = sources.get(name)
        nodes: list[Any] = []
        if source is not None:
            names = source.split()
            nodes = [call3(*names) if keras == 3 else [[each, 0, 0, {}] for each in names]]
        items.append({**each, "name": name, "inbound_nodes": nodes})
    inputs = [each["config"]["name"] for each in layers if each["class_name"] == "InputLayer"]
    read = {name for names in sources.values() for name in names.split()}
    outputs = [each["name"] for each in items if each["name"] not in read]
    ends = [[[name, 0, 0] for name in names] for names in (inputs, outputs)]
    config = {
        "name": "model",
        "layers": items,
        "input_layers": ends[0],
        "output_layers": ends[1][0] if keras == 3 and len(outputs) == 1 else ends[1],
    }
    return {"module": "keras", "class_name": "Functional", "config": config}


def call3(*sources: str, **kwargs: Any) -> dict[str, Any]:
    tensors = [
        {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None, 4], "dtype": "float32", "keras_history": [source, 0, 0]},
        }
        for source in sources
    ]
    return {"args": [tensors] if len(tensors) > 1 else tensors, "kwargs": kwargs}


def hdf5(fill: Change) -> bytes:
    with h5py.File("sample", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        return bytes(file.id.get_file_image())


def counted(tensors: Mapping[str, Sequence[Any]], container: str = "layers") -> bytes:
    """Returns a `.weights.h5`; keys are names below the container, with slashes if nested."""

    def fill(file: Any) -> None:
        for path, arrays in tensors.items():
            group = file
            for name in path.split("/"):
                group = group.require_group(f"{container}/{name}")
            for index, array in enumerate(arrays):
                group[f"vars/{index}"] = array
            group.require_group("vars")

    return hdf5(fill)


def legacy(
    tensors: Mapping[str, Mapping[str, Any]], model: Any = None, *, fixed: bool = True
) -> bytes:
    """Returns an `.h5` of Keras 2: weights by layer and name; texts of fixed or variable length."""

    def fill(file: Any) -> None:
        root = file
        if model is not None:
            file.attrs["model_config"] = json.dumps(model)
            root = file.create_group("model_weights")
        kind: Any = "S" if fixed else h5py.string_dtype()
        root.attrs["layer_names"] = np.array(list(tensors), kind)
        for name, weights in tensors.items():
            group = root.create_group(name)
            names = np.array(list(weights), kind) if weights else np.array([], float)
            group.attrs["weight_names"] = names
            for each, array in weights.items():
                group[each] = array

    return hdf5(fill)


def archive(
    model: Any, image: bytes, method: int = zipfile.ZIP_STORED, more: Mapping[str, bytes] = {}
) -> bytes:
    """Returns a `.keras` file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        opened.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        opened.writestr("config.json", model if isinstance(model, bytes) else json.dumps(model))
        opened.writestr("model.weights.h5", image)
        for name, content in more.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def put(path: Path, content: bytes | Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path
