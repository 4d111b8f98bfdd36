"""Models and weights in Keras's files: `.keras`, `.h5`, `.weights.h5` and `.json`.

Reads the files of Keras 2.14 and Keras 3, and writes those of Keras 3; Keras need not be installed.
Tensors have the same layout in both, so none is permuted.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.keras import archives, graphs
from fedcli.models.keras.graphs import Graph, container_names
from fedcli.models.layers import Activation, Flatten
from fedcli.models.layers.contract import GLOROT_UNIFORM, Spec, Start
from fedcli.models.layers.fields import SOFTMAX
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.outputs import write_output

is_keras = archives.is_keras

MAX_PARAMS = 1 << 28  # of a model without weights, because a small file can claim many: 1 GiB
_KERAS_VERSION = "3.0.0"  # the first whose format this is
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal models are equal files


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A model in a file of Keras's.

    Attributes:
        name: The model's name.
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
    starts: tuple[Start, ...]

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
            if isinstance(start, str) and start != GLOROT_UNIFORM:
                raise ConfigError(
                    f"{tensor.name} is initialised by {start[:60]!r}; fedcli draws "
                    f"{GLOROT_UNIFORM}, Zeros, Ones and Constant: give weights"
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
            counted = container_names([spec.keras_class for spec in layout.specs])
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
    write_output(path, buffer.getvalue())


def write_weights(path: Path, layout: ParamLayout, params: NDArray[np.float32]) -> None:
    """Writes weights as a `.weights.h5` of Keras 3, for `model.load_weights`.

    Args:
        path: Where to; an existing regular file is replaced.
        layout: The model's.
        params: float32 [num_params].

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    write_output(path, _image(_stack(layout), layout, params))


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Adds the file's name to the messages of errors."""
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
    """The layers that Keras needs: with a Flatten before a dense layer, and softmax at the end."""
    stack: list[Spec] = []
    names = {spec.name for spec in layout.specs}
    is_flat = len(layout.input_shape) == 1
    for spec in layout.specs:
        if spec.takes_vector and not is_flat:
            stack.append(Flatten(_unused("flatten", names)))
            is_flat = True
        is_flat = is_flat or spec.gives_vector
        stack.append(spec)
    last = stack.pop()
    with_softmax = last.with_softmax()
    if with_softmax is not None:
        return [*stack, with_softmax]
    without = last.without_softmax()
    if without is not None:
        stack.append(without)
    if not is_flat:
        stack.append(Flatten(_unused("flatten", names)))
    name = last.name if without is None else _unused("softmax", names)
    return [*stack, Activation(SOFTMAX, name)]


def _unused(name: str, names: set[str]) -> str:
    unique, count = name, 0
    while unique in names:
        count += 1
        unique = f"{name}_{count}"
    names.add(unique)
    return unique


def _batch_shape(layout: ParamLayout) -> list[int | None]:
    """Shape of the input; [H, W] gets a channel if a layer before the first Flatten needs it."""
    shape = layout.input_shape
    first = next((each for each in layout.specs if each.needs_channels or each.gives_vector), None)
    if len(shape) == 2 and first is not None and first.needs_channels:
        shape = (*shape, 1)
    return [None, *shape]


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
            "layers": [start, *(_item(spec.keras_class, spec.to_keras()) for spec in stack)],
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


def _image(stack: Sequence[Spec], layout: ParamLayout, params: NDArray[np.float32]) -> bytes:
    tensors: dict[str, list[NDArray[np.float32]]] = {}
    for tensor, array in zip(layout.tensors, layout.split(params), strict=True):
        tensors.setdefault(tensor.name.rpartition("/")[0], []).append(array)
    paths = container_names([spec.keras_class for spec in stack])
    named = {path: spec.name for path, spec in zip(paths, stack, strict=True)}
    by_path = {path: tensors.get(name, []) for path, name in named.items()}
    return archives.weights_image(by_path, named, "sequential")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    few = ", ".join(str(list(shape)) for shape in shapes[:12]) or "none"
    return f"{few}, ..." if len(shapes) > 12 else few
