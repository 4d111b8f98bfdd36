"""Turns Keras's JSON description of a model into layers of fedcli.

Sequential and functional models of Keras 2 and Keras 3 are read if their layers form one chain.
Nested models are allowed. The description is not trusted: no code that it names is run, and every
option that fedcli does not support is refused by name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.keras.chains import chain_of
from fedcli.models.layers import Flatten
from fedcli.models.layers.contract import KERAS_READERS, KerasShape, Spec, Start
from fedcli.models.layers.fields import MAX_NAME, MAX_SIZE
from fedcli.models.layers.keras_options import Options, plain, shown

# The layers that a file may have; the error for any other layer lists them.
SUPPORTED = tuple(sorted({*KERAS_READERS, "InputLayer", "Reshape"}))
MODELS = ("Sequential", "Functional", "Model")
_MAX_LAYERS = 1000  # in total, including the layers of nested models
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Place:
    """The place of one layer's weights in a file.

    Attributes:
        name: Name of the layer's `Spec`.
        path: The layer's names in the groups of `.weights.h5`, outermost first: class names in
            snake case with a counter.
        top: Name of the outermost layer that contains it; a legacy `.h5` has a group of this name.
        starts: The initialisers of its tensors in order: a constant, or an initialiser's name.
    """

    name: str
    path: tuple[str, ...]
    top: str
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class Graph:
    """A model without its weights.

    Attributes:
        name: The model's name.
        specs: The layers from pixels to logits; each has a name.
        input_shape: Shape of one example, after a Reshape at the beginning of the model.
        places: The places of the weights, one for each layer that has weights, in order.
    """

    name: str
    specs: tuple[Spec, ...]
    input_shape: KerasShape
    places: tuple[Place, ...]


def parse(description: object) -> Graph:
    """Returns the model of a Keras description.

    Args:
        description: Decoded JSON: `class_name` and `config` of a model.

    Raises:
        ConfigError: The JSON describes no model, the model branches, or fedcli does not support a
            layer or an option. The message names layer and option.
    """
    class_name, config = _class_of(description)
    if class_name not in MODELS:
        raise ConfigError(
            f"holds a {shown(class_name)}; fedcli reads Sequential and functional models "
            "(a subclassed one is code, which no file holds)"
        )
    builder = _Builder()
    builder.add_model(description, (), "", 0)
    if builder.input_shape is None:
        raise ConfigError("the model has no layer; save it with its layers")
    name = config.get("name") if isinstance(config, Mapping) else None
    return Graph(
        name if isinstance(name, str) else "model",
        tuple(builder.specs),
        builder.input_shape,
        tuple(builder.places),
    )


def to_snake_case(class_name: str) -> str:
    """Returns a class name in Keras's snake case: `MaxPooling2D` becomes `max_pooling2d`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def container_names(class_names: Sequence[str]) -> list[str]:
    """Returns the names of layers in a `.weights.h5`, from their classes: `dense`, `dense_1`."""
    seen: Counter[str] = Counter()
    names = []
    for class_name in class_names:
        name = to_snake_case(class_name)
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _class_of(item: object) -> tuple[str, Any]:
    """Returns class name and config of a layer or model. Custom classes are refused."""
    if not isinstance(item, Mapping) or not isinstance(item.get("class_name"), str):
        raise ConfigError("describes no Keras model: a part of it has no class_name")
    class_name = item["class_name"]
    module, registered = item.get("module"), item.get("registered_name")
    is_keras = module is None or str(module).split(".")[0] in ("keras", "tf_keras")
    if not is_keras or registered not in (None, class_name):
        raise ConfigError(
            f"layer {shown(class_name)} of {shown(registered or module)} is custom code; fedcli "
            f"computes {', '.join(SUPPORTED)}"
        )
    return class_name, item.get("config")


class _Builder:
    """Collects layers and keeps track of the shape of their output."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []
        self.places: list[Place] = []
        self.input_shape: KerasShape | None = None
        self._shape: KerasShape = ()
        self._names: set[str] = set()
        self._num_layers = 0

    def add_model(self, item: object, path: tuple[str, ...], top: str, depth: int) -> None:
        """Adds the layers of a Sequential or functional model."""
        if depth > _MAX_DEPTH:
            raise ConfigError(f"models within models, more than {_MAX_DEPTH} deep; flatten it")
        class_name, config = _class_of(item)
        layers = chain_of(class_name, config)
        self._num_layers += len(layers)
        if self._num_layers > _MAX_LAYERS:
            raise ConfigError(f"has more than {_MAX_LAYERS} layers; give a smaller model")
        numbered = container_names([_class_of(each)[0] for each in layers])
        for each, name in zip(layers, numbered, strict=True):
            options = Options(_class_of(each)[0], each)
            if options.class_name in MODELS:
                self._read_input_shape(config, options, is_first=each is layers[0])
                self.add_model(each, (*path, name), top or options.name, depth + 1)
                continue
            self._read_input_shape(config, options, is_first=each is layers[0])
            self._add_layer(options, (*path, name), top or options.name)

    def _read_input_shape(self, model_config: Any, options: Options, *, is_first: bool) -> None:
        """Sets the input's shape if this is the first layer that states it."""
        given = options.input_shape()
        if given is None and is_first and isinstance(model_config, Mapping):
            given = plain(model_config.get("build_input_shape"))
        if given is None:
            return
        shape = _example_shape(given, options.label)
        if self.input_shape is None:
            self.input_shape = self._shape = shape
        elif options.class_name == "InputLayer" and shape != self._shape:
            raise ConfigError(
                f"{options.label} takes {list(shape)}, but its input is {list(self._shape)}; "
                "save the model again"
            )

    def _add_layer(self, options: Options, path: tuple[str, ...], top: str) -> None:
        if options.class_name not in SUPPORTED:
            raise ConfigError(
                f"layer {shown(options.name)} is a {shown(options.class_name)}, which fedcli does "
                f"not compute; it computes {', '.join(SUPPORTED)}"
            )
        if options.class_name == "InputLayer":
            options.finish(free=("batch_shape", "batch_input_shape", "shape", "batch_size"))
            return
        if self.input_shape is None:
            raise ConfigError("does not say the shape of its input; build the model, then save it")
        if options.class_name == "Reshape":
            self._reshape(options)
            return
        read = KERAS_READERS[options.class_name]
        for spec, shape in read(options, self._shape, self._unique(options.name)):
            self._append(spec, shape)
            starts = options.starts(spec.starts())
            if starts:
                self.places.append(Place(spec.name, path, top, starts))

    def _append(self, spec: Spec, shape: KerasShape) -> None:
        """Adds a layer whose output has the given shape."""
        self.specs.append(spec)
        self._names.add(spec.name)
        self._shape = shape

    def _reshape(self, options: Options) -> None:
        """Handles a Reshape. To a vector it becomes a Flatten; of the input it sets the shape."""
        target = plain(options.take("target_shape"))
        options.finish()
        size = math.prod(self._shape)
        shape = _resolve(target, size)
        if shape is None:
            raise ConfigError(
                f"{options.label}: target_shape {shown(target)} does not hold {size} values"
            )
        if len(shape) == 1 < len(self._shape):
            self._append(Flatten(name=self._unique(options.name)), shape)
        elif all(isinstance(spec, Flatten) for spec in self.specs):
            self.specs.clear()
            self.input_shape = self._shape = shape
        elif shape != self._shape:
            raise ConfigError(
                f"{options.label}: target_shape {shown(target)} within the model; fedcli reshapes "
                "the input alone, or to a vector"
            )

    def _unique(self, name: str) -> str:
        """Returns the layer's name, made unique if a layer of another nested model has it."""
        base = "".join(each if each.isprintable() and each != "/" else "_" for each in name)
        base = base[: MAX_NAME - 5]
        base = base if base.strip(" .") else "layer"
        unique, count = base, 0
        while unique in self._names:
            count += 1
            unique = f"{base}_{count}"
        return unique


def _example_shape(given: object, label: str) -> KerasShape:
    """Returns the shape of one example from a batch's shape."""
    sizes = given[1:] if isinstance(given, list) else []
    shape = tuple(each for each in sizes if _is_size(each))
    if len(shape) != len(sizes) or not 1 <= len(shape) <= 3:
        raise ConfigError(
            f"{label}: input of shape {shown(given)}; fedcli takes images and vectors of a fixed "
            "size, such as [null, 28, 28, 1]"
        )
    return shape


def _is_size(value: object) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 1 <= value <= MAX_SIZE  # type: ignore[operator]


def _resolve(target: object, size: int) -> KerasShape | None:
    """Returns a target shape without -1; None if it does not have `size` values."""
    if not isinstance(target, list) or not 1 <= len(target) <= 3:
        return None
    known = [each for each in target if _is_size(each)]
    if len(known) == len(target) - 1 and -1 in target and size % math.prod(known) == 0:
        known.insert(target.index(-1), size // math.prod(known))
    return tuple(known) if len(known) == len(target) and math.prod(known) == size else None
