"""The interface of layers.

Each kind of layer is one subclass of `Spec`, which defines everything about it.

A new kind is a subclass with `kind`, `keras_class` and its fields, in the file of its family and in
that file's `__all__`. Sizing, layouts, costs, Keras's files and checkpoints then support it. The
class defines

    the allowed values of its fields                           checks
    its tensors and their initial values                       tensors
    its output shape and its row in the core's table           size
    its name in Keras, reading and writing it there            keras_class, from_keras, to_keras

The core computes the layer with the functions in the row `kind` of csrc/layers/table.c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from fedcli.core.native import ModelRow
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural, refuse_unknown, shown_repr, speaks_python
from fedcli.models.layers.fields import (
    ACTIVATIONS,
    DEFAULT_CONSTANTS,
    INITIALIZERS,
    MAX_NORMALIZED,
    NEED_INPUTS,
    SOFTMAX,
    Check,
    Pair,
    check_inputs,
)

if TYPE_CHECKING:  # only runs of a Keras file import the modules that read such files
    from fedcli.models.layers.keras_options import Options

S = TypeVar("S", bound="Spec")
Shape = tuple[int, int, int]  # (height, width, channels) of one example; (1, 1, size) of a vector
KerasShape = tuple[int, ...]  # shape of one example in Keras: a vector is (size,)

# The initial value of a tensor: a constant, or Keras's name of an initialiser that draws it.
Start = float | str
GLOROT_UNIFORM = INITIALIZERS["glorot_uniform"]  # within ±sqrt(6 / (fan in + fan out))


_INITIALIZER = "_initializer"  # end of the names of fields that initialise a tensor


class TensorKind(NamedTuple):
    """A tensor that layers of a kind have.

    Attributes:
        name: Its name in Keras.
        start: Its initial value or initialiser.
        field: The field of a layer that says whether the layer has the tensor; "": every layer has
            it.
        is_trained: Whether local steps and the server optimizer change it. If not, it is a moving
            statistic of a batch norm.
    """

    name: str
    start: Start
    field: str = ""
    is_trained: bool = True


class LayerTensor(NamedTuple):
    """A tensor of one layer; name, shape and start are as in Keras.

    Attributes:
        name: Its name.
        shape: Its shape.
        start: Its initial value or initialiser.
        is_trained: See `TensorKind`.
    """

    name: str
    shape: tuple[int, ...]
    start: Start
    is_trained: bool = True

    @property
    def size(self) -> int:
        """Number of parameters in it."""
        return math.prod(self.shape)


class Incoming(NamedTuple):
    """The input of a layer.

    Attributes:
        shape: Shape of one example.
        is_image: Whether it is an image: neither flattened nor the output of a dense layer.
        second: Shape of the second input of a layer that has two, else None.
    """

    shape: Shape
    is_image: bool
    second: Shape | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with its sizes, as the core computes it (struct fed_layer); made by `Spec.size`.

    Attributes:
        kind: Name of its row in the core's table of kinds.
        name: Its name in the model. If one `Spec` becomes several layers, all have its name.
        in_shape: Shape of its input.
        out_shape: Shape of its output.
        activation: A key of `ACTIVATIONS`; linear in the last layer, whose outputs are logits.
        has_scale: Whether it has gamma.
        has_bias: Whether it has a bias, or beta.
        window: (height, width) of the window of a convolution or pool, or of the square of a
            cutout; (0, 0) for other layers.
        strides: Distances from one window of a convolution or pool to the next, else (0, 0).
        pads: Padding at the top and left of the image; (0, 0) without padding.
        skips: For each of two inputs, the number of layers between it and this one: 0 is the output
            of the layer before. Additions and concatenations have a second input.
        num_groups: Groups of a group norm, else 0.
        epsilon: Epsilon of a norm, else 0.
        rate: Rate of a dropout, else 0.
        momentum: Momentum of a batch norm's moving statistics, else 0.
        is_frozen: Whether a batch norm normalises by its moving statistics in training, too, and
            leaves them as they are.
        constants: The constants of an input layer, up to 2 * MAX_NORMALIZED numbers. For others,
            the activation's constant; empty for the default in `DEFAULT_CONSTANTS`.
        tensors: Its tensors in Keras's order.
        multiply_adds: Multiply-adds of one forward pass of one example; 0 if there are only a few
            for each value.
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
    skips: Pair = (0, 0)
    num_groups: int = 0
    epsilon: float = 0.0
    rate: float = 0.0
    momentum: float = 0.0
    is_frozen: bool = False
    constants: tuple[float, ...] = ()
    tensors: tuple[LayerTensor, ...] = ()
    multiply_adds: int = 0

    @property
    def num_inputs(self) -> int:
        """Number of input values."""
        return math.prod(self.in_shape)

    @property
    def num_outputs(self) -> int:
        """Number of output values."""
        return math.prod(self.out_shape)

    @property
    def num_params(self) -> int:
        """Number of parameters, with the moving statistics of a batch norm."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def num_trained(self) -> int:
        """Number of parameters that are trained."""
        return sum(tensor.size for tensor in self.tensors if tensor.is_trained)

    @property
    def activation_constant(self) -> float:
        """The slope of a leaky ReLU below 0, or the alpha of an ELU; 0 for other activations."""
        default = DEFAULT_CONSTANTS.get(self.activation)
        return 0.0 if default is None else (*self.constants, default)[0]

    def core_row(self, offset: int, moving_offset: int) -> ModelRow:
        """Returns its row in the core's model table.

        Args:
            offset: Offset of its trained tensors in the parameter vector.
            moving_offset: Offset of its other tensors.
        """
        constants = self.constants or (self.activation_constant,)
        return (
            self.kind,
            ACTIVATIONS[self.activation],
            self.in_shape,
            self.out_shape,
            offset,
            *self.skips,
            int(self.has_scale),
            int(self.has_bias),
            *self.window,
            *self.strides,
            *self.pads,
            self.num_groups,
            self.epsilon,
            self.rate,
            self.momentum,
            int(self.is_frozen),
            moving_offset,
            *constants,
            *[0.0] * (2 * MAX_NORMALIZED - len(constants)),
        )


IMAGE = "/image"  # names the example itself among a layer's inputs; no layer's name has a slash


class Spec:
    """A layer as the user describes it.

    Each kind is a frozen dataclass whose last two fields are `name` and `inputs`. A layer reads the
    previous layer, or the earlier layers that `inputs` names. As in Keras, a layer can also be
    called on the outputs of others, to build a graph; see `models.functional`.

    Attributes:
        kind: Name of the kind in descriptions, in the core's table of kinds and in numbered names:
            Keras's class in snake case.
        keras_class: Name of the class in Keras.
        tensors: The tensors of layers of the kind, in Keras's order.
        checks: For each field except `name` and `inputs`, a function that refuses a wrong value.
        takes_vector: Whether Keras needs a Flatten between an image and the layer.
        gives_vector: Whether its output is never an image.
        needs_channels: Whether Keras needs images with channels here, [H, W, C].
        takes_activation: Whether the C core can compute a following activation as part of the
            layer.
        num_inputs: Number of inputs, all of one shape.
        joins_channels: Whether the inputs may differ in the number of channels.
        is_input: Whether it may only stand at the start of a model; see `layers.inputs`.
        mixes: Whether it mixes the examples of a training batch, as the last input layer.
    """

    kind: ClassVar[str]
    keras_class: ClassVar[str]
    tensors: ClassVar[tuple[TensorKind, ...]] = ()
    checks: ClassVar[Mapping[str, Check]] = {}
    takes_vector: ClassVar[bool] = False
    gives_vector: ClassVar[bool] = False
    needs_channels: ClassVar[bool] = False
    takes_activation: ClassVar[bool] = True
    num_inputs: ClassVar[int] = 1
    joins_channels: ClassVar[bool] = False
    is_input: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Registers the kind under its name and under Keras's."""
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls
            KERAS_READERS[cls.keras_class] = cls.from_keras

    @property
    def name(self) -> str:
        """Its name in the model; "": the name that Keras would give it."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the layers that it reads, or `IMAGE`; (): the previous layer, or the image."""
        raise NotImplementedError

    def __new__(cls, *values: Any, **given: Any) -> Spec:
        """Refuses unknown options.

        The message lists similar names, and fedcli's names for options of Keras.
        """
        refuse_unknown(cls.__name__, given, [each.name for each in fields_of(cls)])  # type: ignore[arg-type]
        return super().__new__(cls)

    def __call__(self, *inputs: Node) -> Node:
        """Returns the layer applied to nodes of a graph: outputs of other layers, or `Input()`.

        Raises:
            ConfigError: An input is not a node, or there are more or fewer inputs than the layer
                takes.
        """
        if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            raise ConfigError(
                f"layer {self.name or self.kind} is called on a {type(inputs[0]).__name__}; write "
                f"{type(self).__name__}()(a, b) in place of Keras's {type(self).__name__}()([a, b])"
            )
        others = [type(each).__name__ for each in inputs if not isinstance(each, Node)]
        if others:
            raise ConfigError(
                f"layer {self.name or self.kind} is called on a value of type {others[0]}; call it "
                "on layers.Input(shape) or on what another layer returned"
            )
        if len(inputs) != self.num_inputs:
            raise ConfigError(
                f"layer {self.name or self.kind} is called on {plural(len(inputs), 'value')}; call "
                f"it on {self.num_inputs}, each returned by Input() or another layer"
            )
        return Node(self, inputs)

    def changed(self: S, **values: Any) -> S:
        """Returns the layer with other values of some fields."""
        return type(self)(**{**vars(self), **values})

    def check(self, label: str) -> None:
        """Refuses a value that no layer of the kind may have.

        Args:
            label: Name of the layer in messages.

        Raises:
            ConfigError: A value has a wrong type or is outside its range. The message names layer
                and value.
        """
        for field, check in self.checks.items():
            check(f"{label}: {field}", getattr(self, field))
        check_inputs(f"{label}: inputs", self.inputs)

    def starts(self) -> dict[str, Start]:
        """Returns the initial value or initialiser of each of its tensors, by name and in order.

        The field TENSOR_initializer, if the kind has it, replaces the tensor's usual initialiser.
        """
        given = {
            each.name: getattr(self, f"{each.name}{_INITIALIZER}", "") for each in self.tensors
        }
        return {
            each.name: INITIALIZERS.get(given[each.name], each.start)
            for each in self.tensors
            if not each.field or getattr(self, each.field)
        }

    def size(self, incoming: Incoming) -> Layer | None:
        """Returns the layer with its sizes, or None if there is nothing to compute.

        Args:
            incoming: The input. The layer's values are checked, and it has a name.

        Raises:
            ConfigError: The layer does not fit the input.
        """
        raise NotImplementedError

    def parts(self, incoming: Incoming) -> list[Layer]:
        """Returns the layers that the C core computes for this one. Each reads the one before it.

        Args:
            incoming: As for `size`.

        Raises:
            ConfigError: The layer does not fit the input.
        """
        layer = self.size(incoming)
        return [] if layer is None else _with_own_activation(layer)

    def merged_into(self, before: Layer) -> Layer | None:
        """Returns the previous layer merged with this one, or None if they stay separate."""
        return None

    def with_softmax(self) -> Spec | None:
        """Returns the layer with softmax as its activation; None if it cannot have one in Keras."""
        return None

    def without_softmax(self) -> Spec | None:
        """Returns the layer without its softmax, or None if it is nothing but a softmax."""
        is_softmax = getattr(self, "activation", "") == SOFTMAX
        return self.changed(activation="linear") if is_softmax else self

    def to_dict(self) -> dict[str, Any]:
        """Returns its kind and its fields as plain values; `from_dict` undoes it."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if (name != "inputs" or value) and not self._is_usual_initializer(name)
        }
        return {"kind": self.kind, **values}

    def to_keras(self) -> dict[str, Any]:
        """Returns its options in Keras's JSON; missing options have Keras's defaults.

        Raises:
            ConfigError: Keras has no layer that does the same.
        """
        if getattr(self, "activation", "") == "gelu_tanh":
            raise ConfigError(
                f"layer {self.name}: Keras's files cannot state that gelu is approximated by tanh; "
                "export the weights as .npz, or train with gelu"
            )
        return {
            name: _initializer_in_keras(value) if name.endswith(_INITIALIZER) else value
            for name, value in vars(self).items()
            if name != "inputs" and not self._is_usual_initializer(name)
        }

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """Yields the layers for one of Keras's layers, each with the shape of its output.

        Args:
            options: The untrusted options of Keras's layer. Each must be read here or have no
                effect.
            shape: Shape of the input.
            name: Name of the first of the layers in the model.

        Raises:
            ConfigError: An option is missing or not supported, or the layer does not fit its input.
        """
        raise NotImplementedError

    @classmethod
    def initializers(cls) -> tuple[str, ...]:
        """Returns the names of Keras's options that initialise its tensors."""
        return tuple(f"{each.name}{_INITIALIZER}" for each in cls.tensors)

    def _is_usual_initializer(self, field: str) -> bool:
        """Whether a field is an initialiser with its default, which descriptions leave out."""
        return field.endswith(_INITIALIZER) and getattr(self, field) == getattr(type(self), field)

    def _sized(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[LayerTensor, ...]:
        """Its tensors with their shapes."""
        is_trained = {each.name: each.is_trained for each in self.tensors}
        return tuple(
            LayerTensor(name, shapes[name], start, is_trained[name])
            for name, start in self.starts().items()
        )


def _initializer_in_keras(name: str) -> dict[str, Any]:
    """Returns an initialiser in Keras's JSON."""
    class_name = "".join(word.capitalize() for word in name.split("_"))
    return {
        "module": "keras.initializers",
        "class_name": class_name,
        "config": {},
        "registered_name": None,
    }


def _with_own_activation(layer: Layer) -> list[Layer]:
    """Returns the layer, and a second layer for an activation in `NEED_INPUTS`."""
    if layer.activation not in NEED_INPUTS or layer.kind == "activation":
        return [layer]
    shape = layer.out_shape
    own = Layer("activation", layer.name, shape, shape, layer.activation)
    return [replace(layer, activation="linear"), own]


@dataclass(frozen=True, eq=False)
class Node:
    """A layer applied to its inputs, as part of a graph; compared by identity.

    Attributes:
        spec: The layer; None if the node is the image.
        inputs: The nodes that it reads.
        shape: Shape of the image, if `Input` was given it; None for a layer.
    """

    spec: Spec | None
    inputs: tuple[Node, ...] = ()
    shape: tuple[int, ...] | None = None


@speaks_python()
def Input(shape: Sequence[int] | None = None) -> Node:  # noqa: N802 - as Keras calls it
    """Returns the image, from which a graph of layers starts; see `models.functional`.

    It may also be the first element of the list that `models.sequential` takes.

    Args:
        shape: Shape of one example: [H, W], [H, W, C], or [H * W * C] for a flattened image. None
            if `models.functional` or `models.sequential` is given it.

    Raises:
        ConfigError: `shape` is not a sequence of numbers.
    """
    return Node(None, shape=None if shape is None else checked_shape(shape))


def checked_shape(shape: object) -> tuple[int, ...]:
    """Returns the shape of one example as a tuple.

    Raises:
        ConfigError: It is not a sequence of whole numbers from 1.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigError(
            f"examples have shape {shown_repr(shape)}; give whole numbers from 1 without the "
            "batch's size, such as (28, 28), (32, 32, 3) or (784,)"
        )
    return sizes


Read = tuple[Spec, KerasShape]
Reader = Callable[["Options", KerasShape, str], Iterator[Read]]

# Filled by `Spec.__init_subclass__` and by `reads`.
KINDS: dict[str, type[Spec]] = {}
KERAS_READERS: dict[str, Reader] = {}


def reads(keras_class: str) -> Callable[[Reader], Reader]:
    """Returns a decorator for the reader of a Keras layer class that has no `Spec` here."""

    def register(reader: Reader) -> Reader:
        KERAS_READERS[keras_class] = reader
        return reader

    return register


def from_dict(values: object) -> Spec:
    """Returns the layer that `Spec.to_dict` wrote.

    Its values are not checked here; see `Spec.check`.

    Raises:
        ConfigError: It is not a table, its kind is unknown, or its fields are wrong.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"a layer is of kind {shown_repr(kind)}; choose one of {', '.join(sorted(KINDS))}"
        )
    given = {str(name): value for name, value in values.items() if name != "kind"}
    try:
        return KINDS[kind](
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
        )
    except TypeError:
        raise ConfigError(
            f"a layer of kind {kind} has the wrong fields {shown_repr(', '.join(given))}; write "
            "the file again"
        ) from None
