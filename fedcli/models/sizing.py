"""Computes the sizes of a stack of layers, each from the output of the one before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedcli.core.native import MAX_LAYERS
from fedcli.errors import ConfigError
from fedcli.models.layers.contract import Incoming, Layer, Shape, Spec
from fedcli.models.layers.fields import ACTIVATIONS, SOFTMAX

MAX_VALUES = 1 << 26  # of one example between two layers: 256 MiB
MAX_DIMENSIONS = 8  # of one example
MAX_PARAMS = 1 << 30  # of a model, each kernel's last dimension counted as a multiple of 16: 4 GiB


def size_layers(specs: Sequence[Spec], input_shape: Sequence[int]) -> tuple[Layer, ...]:
    """Returns the layers that the core computes, from pixels to logits; see `layout.lay_out`.

    Args:
        specs: From pixels to logits; values are checked and each has its name.
        input_shape: Shape of one example.

    Raises:
        ConfigError: Layers do not fit each other or the image, or the last does not give logits.
    """
    stack = _Stack(Incoming(_first_shape(input_shape), is_image=len(input_shape) in (2, 3)))
    for spec in _without_softmax(specs):
        stack.add(spec)
    _check_last(stack.layers)
    _check_size(stack.layers)
    return tuple(stack.layers)


def _first_shape(input_shape: Sequence[int]) -> Shape:
    """The shape of an example as (height, width, channels); a vector if it is no image."""
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
    last = kept.pop().without_softmax() if kept else None
    if last is not None:
        kept.append(last)
    for spec in kept:
        if getattr(spec, "activation", "") == SOFTMAX:
            raise ConfigError(
                f"layer {spec.name}: a softmax is allowed only at the end of a model; choose "
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
    """Refuses a model that is too large for the core, before memory is allocated."""
    shapes = [tensor.shape for layer in layers for tensor in layer.tensors]
    if not shapes:
        raise ConfigError("the model has no parameters; give at least one layer that has")
    if sum(math.prod(shape[:-1]) * (shape[-1] + 15) for shape in shapes) > MAX_PARAMS:
        raise ConfigError(
            f"the model has {sum(map(math.prod, shapes)):,} parameters; choose sizes that give "
            "fewer"
        )


class _Stack:
    """A stack of layers, each sized by the output of the one before it."""

    def __init__(self, incoming: Incoming) -> None:
        self.layers: list[Layer] = []
        self._incoming = incoming

    def add(self, spec: Spec) -> None:
        """Adds a layer at the end, or makes it a part of the last one.

        Raises:
            ConfigError: It does not fit the output of the last layer.
        """
        merged = spec.merged_into(self.layers[-1]) if self.layers else None
        if merged is not None:
            self.layers[-1] = merged
            return
        shape = self._incoming.shape
        layer = spec.size(self._incoming)
        if layer is not None:
            self._push(layer)
            shape = layer.out_shape
        self._incoming = Incoming(shape, self._incoming.is_image and not spec.gives_vector)

    def _push(self, layer: Layer) -> None:
        if layer.num_outputs > MAX_VALUES:
            raise ConfigError(
                f"layer {layer.name} gives {layer.num_outputs:,} values an example; choose sizes "
                f"that give at most {MAX_VALUES:,}"
            )
        self.layers.append(layer)
