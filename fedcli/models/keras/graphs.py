"""Turns Keras's JSON description of a model into layers of fedcli.

Sequential and functional models in which each layer follows one other, models within models
included, as Keras 2 and Keras 3 write them. The description is untrusted: it names no code that is
run, and every option that fedcli does not compute is refused by name.
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
_MAX_LAYERS = 1000  # of all depths, models within models included
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Place:
    """The place of one layer's weights in a file.

    Attributes:
        name: Name of its `Spec`.
        path: Its names in the containers of `.weights.h5`, from the outermost: class names in snake
            case, counted.
        top: Name of the outermost layer it is in, the group of a legacy `.h5`.
        starts: How Keras initialises its tensors, in order: a constant, or an initialiser's name.
    """

    name: str
    path: tuple[str, ...]
    top: str
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class Graph:
    """A model without its weights.

    Attributes:
        name: The model's own.
        specs: From pixels to logits; each has a name.
        input_shape: Of one example, after the reshaping that the model starts with.
        places: One for each layer that has weights, in order.
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
        ConfigError: It describes no model, branches, or holds what fedcli does not compute; the
            line names layer and option.
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
    """Returns a class name as Keras writes it in names: `MaxPooling2D` is `max_pooling2d`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def container_names(class_names: Sequence[str]) -> list[str]:
    """Returns the names of layers of these classes in a `.weights.h5`: `dense`, `dense_1`."""
    seen: Counter[str] = Counter()
    names = []
    for class_name in class_names:
        name = to_snake_case(class_name)
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _class_of(item: object) -> tuple[str, Any]:
    """Class name and config of a layer or model; classes that are not Keras's own are refused."""
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
    """The layers so far, with the shape of what comes out of them."""

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
        found = chain_of(class_name, config)
        self._num_layers += len(found)
        if self._num_layers > _MAX_LAYERS:
            raise ConfigError(f"has more than {_MAX_LAYERS} layers; give a smaller model")
        counted = container_names([_class_of(each)[0] for each in found])
        for each, name in zip(found, counted, strict=True):
            options = Options(_class_of(each)[0], each)
            if options.class_name in MODELS:
                self._open(config, options, is_first=each is found[0])
                self.add_model(each, (*path, name), top or options.name, depth + 1)
                continue
            self._open(config, options, is_first=each is found[0])
            self._add_layer(options, (*path, name), top or options.name)

    def _open(self, model_config: Any, options: Options, *, is_first: bool) -> None:
        """Takes the input's shape from the first layer that has one."""
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
                f"{options.label} takes {list(shape)}, but {list(self._shape)} comes; save the "
                "model again"
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
        """Adds a layer that gives values of a shape."""
        self.specs.append(spec)
        self._names.add(spec.name)
        self._shape = shape

    def _reshape(self, options: Options) -> None:
        """Adds a Reshape: of the input it sets the shape; to a vector it is a Flatten."""
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
        """The layer's own name, made unique if a layer of another nested model has it."""
        base = "".join(each if each.isprintable() and each != "/" else "_" for each in name)
        base = base[: MAX_NAME - 5]
        base = base if base.strip(" .") else "layer"
        unique, count = base, 0
        while unique in self._names:
            count += 1
            unique = f"{base}_{count}"
        return unique


def _example_shape(given: object, label: str) -> KerasShape:
    """Shape of one example, from a batch's."""
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
    """A target shape with its -1 resolved; None: it does not hold `size` values."""
    if not isinstance(target, list) or not 1 <= len(target) <= 3:
        return None
    known = [each for each in target if _is_size(each)]
    if len(known) == len(target) - 1 and -1 in target and size % math.prod(known) == 0:
        known.insert(target.index(-1), size // math.prod(known))
    return tuple(known) if len(known) == len(target) and math.prod(known) == size else None
