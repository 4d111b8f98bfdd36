"""What every kind of layer is: one class, a `Spec`, that answers all questions about its kind.

A new kind is a subclass with `kind`, `keras_class` and its fields in the file of its family, named
in that file's `__all__`; sizing, layouts, costs, Keras's files and checkpoints find it by
themselves. The class answers

    which values its fields may have                           checks
    which tensors it has and what each starts from             tensors
    which shape it gives, and its row in the core's table      size
    what Keras calls it, how it is read and written there      keras_class, from_keras, to_keras

What computes it is the row called `kind` in the core's table of kinds (csrc/layers/table.c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from fedcli.core.native import ModelRow
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers.fields import ACTIVATIONS, SOFTMAX, Check, Pair, shown

if TYPE_CHECKING:  # a run of a model that is no Keras file imports nothing of Keras's files
    from fedcli.models.layers.keras_options import Options

S = TypeVar("S", bound="Spec")
Shape = tuple[int, int, int]  # (height, width, channels) of one example; (1, 1, size) of a vector
KerasShape = tuple[int, ...]  # of one example as Keras has it: a vector is (size,)

# What a tensor starts from: a constant, or Keras's name of an initialiser that draws it.
Start = float | str
GLOROT_UNIFORM = "GlorotUniform"  # within ±sqrt(6 / (fan in + fan out)), Glorot and Bengio 2010


class TensorKind(NamedTuple):
    """A tensor that layers of a kind have.

    Attributes:
        name: Keras's.
        start: What it starts from.
        field: The field that says whether a layer has it; "": every layer has.
    """

    name: str
    start: Start
    field: str = ""


class LayerTensor(NamedTuple):
    """A tensor of one layer: its name and shape as Keras has them, and what it starts from."""

    name: str
    shape: tuple[int, ...]
    start: Start

    @property
    def size(self) -> int:
        """Parameters in it."""
        return math.prod(self.shape)


class Incoming(NamedTuple):
    """What comes to a layer.

    Attributes:
        shape: Of one example.
        is_image: Whether it is one still: neither flattened nor what a dense layer gives.
    """

    shape: Shape
    is_image: bool


@dataclass(frozen=True)
class Layer:
    """A layer with its sizes, as the core computes it (struct fed_layer); made by `Spec.size`.

    Attributes:
        kind: Name of its row in the core's table of kinds.
        name: Its own in the model.
        in_shape: What it takes.
        out_shape: What it gives.
        activation: A key of `ACTIVATIONS`; linear in the last layer, whose outputs are logits.
        has_scale: Whether it has gamma.
        has_bias: Whether it has a bias, or beta.
        window: Of a convolution or pool, (height, width); else (0, 0), as the next two.
        strides: From one window to the next.
        pads: What the first window reaches beyond the image at its top and left.
        num_groups: Of a group norm, else 0.
        epsilon: Of a group norm, else 0.
        rate: Of a dropout, else 0.
        tensors: In Keras's order, as they lie in the parameter vector.
        multiply_adds: Of one example, from its inputs to its outputs; 0 where they are no more
            than a few a value.
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
    tensors: tuple[LayerTensor, ...] = ()
    multiply_adds: int = 0

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
        return sum(tensor.size for tensor in self.tensors)

    def core_row(self, offset: int) -> ModelRow:
        """Returns its row in the core's model table.

        Args:
            offset: Where its tensors begin in the parameter vector.
        """
        return (
            self.kind,
            ACTIVATIONS[self.activation],
            self.in_shape,
            self.out_shape,
            offset,
            int(self.has_scale),
            int(self.has_bias),
            *self.window,
            *self.strides,
            *self.pads,
            self.num_groups,
            self.epsilon,
            self.rate,
        )


class Spec:
    """A layer as a user writes it; each kind is a frozen dataclass, whose last field is `name`.

    Attributes:
        kind: What descriptions, the core's table of kinds and counted names call the kind: Keras's
            class in snake case.
        keras_class: What Keras calls it.
        tensors: Those that layers of the kind have, in Keras's order.
        checks: What refuses a wrong value, for each field but the name.
        takes_vector: Whether Keras needs a Flatten between an image and the layer.
        gives_vector: Whether what it gives is no image, whatever comes.
        needs_channels: Whether Keras needs images with channels here, [H, W, C].
        takes_activation: Whether the core computes an activation that follows as a part of it.
    """

    kind: ClassVar[str]
    keras_class: ClassVar[str]
    tensors: ClassVar[tuple[TensorKind, ...]] = ()
    checks: ClassVar[Mapping[str, Check]] = {}
    takes_vector: ClassVar[bool] = False
    gives_vector: ClassVar[bool] = False
    needs_channels: ClassVar[bool] = False
    takes_activation: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Makes the kind known under its name and under Keras's."""
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls
            KERAS_READERS[cls.keras_class] = cls.from_keras

    @property
    def name(self) -> str:
        """Its own in the model; "": as Keras names it."""
        raise NotImplementedError

    def changed(self: S, **values: Any) -> S:
        """Returns the layer with other values of some fields."""
        return type(self)(**{**vars(self), **values})

    def check(self, label: str) -> None:
        """Refuses a value that no layer of the kind may have.

        Args:
            label: What messages call the layer.

        Raises:
            ConfigError: A value has another type or is outside its range; the line names both.
        """
        for field, check in self.checks.items():
            check(f"{label}: {field}", getattr(self, field))

    def starts(self) -> dict[str, Start]:
        """Returns the names of the tensors it has, in order, and what each starts from."""
        return {
            each.name: each.start
            for each in self.tensors
            if not each.field or getattr(self, each.field)
        }

    def size(self, incoming: Incoming) -> Layer | None:
        """Returns the layer with its sizes; None: the core has nothing to compute.

        Args:
            incoming: What comes to it. Values are checked and it has a name.

        Raises:
            ConfigError: It does not fit what comes.
        """
        raise NotImplementedError

    def merged_into(self, before: Layer) -> Layer | None:
        """Returns the layer before with this one as a part of it; None: it stays a layer."""
        return None

    def with_softmax(self) -> Spec | None:
        """Returns the layer ending in a softmax of its own, as Keras writes it; None: it cannot."""
        return None

    def without_softmax(self) -> Spec | None:
        """Returns the layer without a softmax; None: it is nothing else."""
        is_softmax = getattr(self, "activation", "") == SOFTMAX
        return self.changed(activation="linear") if is_softmax else self

    def to_dict(self) -> dict[str, Any]:
        """Returns its kind and its fields as plain values; `from_dict` undoes it."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        return {"kind": self.kind, **values}

    def to_keras(self) -> dict[str, Any]:
        """Returns its options in Keras's JSON; those left out have Keras's defaults."""
        return dict(vars(self))

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """Yields the layers that one of Keras's becomes, each with the shape of what it gives.

        Args:
            options: The layer's, untrusted; each must be taken, or be without effect.
            shape: What comes to it.
            name: For the first of the layers; its own in the model.

        Raises:
            ConfigError: An option is missing or not computed by fedcli, or the layer does not fit.
        """
        raise NotImplementedError

    @classmethod
    def initializers(cls) -> tuple[str, ...]:
        """Returns Keras's options that say what its tensors start from."""
        return tuple(f"{each.name}_initializer" for each in cls.tensors)

    def _sized(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[LayerTensor, ...]:
        """The tensors it has, each with its shape."""
        return tuple(
            LayerTensor(name, shapes[name], start) for name, start in self.starts().items()
        )


Read = tuple[Spec, KerasShape]
Reader = Callable[["Options", KerasShape, str], Iterator[Read]]

# Filled by the classes themselves, and by `reads`.
KINDS: dict[str, type[Spec]] = {}
KERAS_READERS: dict[str, Reader] = {}


def reads(keras_class: str) -> Callable[[Reader], Reader]:
    """Returns a decorator for what reads one of Keras's classes that is no kind of its own here."""

    def register(reader: Reader) -> Reader:
        KERAS_READERS[keras_class] = reader
        return reader

    return register


def from_dict(values: object) -> Spec:
    """Returns the layer that `Spec.to_dict` wrote; its values are checked by `Spec.check` alone.

    Raises:
        ConfigError: It is no table, its kind is unknown, or its fields are not those of the kind.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"a layer of kind {shown(kind)}; kinds are {', '.join(sorted(KINDS))}")
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
            f"a layer of kind {kind} has fields {shown(', '.join(given))}, which are not its own"
        ) from None
