"""Computes the sizes of a model's layers, each from the outputs of the layers that it reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fedcli.core.native import MAX_LAYERS
from fedcli.errors import ConfigError, plural, shown_repr
from fedcli.models.layers.contract import (
    IMAGE,
    KINDS,
    Incoming,
    Layer,
    Shape,
    Spec,
    checked_shape,
)
from fedcli.models.layers.fields import ACTIVATIONS, SOFTMAX

MAX_VALUES = 1 << 26  # largest number of values of one example between two layers: 256 MiB
MAX_DIMENSIONS = 8  # largest number of axes of one example
MAX_PARAMS = 1 << 30  # 4 GiB; each kernel's last dimension is rounded up to a multiple of 16


def size_layers(specs: Sequence[Spec], input_shape: Sequence[int]) -> tuple[Layer, ...]:
    """Returns the layers that the core computes, from pixels to logits; see `layout.lay_out`.

    Args:
        specs: The layers from pixels to logits, named and checked. Each comes after the layers that
            it reads.
        input_shape: Shape of one example.

    Raises:
        ConfigError: Layers do not fit each other or the image, a layer names an input that does not
            precede it, the output of a layer is not used, or the last layer does not give logits.
    """
    kept = _without_softmax(specs)
    image = Incoming(_first_shape(input_shape), is_image=len(input_shape) in (2, 3))
    graph = _Graph(image, _readers(kept))
    for spec in kept:
        graph.add(spec)
    layers = graph.finish()
    _check_last(layers)
    _check_size(layers)
    return tuple(layers)


def input_names(specs: Sequence[Spec]) -> list[tuple[str, ...]]:
    """Returns the names of each layer's inputs; `IMAGE` stands for the example.

    Raises:
        ConfigError: A layer has more or fewer inputs than its kind takes.
    """
    names: list[tuple[str, ...]] = []
    before = IMAGE
    for spec in specs:
        inputs = spec.inputs or (before,)
        if len(inputs) != spec.num_inputs:
            raise ConfigError(
                f"layer {spec.name}: it reads {shown_repr(', '.join(inputs))}, but a layer of kind "
                f"{spec.kind} has {plural(spec.num_inputs, 'input')}; name "
                f"{plural(spec.num_inputs, 'layer')} in its inputs"
            )
        names.append(inputs)
        before = spec.name
    return names


def _readers(specs: Sequence[Spec]) -> Counter[str]:
    """Counts how many layers read each layer or the image; only the last layer may be unread."""
    readers = Counter(name for inputs in input_names(specs) for name in inputs)
    for spec in specs[:-1]:
        if not readers[spec.name]:
            raise ConfigError(
                f"layer {spec.name}: no layer reads its output; name it in the inputs of another "
                "layer, or leave it out"
            )
    return readers


def _first_shape(input_shape: Sequence[int]) -> Shape:
    """The shape of an example as (height, width, channels); a vector if it is not an image."""
    if (
        not 1 <= len(checked_shape(input_shape)) <= MAX_DIMENSIONS
        or math.prod(input_shape) > MAX_VALUES
    ):
        raise ConfigError(
            f"examples have shape {list(input_shape)}; give height and width, or height, width and "
            f"channels, with at most {MAX_VALUES:,} values"
        )
    if len(input_shape) in (2, 3):
        height, width, channels = (*input_shape, 1)[:3]
        return height, width, channels
    return 1, 1, math.prod(input_shape)


def _without_softmax(specs: Sequence[Spec]) -> list[Spec]:
    """The layers without the softmax at their end; a softmax anywhere else is refused."""
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
        raise ConfigError("the model has no layers; give at least one dense layer")
    if len(layers) > MAX_LAYERS:
        raise ConfigError(f"the model has {len(layers)} layers; give at most {MAX_LAYERS}")
    last = layers[-1]
    height, width, channels = last.out_shape
    if (height, width) != (1, 1):
        raise ConfigError(
            f"layer {last.name}: it gives {height} x {width} x {channels} values, but the last "
            "layer must give one logit for each class; add a dense layer, or a pool over the whole "
            "image"
        )
    if last.activation != "linear":
        raise ConfigError(
            f"layer {last.name}: its outputs are logits, to which the loss applies softmax; use no "
            "other activation"
        )


def _check_size(layers: Sequence[Layer]) -> None:
    """Refuses a model that is too large for the core, before memory is allocated."""
    shapes = [tensor.shape for layer in layers for tensor in layer.tensors]
    if not shapes:
        raise ConfigError("the model has no parameters; give at least one layer with parameters")
    if sum(math.prod(shape[:-1]) * (shape[-1] + 15) for shape in shapes) > MAX_PARAMS:
        raise ConfigError(
            f"the model has {sum(map(math.prod, shapes)):,} parameters; choose sizes that give "
            "fewer"
        )


class _Value(NamedTuple):
    """The output of a layer, or the image.

    Attributes:
        number: The value in the core's table: 0 is the image, l + 1 the output of layer l.
        incoming: Its sizes, for the layers that read it.
        is_shared: Whether several layers read it. Then none of them may be merged into the layer
            that computes it.
    """

    number: int
    incoming: Incoming
    is_shared: bool


class _Graph:
    """Collects layers in order, and computes the sizes of each from its inputs."""

    def __init__(self, image: Incoming, readers: Counter[str]) -> None:
        self._readers = readers
        self._layers: list[Layer] = []
        self._sources: list[list[int]] = []  # numbers of the values that each layer reads
        self._values = {IMAGE: _Value(0, image, readers[IMAGE] > 1)}
        self._before = IMAGE

    def add(self, spec: Spec) -> None:
        """Adds a layer, or makes it a part of the layer that it reads.

        Raises:
            ConfigError: It does not fit its inputs, or an input is not before it.
        """
        sources = [self._value(spec, name) for name in spec.inputs or (self._before,)]
        first, is_shared = sources[0], self._readers[spec.name] > 1
        self._before = spec.name
        _check_shapes_agree(spec, sources)
        if spec.is_input:
            self._check_is_at_start(spec, first)
        merged = None
        if first.number > 0 and not first.is_shared:
            merged = spec.merged_into(self._layers[first.number - 1])
        if merged is not None:
            self._layers[first.number - 1] = merged
            self._values[spec.name] = first._replace(is_shared=is_shared)
            return
        numbers = [source.number for source in sources]
        is_image = all(source.incoming.is_image for source in sources)
        second = sources[1].incoming.shape if len(sources) > 1 else None
        parts = spec.parts(Incoming(first.incoming.shape, is_image, second))
        for part in parts:
            self._push(part, numbers)
            numbers = [len(self._layers)]
        if parts:
            number, shape = len(self._layers), parts[-1].out_shape
        else:
            number, shape = first.number, first.incoming.shape
            is_shared = is_shared or first.is_shared
        incoming = Incoming(shape, is_image and not spec.gives_vector)
        self._values[spec.name] = _Value(number, incoming, is_shared)

    def finish(self) -> list[Layer]:
        """Returns the layers, with the places of their inputs.

        Raises:
            ConfigError: The last layer computes nothing, and its input is not the last layer that
                computes something.
        """
        if self._values[self._before].number != len(self._layers):
            raise ConfigError(
                f"the last layer is {self._before}, but the last one that computes something is "
                f"{self._layers[-1].name}; put the layers that compute the logits at the end"
            )
        layers = []
        for place, (layer, sources) in enumerate(zip(self._layers, self._sources, strict=True)):
            skips = [place - number for number in sources]
            layers.append(replace(layer, skips=(skips[0], skips[1] if len(skips) > 1 else 0)))
        return layers

    def _check_is_at_start(self, spec: Spec, source: _Value) -> None:
        follows_inputs = all(KINDS[layer.kind].is_input for layer in self._layers)
        if not follows_inputs or source.is_shared or source.number != len(self._layers):
            raise ConfigError(
                f"layer {spec.name}: a layer of kind {spec.kind} changes the image itself; put it "
                "at the start; only layers that change the image, too, may be before it"
            )
        mixing = [layer.name for layer in self._layers if KINDS[layer.kind].mixes]
        if mixing:
            raise ConfigError(
                f"layer {spec.name}: it follows {mixing[0]}, which mixes the examples of a batch "
                "and must be the last layer that changes the image itself; put layer "
                f"{spec.name} before layer {mixing[0]}, or leave it out"
            )

    def _value(self, spec: Spec, name: str) -> _Value:
        if name not in self._values:
            raise ConfigError(
                f"layer {spec.name}: it reads {shown_repr(name)}, which is not a layer before it; "
                "name an earlier layer, and put each layer after the layers that it reads"
            )
        return self._values[name]

    def _push(self, layer: Layer, sources: list[int]) -> None:
        if layer.num_outputs > MAX_VALUES:
            raise ConfigError(
                f"layer {layer.name} gives {layer.num_outputs:,} values per example; choose sizes "
                f"that give at most {MAX_VALUES:,}"
            )
        self._layers.append(layer)
        self._sources.append(sources)


def _check_shapes_agree(spec: Spec, sources: Sequence[_Value]) -> None:
    shapes = [source.incoming.shape for source in sources]
    if len({shape[:2] if spec.joins_channels else shape for shape in shapes}) > 1:
        wanted = (
            "the same height and width"
            if spec.joins_channels
            else "the same shape, for example with a 1 x 1 convolution"
        )
        raise ConfigError(
            f"layer {spec.name}: its inputs have shapes {', '.join(str(list(s)) for s in shapes)}; "
            f"give it inputs of {wanted}"
        )
