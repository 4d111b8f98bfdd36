"""Where each tensor of a model lies in its flat float32 parameter vector.

C, checkpoints and exported weights all read their layouts from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError

# Layer kinds as the core numbers them (enum fed_layer_kind).
LAYER_KINDS = {"dense": 0}
# Activations, likewise (enum fed_activation).
ACTIVATIONS = {"linear": 0, "relu": 1}


@dataclass(frozen=True)
class Layer:
    """One layer of a sequential model. A dense one has a kernel and a bias.

    Attributes:
        kind: A key of `LAYER_KINDS`.
        num_inputs: Values it takes.
        num_outputs: Values it gives.
        name: Its own in the model.
        activation: A key of `ACTIVATIONS`; linear in the last layer, whose outputs are logits.
    """

    kind: str
    num_inputs: int
    num_outputs: int
    name: str
    activation: str = "linear"


@dataclass(frozen=True)
class Tensor:
    """One trainable tensor: its name, Keras shape, and offset in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of parameters in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamLayout:
    """The layers of a model and the place of every tensor; made by `lay_out`.

    Attributes:
        layers: From pixels to logits.
        tensors: In layer order, kernel then bias.
        num_params: Length P of the flat vector.
        input_shape: One example as the model sees it, before it is flattened.
        num_classes: Number of logits.
    """

    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    num_params: int
    input_shape: tuple[int, ...]
    num_classes: int

    @property
    def num_inputs(self) -> int:
        """Number of pixels of one example."""
        return math.prod(self.input_shape)

    def split(self, params: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the tensors of a flat vector [num_params], as views of Keras shape."""
        return [
            params[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
            for tensor in self.tensors
        ]

    def join(self, tensors: Sequence[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Returns the flat float32 vector [num_params] of one array per tensor, by position.

        Raises:
            ConfigError: Number or shapes differ from the layout's, or an array is not numeric.
        """
        arrays = [np.asarray(tensor) for tensor in tensors]
        wanted = [tensor.shape for tensor in self.tensors]
        given = [array.shape for array in arrays]
        if given != wanted:
            raise ConfigError(
                f"weights have shapes {_shapes(given)}, the model needs {_shapes(wanted)}; "
                "give one array per tensor in layer order, kernel then bias"
            )
        if any(array.dtype.kind not in "fiu" for array in arrays):
            kinds = ", ".join(str(array.dtype) for array in arrays)
            raise ConfigError(f"weights have types {kinds}; give arrays of real numbers")
        return np.concatenate([array.ravel() for array in arrays]).astype(np.float32)

    def core_rows(self) -> list[tuple[int, int, int, int, int]]:
        """Returns the core's model table: kind, inputs, outputs, offset, activation by layer."""
        offsets = {tensor.name: tensor.offset for tensor in self.tensors}
        return [
            (
                LAYER_KINDS[layer.kind],
                layer.num_inputs,
                layer.num_outputs,
                offsets[f"{layer.name}/kernel"],
                ACTIVATIONS[layer.activation],
            )
            for layer in self.layers
        ]


def lay_out(layers: Sequence[Layer], input_shape: Sequence[int]) -> ParamLayout:
    """Returns the layout of a stack of layers; the tensors fill 0..P-1 in layer order.

    Raises:
        ConfigError: There is no layer, a kind is unknown, a size is not positive, or the sizes of
            neighbours do not match.
    """
    _check_layers(layers, input_shape)
    tensors = []
    offset = 0
    for layer in layers:
        for name, shape in (
            ("kernel", (layer.num_inputs, layer.num_outputs)),
            ("bias", (layer.num_outputs,)),
        ):
            tensors.append(Tensor(f"{layer.name}/{name}", shape, offset))
            offset += math.prod(shape)
    return ParamLayout(
        tuple(layers), tuple(tensors), offset, tuple(input_shape), layers[-1].num_outputs
    )


def _check_layers(layers: Sequence[Layer], input_shape: Sequence[int]) -> None:
    if not layers:
        raise ConfigError("the model has no layer; give at least one dense layer")
    for layer in layers:
        _check_layer(layer)
    if layers[-1].activation != "linear":
        raise ConfigError(
            f"layer {layers[-1].name}: its outputs are logits, softmax follows; make it linear"
        )
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise ConfigError(f"layers are named {', '.join(names)}; give each its own name")
    num_pixels = math.prod(input_shape)
    if layers[0].num_inputs != num_pixels:
        raise ConfigError(
            f"layer {layers[0].name} takes {layers[0].num_inputs} inputs but an example of shape "
            f"{tuple(input_shape)} has {num_pixels}; make them equal"
        )
    for before, after in pairwise(layers):
        if before.num_outputs != after.num_inputs:
            raise ConfigError(
                f"layer {before.name} gives {before.num_outputs} outputs but layer {after.name} "
                f"takes {after.num_inputs} inputs; make them equal"
            )


def _check_layer(layer: Layer) -> None:
    for what, given, known in (
        ("kind", layer.kind, LAYER_KINDS),
        ("activation", layer.activation, ACTIVATIONS),
    ):
        if given not in known:
            raise ConfigError(
                f"layer {layer.name}: {what} '{given}' is unknown; use {', '.join(known)}"
            )
    if layer.num_inputs < 1 or layer.num_outputs < 1:
        sizes = f"{layer.num_inputs} inputs and {layer.num_outputs} outputs"
        raise ConfigError(f"layer {layer.name}: {sizes}; both must be at least 1")


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) if shapes else "none"
