"""Layers with their sizes: each is sized by what comes out of the one before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedcli.errors import ConfigError
from fedcli.models import layers as specs_of
from fedcli.models.layers import (
    ACTIVATIONS,
    SOFTMAX,
    Activation,
    AveragePool2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    MaxPool2D,
    Pair,
    Spec,
)

MAX_LAYERS = 64  # as the core has it (FED_MAX_LAYERS)
MAX_VALUES = 1 << 26  # of one example between two layers: 256 MiB
MAX_DIMENSIONS = 8  # of one example
MAX_PARAMS = 1 << 30  # of a model, each kernel's last dimension counted as a multiple of 16: 4 GiB

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer with its sizes: a row of the core's model table (struct fed_layer).

    Attributes:
        kind: Its name in the core's table of kinds (csrc/layers/table.c).
        name: Its own in the model.
        in_shape: What it takes, (height, width, channels); a vector is (1, 1, size).
        out_shape: What it gives.
        activation: A key of `layers.ACTIVATIONS`; linear in the last layer, whose outputs are
            logits.
        has_scale: Whether it has gamma (group norm).
        has_bias: Whether it has a bias, or beta.
        window: Of a convolution or pool, (height, width); else (0, 0), as the next two.
        strides: From one window to the next.
        pads: What the first window reaches beyond the image at its top and left.
        num_groups: Of a group norm, else 0.
        epsilon: Of a group norm, else 0.
        rate: Of a dropout, else 0.
    """

    kind: str
    name: str
    in_shape: Shape
    out_shape: Shape
    activation: str = "linear"
    has_scale: bool = False
    has_bias: bool = False
    window: Pair = (0, 0)
    strides: Pair = (0, 0)
    pads: Pair = (0, 0)
    num_groups: int = 0
    epsilon: float = 0.0
    rate: float = 0.0

    @property
    def num_inputs(self) -> int:
        """Values it takes."""
        return math.prod(self.in_shape)

    @property
    def num_outputs(self) -> int:
        """Values it gives."""
        return math.prod(self.out_shape)

    @property
    def num_params(self) -> int:
        """Parameters it has."""
        return sum(math.prod(shape) for _, shape in self.tensor_shapes())

    def tensor_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Returns name and Keras shape of each of its tensors, in Keras's order."""
        channels = self.out_shape[2]
        if self.kind == "group_normalization":
            named = [("gamma", self.has_scale), ("beta", self.has_bias)]
            return [(name, (channels,)) for name, has in named if has]
        if self.kind not in ("dense", "conv2d"):
            return []
        is_dense = self.kind == "dense"
        sizes = (self.num_inputs,) if is_dense else (*self.window, self.in_shape[2])
        bias = [("bias", (channels,))] if self.has_bias else []
        return [("kernel", (*sizes, channels)), *bias]


def size_layers(specs: Sequence[Spec], input_shape: Sequence[int]) -> tuple[Layer, ...]:
    """Returns what the core computes, from pixels to logits; see `layout.lay_out`.

    Args:
        specs: From pixels to logits; values are checked and each has its name.
        input_shape: Shape of one example.

    Raises:
        ConfigError: Layers do not fit each other or the image, or the last does not give logits.
    """
    stack = _Stack(_first_shape(input_shape), is_image=len(input_shape) in (2, 3))
    for spec in _without_softmax(specs):
        stack.add(spec)
    _check_last(stack.layers)
    _check_size(stack.layers)
    return tuple(stack.layers)


def _first_shape(input_shape: Sequence[int]) -> Shape:
    """An example as (height, width, channels); what is no image is a vector."""
    for size in input_shape:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"examples of shape {list(input_shape)}; each size is a whole number from 1 on"
            )
    if not 1 <= len(input_shape) <= MAX_DIMENSIONS or math.prod(input_shape) > MAX_VALUES:
        raise ConfigError(
            f"examples of shape {list(input_shape)}: give height and width or height, width and "
            f"channels, with at most {MAX_VALUES:,} values"
        )
    if len(input_shape) in (2, 3):
        height, width, channels = (*input_shape, 1)[:3]
        return height, width, channels
    return 1, 1, math.prod(input_shape)


def _without_softmax(specs: Sequence[Spec]) -> list[Spec]:
    """The layers without a softmax at their end; one anywhere else is refused."""
    kept = list(specs)
    if kept and isinstance(kept[-1], Activation) and kept[-1].activation == SOFTMAX:
        kept.pop()
    elif kept and isinstance(kept[-1], Dense | Conv2D) and kept[-1].activation == SOFTMAX:
        kept[-1] = replace(kept[-1], activation="linear")
    for spec in kept:
        if getattr(spec, "activation", "") == SOFTMAX:
            raise ConfigError(
                f"layer {spec.name}: softmax stands only at the end of a model; choose "
                f"{', '.join(ACTIVATIONS)}"
            )
    return kept


def _check_last(layers: Sequence[Layer]) -> None:
    if not layers:
        raise ConfigError("the model has no layer; give at least one dense layer")
    if len(layers) > MAX_LAYERS:
        raise ConfigError(f"the model has {len(layers)} layers; give at most {MAX_LAYERS}")
    last = layers[-1]
    height, width, channels = last.out_shape
    if (height, width) != (1, 1):
        raise ConfigError(
            f"layer {last.name}: it gives {height} x {width} x {channels} values, but the last "
            "layer gives one logit a class; add a dense layer, or a pool over the whole image"
        )
    if last.activation != "linear":
        raise ConfigError(
            f"layer {last.name}: its outputs are logits, softmax follows; make it linear"
        )


def _check_size(layers: Sequence[Layer]) -> None:
    """Refuses what the core could not hold, before any of it is allocated."""
    shapes = [shape for layer in layers for _, shape in layer.tensor_shapes()]
    if not shapes:
        raise ConfigError("the model has no parameters; give at least one layer that has")
    if sum(math.prod(shape[:-1]) * (shape[-1] + 15) for shape in shapes) > MAX_PARAMS:
        raise ConfigError(
            f"the model has {sum(map(math.prod, shapes)):,} parameters; choose sizes that give "
            "fewer"
        )


class _Stack:
    """Layers put one on the other, each sized by what comes out of the one below."""

    def __init__(self, shape: Shape, *, is_image: bool) -> None:
        self.layers: list[Layer] = []
        self._shape = shape
        self._is_image = is_image

    def add(self, spec: Spec) -> None:
        """Puts a layer on top.

        Raises:
            ConfigError: It does not fit what comes out of the layer below.
        """
        if isinstance(spec, Flatten):
            self._is_image = False
        elif isinstance(spec, Activation):
            self._activate(spec)
        elif not (isinstance(spec, Dropout) and spec.rate == 0):
            self._push(self._resolve(spec))

    def _push(self, layer: Layer) -> None:
        if layer.num_outputs > MAX_VALUES:
            raise ConfigError(
                f"layer {layer.name} gives {layer.num_outputs:,} values an example; choose sizes "
                f"that give at most {MAX_VALUES:,}"
            )
        self.layers.append(layer)
        self._shape = layer.out_shape
        self._is_image = self._is_image and layer.kind != "dense"

    def _activate(self, spec: Activation) -> None:
        if spec.activation == "linear":
            return
        before = self.layers[-1] if self.layers else None
        if before is not None and before.activation == "linear" and before.kind != "dropout":
            self.layers[-1] = replace(before, activation=spec.activation)
        else:
            self._push(Layer("activation", spec.name, self._shape, self._shape, spec.activation))

    def _resolve(
        self, spec: Dense | Conv2D | MaxPool2D | AveragePool2D | Dropout | GroupNorm
    ) -> Layer:
        shape = self._shape
        if isinstance(spec, Dense):
            out = (1, 1, spec.units)
            return Layer(spec.kind, spec.name, shape, out, spec.activation, has_bias=spec.use_bias)
        if isinstance(spec, Dropout):
            return Layer(spec.kind, spec.name, shape, shape, rate=float(spec.rate))
        if isinstance(spec, GroupNorm):
            return self._group_norm(spec)
        if not self._is_image:
            raise ConfigError(
                f"layer {spec.name}: a {spec.kind} takes an image, but what comes is a vector of "
                f"{math.prod(shape)} values; put it before the flattening"
            )
        return _windowed(spec, shape)

    def _group_norm(self, spec: GroupNorm) -> Layer:
        shape = self._shape
        if not self._is_image and shape[:2] != (1, 1):
            raise ConfigError(
                f"layer {spec.name}: a {spec.kind} of a flattened image; put it before the "
                "flattening"
            )
        num_groups = shape[2] if spec.groups == -1 else spec.groups
        if shape[2] % num_groups:
            raise ConfigError(
                f"layer {spec.name}: groups {spec.groups} do not divide the {shape[2]} channels "
                "that come in; choose a divisor of them"
            )
        return Layer(
            spec.kind,
            spec.name,
            shape,
            shape,
            has_scale=spec.scale,
            has_bias=spec.center,
            num_groups=num_groups,
            epsilon=float(spec.epsilon),
        )


def _windowed(spec: Conv2D | MaxPool2D | AveragePool2D, shape: Shape) -> Layer:
    """A convolution or pool, sized as TensorFlow does."""
    window = specs_of.pair(spec.kernel_size if isinstance(spec, Conv2D) else spec.pool_size)
    strides = window if spec.strides is None else specs_of.pair(spec.strides)
    sizes, pads = [], []
    for size, length, stride in zip(shape[:2], window, strides, strict=True):
        if spec.padding == "valid" and size < length:
            raise ConfigError(
                f"layer {spec.name}: its window of {window[0]} x {window[1]} is larger than the "
                f"{shape[0]} x {shape[1]} image that reaches it; the model needs larger images, "
                "or padding same"
            )
        count = -(-size // stride) if spec.padding == "same" else (size - length) // stride + 1
        reach = max((count - 1) * stride + length - size, 0) if spec.padding == "same" else 0
        sizes.append(count)
        pads.append(reach // 2)
    return Layer(
        spec.kind,
        spec.name,
        shape,
        (sizes[0], sizes[1], spec.filters if isinstance(spec, Conv2D) else shape[2]),
        spec.activation if isinstance(spec, Conv2D) else "linear",
        has_bias=isinstance(spec, Conv2D) and spec.use_bias,
        window=window,
        strides=strides,
        pads=(pads[0], pads[1]),
    )
