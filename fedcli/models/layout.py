"""The layout of a model's tensors in its flat float32 parameter vector.

The C core, checkpoints and exported weights all use this layout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import MAX_LAYERS, ModelRow
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers.contract import KINDS, Layer, LayerTensor, Spec, Start, from_dict
from fedcli.models.layers.fields import check_name
from fedcli.models.sizing import size_layers

T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """One tensor in the flat vector.

    Attributes:
        name: LAYER/TENSOR; for a model in Python, the variable's name.
        shape: Its shape in Keras.
        offset: Its offset in the flat vector.
        start: Its initial value or initialiser, if its layer has one.
        is_trained: See `TensorKind`.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    start: Start = 0.0
    is_trained: bool = True

    @property
    def size(self) -> int:
        """Number of parameters in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamLayout:
    """The layers of a model, and the place of each tensor in the parameter vector. See `lay_out`.

    Attributes:
        specs: The layers as they were described, each with its name.
        layers: The layers that the core computes, from pixels to logits. Flattening and dropout of
            rate 0 are left out. An activation layer is merged into the previous layer if the core
            can compute both as one layer.
        tensors: First the trained tensors in the order of the layers, kernel before bias and gamma
            before beta; then the moving statistics of batch norms in the order of the layers, mean
            before variance.
        num_params: Length P of the flat vector.
        input_shape: Shape of one example as the model gets it, before any flattening.
        num_classes: Number of logits.
    """

    specs: tuple[Spec, ...]
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    num_params: int
    input_shape: tuple[int, ...]
    num_classes: int

    @cached_property
    def num_inputs(self) -> int:
        """Number of pixels of one example."""
        return math.prod(self.input_shape)

    @cached_property
    def num_trained(self) -> int:
        """Number of parameters that are trained; the moving statistics follow them."""
        return self.num_params - sum(each.size for each in self.tensors if not each.is_trained)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors, in their order."""
        return tuple(tensor.shape for tensor in self.tensors)

    @cached_property
    def trained_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that are trained, in their order."""
        return tuple(tensor.shape for tensor in self.tensors if tensor.is_trained)

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each layer, which values it reads: 0 is the image, l + 1 the output of layer l."""
        return tuple(
            tuple(place - skip for skip in layer.skips[: KINDS[layer.kind].num_inputs])
            for place, layer in enumerate(self.layers)
        )

    def in_order(self, by_layer: Iterable[T]) -> list[T]:
        """Returns values in the order of `tensors`.

        Args:
            by_layer: A value for each tensor of each layer, in the order of layers.
        """
        names = [f"{layer.name}/{each.name}" for layer in self.layers for each in layer.tensors]
        values = dict(zip(names, by_layer, strict=True))
        return [values[tensor.name] for tensor in self.tensors]

    def by_layer(self, values: Iterable[T]) -> list[tuple[Layer, LayerTensor, T]]:
        """Returns layer, tensor and value of each tensor, in the order of layers.

        Args:
            values: A value for each of `tensors`.
        """
        named = dict(zip((tensor.name for tensor in self.tensors), values, strict=True))
        return [
            (layer, each, named[f"{layer.name}/{each.name}"])
            for layer in self.layers
            for each in layer.tensors
        ]

    def split(self, params: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the tensors of a flat vector [num_params], as views with Keras's shapes."""
        return [
            params[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
            for tensor in self.tensors
        ]

    def join(self, tensors: Sequence[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Returns the flat vector float32 [num_params], made of one array per tensor in order.

        Raises:
            ConfigError: Number or shapes differ from the layout's, or an array is not numeric.
        """
        arrays = [np.asarray(tensor) for tensor in tensors]
        shapes = [array.shape for array in arrays]
        required = [tensor.shape for tensor in self.tensors]
        if shapes != required:
            last = ", moving statistics after all others" * (self.num_trained < self.num_params)
            raise ConfigError(
                f"weights have shapes {_shapes(shapes)}, but the model needs {_shapes(required)}; "
                f"give one array per tensor in layer order, kernel before bias{last}"
            )
        if any(array.dtype.kind not in "fiu" for array in arrays):
            kinds = ", ".join(str(array.dtype) for array in arrays)
            raise ConfigError(f"weights have types {kinds}; give arrays of real numbers")
        return np.concatenate([array.ravel() for array in arrays]).astype(np.float32)

    def core_rows(self) -> list[ModelRow]:
        """Returns the core's model table, a row for each layer in the order of struct fed_layer."""
        rows: list[ModelRow] = []
        offset, moving_offset = 0, self.num_trained
        for layer in self.layers:
            rows.append(layer.core_row(offset, moving_offset))
            offset += layer.num_trained
            moving_offset += layer.num_params - layer.num_trained
        return rows

    def description(self) -> dict[str, Any]:
        """Returns the model's shape as plain values for JSON; `from_description` undoes it."""
        layers = [spec.to_dict() for spec in self.specs]
        return {"input_shape": list(self.input_shape), "layers": layers}


def from_description(description: object) -> ParamLayout:
    """Returns the layout that `ParamLayout.description` wrote. The description is not trusted.

    Raises:
        ConfigError: It is not a description, or the layers in it do not fit each other.
    """
    if not isinstance(description, Mapping) or description.keys() != {"input_shape", "layers"}:
        raise ConfigError(
            "the model's description must have two keys, input_shape and layers; write the file "
            "again"
        )
    input_shape, layers = description["input_shape"], description["layers"]
    if not isinstance(layers, list) or not isinstance(input_shape, list):
        raise ConfigError(
            "input_shape and layers of the model's description must be lists; write the file again"
        )
    return lay_out([from_dict(each) for each in layers], input_shape)


def lay_out(specs: Sequence[Spec], input_shape: Sequence[int]) -> ParamLayout:
    """Returns the layout of a model's layers.

    Tensors are stored one after the other, in the order of `ParamLayout.tensors`.

    Args:
        specs: The layers from pixels to logits. Each reads the previous layer, or the earlier
            layers that its `inputs` name. A softmax at the end belongs to the loss and is left out.
        input_shape: Shape of one example: [H, W], [H, W, C], or any other for dense layers.

    Raises:
        ConfigError: A value is not allowed, layers do not fit each other or the image, or the
            last does not give logits; the message names the layer.
    """
    named = name_layers(specs)
    layers = size_layers(named, input_shape)
    tensors: list[Tensor] = []
    offset = 0
    for is_trained in (True, False):
        for layer in layers:
            for each in layer.tensors:
                if each.is_trained == is_trained:
                    name = f"{layer.name}/{each.name}"
                    tensors.append(Tensor(name, each.shape, offset, each.start, is_trained))
                    offset += each.size
    return ParamLayout(
        named, layers, tuple(tensors), offset, tuple(input_shape), layers[-1].out_shape[2]
    )


def name_layers(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Returns the layers, checked, with names: their own, or those that Keras would give them.

    Raises:
        ConfigError: A value is not allowed, or two layers have the same name.
    """
    if not isinstance(specs, Sequence):
        raise ConfigError(f"the layers are of type {type(specs).__name__}; give a list of layers")
    for place, spec in enumerate(specs, 1):
        if not isinstance(spec, Spec):
            raise ConfigError(
                f"layer {place} of the model is of type {type(spec).__name__}; give layers of "
                "fedcli.layers, such as Dense(10)"
            )
    if len(specs) > 2 * MAX_LAYERS:
        raise ConfigError(f"the model has {len(specs)} layers; give at most {MAX_LAYERS}")
    for spec in specs:
        if spec.name != "":
            check_name(spec.name)
    seen: Counter[str] = Counter()
    taken = {spec.name for spec in specs}
    named = []
    for spec in specs:
        name: str = spec.name
        while not name or (not spec.name and name in taken):
            name = f"{spec.kind}_{seen[spec.kind]}" if seen[spec.kind] else spec.kind
            seen[spec.kind] += 1
        spec.check(f"layer {name}")
        named.append(spec.changed(name=name))
    names = [spec.name for spec in named]
    if len(set(names)) < len(names):
        raise ConfigError(f"several layers are called {', '.join(names)}; give each its own name")
    return tuple(named)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) if shapes else "none"
