"""Models and weights in Keras's files: `.keras`, `.h5`, `.weights.h5` and `.json`.

Reads those of Keras 2.14 and Keras 3 without Keras, and writes Keras 3's. Tensors have one layout
here and there, so none is permuted.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError
from fedcli.files import write_atomic
from fedcli.models import layers
from fedcli.models.keras import archives, graphs
from fedcli.models.keras.graphs import Graph, container_names
from fedcli.models.layers import Spec
from fedcli.models.layout import ParamLayout, lay_out

is_keras = archives.is_keras

# Keras's names of the kinds of layers.
CLASS_NAMES = {
    "dense": "Dense",
    "conv2d": "Conv2D",
    "max_pooling2d": "MaxPooling2D",
    "average_pooling2d": "AveragePooling2D",
    "flatten": "Flatten",
    "dropout": "Dropout",
    "group_normalization": "GroupNormalization",
    "activation": "Activation",
}
MAX_PARAMS = 1 << 28  # of a model without weights, whose file says how many it has: 1 GiB
_DRAWN = "GlorotUniform"  # what `models.sequential` draws
_KERAS_VERSION = "3.0.0"  # the first whose format this is
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal models are equal files


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A model as a file of Keras's describes it.

    Attributes:
        name: The model's own.
        specs: From pixels to logits, each with a name; a softmax at the end may be among them.
        input_shape: Of one example, after the reshaping that the model starts with.
        weights: float32, one for each tensor of `lay_out(specs, input_shape)`; None: the file has
            none.
        starts: How Keras would initialise each tensor: a constant, or an initialiser's name.
    """

    name: str
    specs: tuple[Spec, ...]
    input_shape: tuple[int, ...]
    weights: list[NDArray[np.float32]] | None
    starts: tuple[float | str, ...]

    def fresh_params(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns initial parameters float32 [num_params], with the constants that the file names.

        Args:
            drawn: float32 [num_params], every kernel drawn Glorot uniform.

        Raises:
            ConfigError: The file names an initialiser that draws otherwise.
        """
        params = drawn.copy()
        layout = lay_out(self.specs, self.input_shape)
        for tensor, start in zip(layout.tensors, self.starts, strict=True):
            if isinstance(start, str) and start != _DRAWN:
                raise ConfigError(
                    f"{tensor.name} is initialised by {start[:60]!r}; fedcli draws {_DRAWN}, "
                    "Zeros, Ones and Constant: give weights"
                )
            if not isinstance(start, str):
                params[tensor.offset : tensor.offset + tensor.size] = start
        return params


def read_model(path: Path) -> KerasModel:
    """Returns the model in a `.keras`, a whole-model `.h5` or a `.json`, known by its content.

    Raises:
        ConfigError: The file cannot be read, is damaged or holds weights alone; a layer or option
            is not supported, or the weights do not fit the layers. The line names the file.
    """
    with _about(path):
        contents = archives.read(path)
        if contents.description is None:
            raise ConfigError(
                "holds weights without a model; give it as --initial-weights, beside a --model"
            )
        graph = graphs.parse(contents.description)
        layout = lay_out(graph.specs, graph.input_shape)
        weights = _load(contents.image, graph, layout) if contents.image else None
        if weights is None and layout.num_params > MAX_PARAMS:
            raise ConfigError(
                f"describes {layout.num_params:,} parameters; without weights, {MAX_PARAMS:,} is "
                "most"
            )
    starts = tuple(start for place in graph.places for start in place.starts)
    return KerasModel(graph.name, graph.specs, graph.input_shape, weights, starts)


def read_weights(path: Path, layout: ParamLayout) -> list[NDArray[np.float32]]:
    """Returns the weights in a `.weights.h5`, `.keras` or `.h5`, one for each tensor of a layout.

    A whole model's layers may have other names than the layout's, but the same tensors in order.

    Raises:
        ConfigError: The file cannot be read, is damaged, or its weights are of other layers or
            shapes. The line names the file.
    """
    with _about(path):
        contents = archives.read(path)
        if not contents.image:
            raise ConfigError("describes a model without weights; give a file that has them")
        if contents.description is None:
            weighted, shapes = _weighted(layout)
            counted = container_names([CLASS_NAMES[spec.kind] for spec in layout.specs])
            names = [spec.name for spec in layout.specs]
            named = dict(zip(names, counted, strict=True))
            paths = [(named[name],) for name in weighted]
            found = archives.load_places(contents.image, paths, (), shapes)
            return [tensor for each in found for tensor in each]
        graph = graphs.parse(contents.description)
        own = lay_out(graph.specs, graph.input_shape)
        given, wanted = ([tensor.shape for tensor in each.tensors] for each in (own, layout))
        if given != wanted:
            raise ConfigError(
                f"has weights of shapes {_listed(given)}, the model needs {_listed(wanted)}"
            )
        return _load(contents.image, graph, own)


def write_keras(path: Path, layout: ParamLayout, params: NDArray[np.float32]) -> None:
    """Writes a model as a `.keras` of Keras 3, with a softmax at its end; replaces a regular file.

    Equal parameters give equal bytes.

    Args:
        path: Where to.
        layout: The model's.
        params: float32 [num_params].

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    stack = _stack(layout)
    members = {
        "metadata.json": json.dumps({"keras_version": _KERAS_VERSION}).encode(),
        archives.CONFIG: json.dumps(_describe(stack, _batch_shape(layout))).encode(),
        archives.WEIGHTS: _image(stack, layout, params),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)
    write_atomic(path, buffer.getvalue())


def write_weights(path: Path, layout: ParamLayout, params: NDArray[np.float32]) -> None:
    """Writes weights as a `.weights.h5` of Keras 3, for `model.load_weights`.

    Args:
        path: Where to; an existing regular file is replaced.
        layout: The model's.
        params: float32 [num_params].

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    write_atomic(path, _image(_stack(layout), layout, params))


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with it."""
    try:
        yield
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err


def _load(image: bytes, graph: Graph, layout: ParamLayout) -> list[NDArray[np.float32]]:
    _, shapes = _weighted(layout)
    paths = [place.path for place in graph.places]
    tops = [place.top for place in graph.places]
    found = archives.load_places(image, paths, tops, shapes)
    return [tensor for each in found for tensor in each]


def _weighted(layout: ParamLayout) -> tuple[list[str], list[list[tuple[int, ...]]]]:
    """Names of the layers that have tensors, in order, and the shapes of those."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for tensor in layout.tensors:
        shapes.setdefault(tensor.name.rpartition("/")[0], []).append(tensor.shape)
    return list(shapes), list(shapes.values())


def _stack(layout: ParamLayout) -> list[Spec]:
    """The layers as Keras needs them: flattened before a dense layer, softmax at the end."""
    stack: list[Spec] = []
    names = {spec.name for spec in layout.specs}
    is_flat = len(layout.input_shape) == 1
    for spec in layout.specs:
        if isinstance(spec, layers.Dense) and not is_flat:
            stack.append(layers.Flatten(_unused("flatten", names)))
        is_flat = is_flat or isinstance(spec, layers.Dense | layers.Flatten)
        stack.append(spec)
    last = stack[-1]
    if isinstance(last, layers.Dense):
        stack[-1] = replace(last, activation=layers.SOFTMAX)
        return stack
    if isinstance(last, layers.Conv2D) and last.activation == layers.SOFTMAX:
        stack[-1] = last = replace(last, activation="linear")
    softmax = layers.Activation(layers.SOFTMAX, "")
    if isinstance(last, layers.Activation) and last.activation == layers.SOFTMAX:
        softmax = last
        stack.pop()
    if not is_flat:
        stack.append(layers.Flatten(_unused("flatten", names)))
    stack.append(replace(softmax, name=softmax.name or _unused("softmax", names)))
    return stack


def _unused(name: str, names: set[str]) -> str:
    unique, count = name, 0
    while unique in names:
        count += 1
        unique = f"{name}_{count}"
    names.add(unique)
    return unique


def _batch_shape(layout: ParamLayout) -> list[int | None]:
    """Of the input: windows need channels, which images of [H, W] have not."""
    shape = layout.input_shape
    first = next((spec for spec in layout.specs if spec.kind in _SHAPE_MAKERS), None)
    if len(shape) == 2 and first is not None and first.kind in _WINDOWED:
        shape = (*shape, 1)
    return [None, *shape]


_WINDOWED = ("conv2d", "max_pooling2d", "average_pooling2d", "group_normalization")
_SHAPE_MAKERS = (*_WINDOWED, "dense", "flatten")


def _describe(stack: Sequence[Spec], batch_shape: Sequence[int | None]) -> dict[str, Any]:
    """The JSON of Keras 3; options left out have Keras's defaults."""
    start = _item("InputLayer", {"name": "fedcli_input", "batch_shape": list(batch_shape)})
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "trainable": True,
            "dtype": "float32",
            "layers": [start, *(_item(CLASS_NAMES[spec.kind], _config(spec)) for spec in stack)],
            "build_input_shape": list(batch_shape),
        },
        "registered_name": None,
        "build_config": {"input_shape": list(batch_shape)},
    }


def _item(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {**config, "dtype": "float32"},
        "registered_name": None,
    }


def _config(spec: Spec) -> dict[str, Any]:
    values = layers.to_dict(spec)
    del values["kind"]
    for key in ("kernel_size", "strides", "pool_size"):
        if values.get(key) is not None:
            values[key] = list(layers.pair(values[key]))
    return values


def _image(stack: Sequence[Spec], layout: ParamLayout, params: NDArray[np.float32]) -> bytes:
    tensors: dict[str, list[NDArray[np.float32]]] = {}
    for tensor, array in zip(layout.tensors, layout.split(params), strict=True):
        tensors.setdefault(tensor.name.rpartition("/")[0], []).append(array)
    paths = container_names([CLASS_NAMES[spec.kind] for spec in stack])
    named = {path: spec.name for path, spec in zip(paths, stack, strict=True)}
    by_path = {path: tensors.get(name, []) for path, name in named.items()}
    return archives.weights_image(by_path, named, "sequential")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    few = ", ".join(str(list(shape)) for shape in shapes[:12]) or "none"
    return f"{few}, ..." if len(shapes) > 12 else few
