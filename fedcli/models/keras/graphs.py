"""Turns Keras's JSON description of a model into layers of fedcli.

Sequential and functional models of Keras 2 and Keras 3 with one input and one output are read.
Nested models are allowed. The description is not trusted: no code that it names is run, and an
option that fedcli does not support is refused with its name.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, shown
from fedcli.models.keras.connections import MAX_DEPTH, in_order
from fedcli.models.layers import Flatten
from fedcli.models.layers.contract import (
    IMAGE,
    KERAS_READERS,
    KINDS,
    KerasShape,
    Spec,
    Start,
)
from fedcli.models.layers.fields import MAX_NAME, MAX_SIZE
from fedcli.models.layers.keras_options import Options, plain

# The layers that a file may have; the error for any other layer lists them.
SUPPORTED = tuple(sorted({*KERAS_READERS, "InputLayer", "Reshape"}))
MODELS = ("Sequential", "Functional", "Model")
# The layers that take several inputs.
_MERGING = {kind.keras_class: kind for kind in KINDS.values() if kind.num_inputs > 1}
_MAX_LAYERS = 1000  # in total, including the layers of nested models


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
        ConfigError: The JSON describes no model, the model does not have exactly one input and one
            output, or fedcli does not support a layer or an option. The message names layer and
            option.
    """
    class_name, config = _class_of(description)
    if class_name not in MODELS:
        raise ConfigError(
            f"holds a {shown(class_name)}; fedcli reads Sequential and functional models (files do "
            "not contain the code of subclassed models)"
        )
    builder = _Builder()
    builder.add_model(description, (), "", None)
    if builder.input_shape is None:
        raise ConfigError("the model has no layers; save it with its layers")
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
        raise ConfigError(
            "does not describe a Keras model: a layer has no class_name; give a file that Keras "
            "wrote"
        )
    class_name = item["class_name"]
    module, registered = item.get("module"), item.get("registered_name")
    is_keras = module is None or str(module).split(".")[0] in ("keras", "tf_keras")
    if not is_keras or registered not in (None, class_name):
        raise ConfigError(
            f"layer {shown(class_name)} of {shown(registered or module)} is custom code; fedcli "
            f"computes {', '.join(SUPPORTED)}"
        )
    return class_name, item.get("config")


class _Output(NamedTuple):
    """The output of a layer of the file: the name of its last `Spec`, or `IMAGE`, and the shape."""

    name: str
    shape: KerasShape


class _Builder:
    """Collects layers and keeps track of the shapes of their outputs."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []
        self.places: list[Place] = []
        self.input_shape: KerasShape | None = None
        self._names: set[str] = set()
        self._num_layers = 0

    def add_model(
        self, item: object, path: tuple[str, ...], top: str, source: _Output | None
    ) -> _Output | None:
        """Adds the layers of a Sequential or functional model, and returns its output.

        Args:
            item: The model in JSON.
            path: Names in a `.weights.h5`: the names of the models that contain it, then its own.
            top: Name of the outermost layer that contains it; "" if it is not nested.
            source: Its input; None for the input of the whole model if its shape is not known yet.
        """
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"models are nested more than {MAX_DEPTH} deep; flatten the model")
        class_name, config = _class_of(item)
        applied = in_order(class_name, config)
        self._num_layers += len(applied)
        if self._num_layers > _MAX_LAYERS:
            raise ConfigError(f"has more than {_MAX_LAYERS} layers; give a smaller model")
        outputs: dict[str, _Output | None] = {}
        output = source
        numbered = container_names([_class_of(each.item)[0] for each in applied])
        for each, name in zip(applied, numbered, strict=True):
            sources = [outputs[read] for read in each.sources] or [source]
            options = Options(_class_of(each.item)[0], each.item)
            _check_class(options)
            # A layer with several inputs is never the first, so it cannot give the shape of the
            # model's input.
            given = None if options.class_name in _MERGING else options.input_shape()
            if given is None and each is applied[0] and isinstance(config, Mapping):
                given = plain(config.get("build_input_shape"))
            sources[0] = self._with_shape(sources[0], given, options)
            inner, outermost = (*path, name), top or options.name
            if options.class_name in MODELS:
                _check_one(options, sources)
                output = self.add_model(each.item, inner, outermost, sources[0])
            else:
                output = self._add_layer(options, inner, outermost, sources)
            outputs[each.name] = output
        return output

    def _with_shape(
        self, source: _Output | None, given: object, options: Options
    ) -> _Output | None:
        """Returns `source`, or the model's input if this layer is the first to state its shape."""
        if given is None:
            return source
        shape = _example_shape(given, options.label)
        if self.input_shape is None:
            self.input_shape = shape
            return _Output(IMAGE, shape)
        if options.class_name == "InputLayer" and source is not None and shape != source.shape:
            raise ConfigError(
                f"{options.label} declares the input shape {list(shape)}, but its input has "
                f"{list(source.shape)}; save the model again"
            )
        return source

    def _add_layer(
        self,
        options: Options,
        path: tuple[str, ...],
        top: str,
        sources: Sequence[_Output | None],
    ) -> _Output | None:
        if options.class_name == "InputLayer":
            options.finish(free=("batch_shape", "batch_input_shape", "shape", "batch_size"))
            return sources[0]
        known = [source for source in sources if source is not None]
        if self.input_shape is None or len(known) != len(sources):
            raise ConfigError(
                "does not state the shape of its input; build the model, then save it"
            )
        for source in known:
            if source.name == IMAGE and source.shape != self.input_shape:
                raise ConfigError(
                    f"{options.label} reads the model's input with shape {list(source.shape)}, "
                    f"another layer with {list(self.input_shape)}; fedcli supports one input shape"
                )
        if options.class_name in _MERGING:
            return self._merge(options, known)
        _check_one(options, known)
        if options.class_name == "Reshape":
            return self._reshape(options, known[0])
        output = known[0]
        read = KERAS_READERS[options.class_name]
        for spec, shape in read(options, output.shape, self._unique(options.name)):
            output = self._append(spec, shape, output)
            starts = options.starts(spec.starts())
            if starts:
                self.places.append(Place(spec.name, path, top, starts))
        return output

    def _append(self, spec: Spec, shape: KerasShape, *sources: _Output) -> _Output:
        """Adds a layer whose output has the given shape."""
        before = self.specs[-1].name if self.specs else IMAGE
        inputs = tuple(source.name for source in sources)
        self.specs.append(spec.changed(inputs=() if inputs == (before,) else inputs))
        self._names.add(spec.name)
        return _Output(spec.name, shape)

    def _merge(self, options: Options, sources: Sequence[_Output]) -> _Output:
        """Handles a layer of two or more inputs.

        With more than two inputs it becomes a chain of layers.
        """
        shapes = [source.shape for source in sources]
        joins = _MERGING[options.class_name].joins_channels
        if len(sources) < 2 or len({shape[:-1] if joins else shape for shape in shapes}) > 1:
            which = "whose shapes differ only in channels" if joins else "of the same shape"
            raise ConfigError(
                f"{options.label} takes inputs of shapes {', '.join(map(str, map(list, shapes)))}; "
                f"fedcli supports two or more inputs {which}"
            )
        output = sources[0]
        specs = KERAS_READERS[options.class_name](options, shapes[0], options.name)
        for spec, _ in specs:
            for source in sources[1:]:
                more = source.shape[-1] if joins else 0
                shape = (*output.shape[:-1], output.shape[-1] + more)
                name = self._unique(options.name)
                output = self._append(spec.changed(name=name), shape, output, source)
        return output

    def _reshape(self, options: Options, source: _Output) -> _Output:
        """Handles a Reshape.

        A Reshape to a vector becomes a Flatten; a Reshape of the input sets the input's shape.
        """
        target = plain(options.take("target_shape"))
        options.finish()
        size = math.prod(source.shape)
        shape = _resolve(target, size)
        if shape is None:
            raise ConfigError(
                f"{options.label}: target_shape {shown(target)} does not have {size} values; save "
                "the model again"
            )
        if len(shape) == 1 < len(source.shape):
            return self._append(Flatten(name=self._unique(options.name)), shape, source)
        if all(isinstance(spec, Flatten) for spec in self.specs):
            self.specs.clear()
            self.input_shape = shape
            return _Output(IMAGE, shape)
        if shape != source.shape:
            raise ConfigError(
                f"{options.label}: has target_shape {shown(target)} inside the model; fedcli "
                "supports only a Reshape of the input, or to a vector"
            )
        return source

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


def _check_class(options: Options) -> None:
    if options.class_name not in (*SUPPORTED, *MODELS):
        raise ConfigError(
            f"layer {shown(options.name)} is a {shown(options.class_name)}, which fedcli does not "
            f"support; it supports {', '.join(SUPPORTED)}"
        )


def _check_one(options: Options, sources: Sequence[object]) -> None:
    if len(sources) != 1:
        raise ConfigError(
            f"{options.label} takes {len(sources)} inputs; fedcli supports only one for a layer of "
            "this kind"
        )


def _example_shape(given: object, label: str) -> KerasShape:
    """Returns the shape of one example from a batch's shape."""
    sizes = given[1:] if isinstance(given, list) else []
    shape = tuple(each for each in sizes if _is_size(each))
    if len(shape) != len(sizes) or not 1 <= len(shape) <= 3:
        raise ConfigError(
            f"{label}: has input shape {shown(given)}; fedcli supports images and vectors of a "
            "fixed size, such as [null, 28, 28, 1]"
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
