"""Reads and writes models and weights in Keras's files: `.keras`, `.h5`, `.weights.h5`, `.json`.

Files of Keras 2.14 and Keras 3 can be read; files of Keras 3 are written. Keras need not be
installed. Keras and fedcli lay out tensors in the same way, so no tensor is permuted.
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
from fedcli.models.layers.contract import GLOROT_UNIFORM, IMAGE, Spec, Start
from fedcli.models.layers.fields import SOFTMAX
from fedcli.models.layers.inputs import InputLayer
from fedcli.models.layout import ParamLayout, Tensor, lay_out
from fedcli.models.sizing import input_names
from fedcli.outputs import write_output

is_keras = archives.is_keras

# Limit (1 GiB) of a model without weights, because a small file can describe a very large model.
MAX_PARAMS = 1 << 28
_KERAS_VERSION = "3.0.0"  # the first version that has this format
_INPUT = "fedcli_input"  # the input layer's name
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a constant, so that equal models give equal files


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A model that was read from a Keras file.

    Attributes:
        name: The model's name.
        specs: The layers from pixels to logits, each with a name. There may be a softmax at the
            end.
        input_shape: Shape of one example, after any Reshape at the beginning of the model.
        weights: float32 arrays, one for each tensor of `lay_out(specs, input_shape)`; None if the
            file has no weights.
        starts: The initialiser of each tensor in Keras: a constant, or an initialiser's name.
    """

    name: str
    specs: tuple[Spec, ...]
    input_shape: tuple[int, ...]
    weights: list[NDArray[np.float32]] | None
    starts: tuple[Start, ...]

    def fresh_params(self, drawn: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns initial parameters float32 [num_params], with the constants that the file states.

        Args:
            drawn: float32 [num_params], in which all kernels were drawn from Glorot's uniform
                distribution.

        Raises:
            ConfigError: The file names a random initialiser other than Glorot uniform.
        """
        params = drawn.copy()
        layout = lay_out(self.specs, self.input_shape)
        for tensor, start in zip(layout.tensors, self.starts, strict=True):
            if isinstance(start, str) and start != GLOROT_UNIFORM:
                raise ConfigError(
                    f"{tensor.name} is initialised by {start[:60]!r}; fedcli supports "
                    f"{GLOROT_UNIFORM}, Zeros, Ones and Constant: use one of these, or give weights"
                )
            if not isinstance(start, str):
                params[tensor.offset : tensor.offset + tensor.size] = start
        return params


def read_model(path: Path) -> KerasModel:
    """Returns the model in a `.keras`, whole-model `.h5` or `.json` file.

    The format is recognised by the content.

    Raises:
        ConfigError: The file cannot be read, is damaged or holds only weights; a layer or option is
            not supported; or the weights do not fit the layers. The message names the file.
    """
    with _about(path):
        contents = archives.read(path)
        if contents.description is None:
            raise ConfigError(
                "holds weights without a model; give it as --initial-weights, together with a "
                "--model"
            )
        graph = graphs.parse(contents.description)
        layout = lay_out(graph.specs, graph.input_shape)
        weights = _load(contents.weights_file, graph, layout) if contents.weights_file else None
        if weights is None and layout.num_params > MAX_PARAMS:
            raise ConfigError(
                f"describes {layout.num_params:,} parameters; a file without weights may describe "
                f"at most {MAX_PARAMS:,}"
            )
    starts = layout.in_order(start for place in graph.places for start in place.starts)
    return KerasModel(graph.name, graph.specs, graph.input_shape, weights, tuple(starts))


def read_weights(path: Path, layout: ParamLayout) -> list[NDArray[np.float32]]:
    """Returns the weights in a `.weights.h5`, `.keras` or `.h5`, an array for each tensor.

    If the file describes a model, its layers may have other names than the layout's, but the
    tensors must have the same shapes in the same order.

    Raises:
        ConfigError: The file cannot be read, is damaged, or its weights are of other layers or
            shapes. The message names the file.
    """
    with _about(path):
        contents = archives.read(path)
        if not contents.weights_file:
            raise ConfigError("describes a model without weights; give a file with weights")
        if contents.description is None:
            tensors = _weighted(layout)
            stack = _stack(layout)
            counted = container_names([spec.keras_class for spec in stack])
            named = {spec.name: path for spec, path in zip(stack, counted, strict=True)}
            paths = [(named[name],) for name in tensors]
            places = archives.Places(paths, (), _shapes(tensors), _num_trained(tensors))
            by_layer = archives.load_places(contents.weights_file, places)
            return layout.in_order(tensor for tensors in by_layer for tensor in tensors)
        graph = graphs.parse(contents.description)
        own = lay_out(graph.specs, graph.input_shape)
        theirs, ours = _in_keras_order(own), _in_keras_order(layout)
        in_file, required = ([each.shape for each in order] for order in (theirs, ours))
        if in_file != required:
            raise ConfigError(
                f"has weights of shapes {_listed(in_file)}, but the model needs "
                f"{_listed(required)}; give weights of this model"
            )
        loaded = dict(zip(own.tensors, _load(contents.weights_file, graph, own), strict=True))
        by_tensor = {mine: loaded[each] for mine, each in zip(ours, theirs, strict=True)}
        return [by_tensor[tensor] for tensor in layout.tensors]


def write_keras(path: Path, layout: ParamLayout, params: NDArray[np.float32]) -> None:
    """Writes a model with a softmax at its end as a `.keras` file of Keras 3.

    Equal parameters give equal bytes.

    Args:
        path: The file; an existing regular file is replaced.
        layout: The model's layout.
        params: float32 [num_params].

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    layout = _as_evaluated(layout)
    stack = _stack(layout)
    members = {
        "metadata.json": json.dumps({"keras_version": _KERAS_VERSION}).encode(),
        archives.CONFIG: json.dumps(_describe(stack, _batch_shape(layout))).encode(),
        archives.WEIGHTS: _weights_file_bytes(stack, layout, params),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)
    write_output(path, buffer.getvalue())


def write_weights(path: Path, layout: ParamLayout, params: NDArray[np.float32]) -> None:
    """Writes weights as a `.weights.h5` of Keras 3, for `model.load_weights`.

    Args:
        path: The file; an existing regular file is replaced.
        layout: The model's layout.
        params: float32 [num_params].

    Raises:
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    write_output(path, _weights_file_bytes(_stack(layout), layout, params))


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Adds the file's name to the messages of errors."""
    try:
        yield
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err


def _load(content: bytes, graph: Graph, layout: ParamLayout) -> list[NDArray[np.float32]]:
    paths = [place.path for place in graph.places]
    tops = [place.top for place in graph.places]
    tensors = _weighted(layout)
    places = archives.Places(paths, tops, _shapes(tensors), _num_trained(tensors))
    by_layer = archives.load_places(content, places)
    return layout.in_order(tensor for each in by_layer for tensor in each)


def _weighted(layout: ParamLayout) -> dict[str, list[Tensor]]:
    """Returns the tensors of each layer that has some, by the layer's name and in order."""
    tensors: dict[str, list[Tensor]] = {}
    for layer, _, tensor in layout.by_layer(layout.tensors):
        tensors.setdefault(layer.name, []).append(tensor)
    return tensors


def _num_trained(tensors: Mapping[str, Sequence[Tensor]]) -> list[int]:
    return [sum(each.is_trained for each in of_layer) for of_layer in tensors.values()]


def _shapes(tensors: Mapping[str, Sequence[Tensor]]) -> list[list[tuple[int, ...]]]:
    return [[each.shape for each in of_layer] for of_layer in tensors.values()]


def _in_keras_order(layout: ParamLayout) -> list[Tensor]:
    """The tensors in the order in which Keras numbers the layers; a chain keeps its order."""
    tensors = _weighted(layout)
    return [tensor for spec in _stack(layout) for tensor in tensors.get(spec.name, ())]


def _as_evaluated(layout: ParamLayout) -> ParamLayout:
    """The layout without the input layers that change nothing in evaluation."""
    sized = {layer.name: layer for layer in layout.layers}
    kept: list[Spec] = []
    names = {IMAGE: IMAGE}  # for each layer, the name of the layer that is read instead of it
    before = IMAGE
    for spec in layout.specs:
        spec = spec.changed(inputs=tuple(names.get(each, each) for each in spec.inputs))
        if isinstance(spec, InputLayer):
            evaluated = spec.in_evaluation(sized[spec.name].in_shape)
            if evaluated is None:
                names[spec.name] = before
                continue
            spec, before = evaluated, spec.name
        kept.append(spec)
    return layout if tuple(kept) == layout.specs else lay_out(kept, layout.input_shape)


def _stack(layout: ParamLayout) -> list[Spec]:
    """Returns the layers for Keras, in Keras's order, each with the names of its inputs.

    There is a Flatten before a dense layer and a softmax at the end.
    """
    stack: list[Spec] = []
    names = {spec.name for spec in layout.specs}
    is_flat = {IMAGE: len(layout.input_shape) == 1}
    for spec, inputs in zip(layout.specs, input_names(layout.specs), strict=True):
        if spec.takes_vector and not is_flat[inputs[0]]:
            inputs = _flattened(stack, inputs, names, is_flat)
        is_flat[spec.name] = spec.gives_vector or all(is_flat[each] for each in inputs)
        stack.append(spec.changed(inputs=inputs))
    last = stack.pop()
    with_softmax = last.with_softmax()
    if with_softmax is not None:
        return _sorted_as_keras([*stack, with_softmax])
    without = last.without_softmax()
    if without is not None:
        stack.append(without)
    inputs = last.inputs if without is None else (last.name,)
    if not is_flat[inputs[0]]:
        inputs = _flattened(stack, inputs, names, is_flat)
    name = last.name if without is None else _unused("softmax", names)
    return _sorted_as_keras([*stack, Activation(SOFTMAX, name, inputs)])


def _flattened(
    stack: list[Spec], inputs: tuple[str, ...], names: set[str], is_flat: dict[str, bool]
) -> tuple[str, ...]:
    """Adds a Flatten of `inputs` to the stack; returns its name, which the next layer reads."""
    name = _unused("flatten", names)
    stack.append(Flatten(name, inputs))
    is_flat[name] = True
    return (name,)


def _sorted_as_keras(stack: list[Spec]) -> list[Spec]:
    """Returns the layers in the order in which Keras numbers the layers of a functional model.

    Layers with a longer path to the output come first. Layers with equally long paths come in the
    order of a depth-first walk from the output, which follows the inputs of each layer in order.
    """
    by_name = {spec.name: spec for spec in stack}
    heights = dict.fromkeys(by_name, 0)  # number of layers on the longest path to the output
    for spec in reversed(stack):
        for name in spec.inputs:
            if name != IMAGE:
                heights[name] = max(heights[name], heights[spec.name] + 1)
    met: dict[str, int] = {}
    waiting = [stack[-1].name]
    while waiting:
        name = waiting.pop()
        if name not in met and name != IMAGE:
            met[name] = len(met)
            waiting.extend(reversed(by_name[name].inputs))
    return sorted(stack, key=lambda spec: (-heights[spec.name], met[spec.name]))


def _unused(name: str, names: set[str]) -> str:
    unique, count = name, 0
    while unique in names:
        count += 1
        unique = f"{name}_{count}"
    names.add(unique)
    return unique


def _batch_shape(layout: ParamLayout) -> list[int | None]:
    """Returns a batch's shape. [H, W] gets a channel axis if a layer before a Flatten needs it."""
    shape = layout.input_shape
    first = next((each for each in layout.specs if each.needs_channels or each.gives_vector), None)
    if len(shape) == 2 and first is not None and first.needs_channels:
        shape = (*shape, 1)
    return [None, *shape]


def _describe(stack: Sequence[Spec], batch_shape: Sequence[int | None]) -> dict[str, Any]:
    """Returns the model's JSON for Keras 3. Options that are left out have Keras's defaults."""
    start = _item("InputLayer", {"name": _INPUT, "batch_shape": list(batch_shape)})
    before = [IMAGE, *(spec.name for spec in stack)]
    if any(spec.inputs != (name,) for spec, name in zip(stack, before, strict=False)):
        return _describe_graph(start, stack)
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


def _describe_graph(start: dict[str, Any], stack: Sequence[Spec]) -> dict[str, Any]:
    """The JSON of a functional model."""
    layers = [{**start, "name": _INPUT, "inbound_nodes": []}]
    for spec in stack:
        item = _item(spec.keras_class, spec.to_keras())
        tensors = [_tensor(_INPUT if name == IMAGE else name) for name in spec.inputs]
        args = [tensors] if spec.num_inputs > 1 else tensors
        node: dict[str, Any] = {"args": args, "kwargs": {}}
        layers.append({**item, "name": spec.name, "inbound_nodes": [node]})
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {
            "name": "functional",
            "trainable": True,
            "layers": layers,
            "input_layers": [[_INPUT, 0, 0]],
            "output_layers": [[stack[-1].name, 0, 0]],
        },
        "registered_name": "Functional",
    }


def _tensor(layer: str) -> dict[str, Any]:
    """Returns a layer's output in Keras's JSON, without its shape, which Keras computes itself."""
    config = {"shape": [None], "dtype": "float32", "keras_history": [layer, 0, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def _item(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {**config, "dtype": "float32"},
        "registered_name": None,
    }


def _weights_file_bytes(
    stack: Sequence[Spec], layout: ParamLayout, params: NDArray[np.float32]
) -> bytes:
    tensors: dict[str, list[NDArray[np.float32]]] = {}
    for layer, _, array in layout.by_layer(layout.split(params)):
        tensors.setdefault(layer.name, []).append(array)
    paths = container_names([spec.keras_class for spec in stack])
    named = {path: spec.name for path, spec in zip(paths, stack, strict=True)}
    by_path = {path: tensors.get(name, []) for path, name in named.items()}
    return archives.weights_file_bytes(by_path, named, "sequential")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    few = ", ".join(str(list(shape)) for shape in shapes[:12]) or "none"
    return f"{few}, ..." if len(shapes) > 12 else few
