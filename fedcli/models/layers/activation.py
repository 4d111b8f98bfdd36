"""Activations as separate layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers import fields
from fedcli.models.layers.contract import (
    KINDS,
    Incoming,
    KerasShape,
    Layer,
    Read,
    Spec,
    reads,
)

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["ELU", "Activation", "LeakyReLU"]


def _merged(own: Layer, before: Layer) -> Layer | None:
    """Returns the previous layer with this activation.

    It is None if the previous layer already has an activation or cannot have one, or if the
    gradient of this activation cannot be computed from the outputs of the activation.
    """
    is_free = before.activation == "linear" and KINDS[before.kind].takes_activation
    if not is_free or own.activation in fields.NEED_INPUTS:
        return None
    return replace(before, activation=own.activation, constants=own.constants)


@dataclass(frozen=True)
class Activation(Spec):
    """An activation layer. It becomes a part of a previous layer that has no activation.

    Attributes:
        activation: A key of `ACTIVATIONS`, or "softmax" at the end.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "activation"
    keras_class = "Activation"
    checks: ClassVar = {"activation": fields.check_activation}

    activation: str
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer | None:
        """See `Spec.size`."""
        if self.activation == "linear":
            return None
        return Layer(self.kind, self.name, incoming.shape, incoming.shape, self.activation)

    def merged_into(self, before: Layer) -> Layer | None:
        """See `Spec.merged_into`."""
        own = Layer(self.kind, self.name, before.out_shape, before.out_shape, self.activation)
        return _merged(own, before)

    def without_softmax(self) -> Activation | None:
        """See `Spec.without_softmax`."""
        return None if self.activation == fields.SOFTMAX else self

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(options.activation(), name)
        options.finish()
        yield spec, shape


class _WithConstant(Spec):
    """The base class of activations with a constant; see `LeakyReLU`."""

    core_activation: ClassVar[str]

    @property
    def constant(self) -> float:
        """The constant: the slope of a leaky ReLU, or the alpha of an ELU."""
        raise NotImplementedError

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        shape, constants = incoming.shape, (float(self.constant),)
        return Layer(
            Activation.kind, self.name, shape, shape, self.core_activation, constants=constants
        )

    def merged_into(self, before: Layer) -> Layer | None:
        """See `Spec.merged_into`."""
        return _merged(self.size(Incoming(before.out_shape, is_image=True)), before)


@dataclass(frozen=True)
class LeakyReLU(_WithConstant):
    """An activation layer that multiplies values below 0 by a small number.

    Attributes:
        negative_slope: The factor for values below 0; at least 0.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "leaky_re_lu"
    keras_class = "LeakyReLU"
    core_activation = "leaky_relu"
    checks: ClassVar = {"negative_slope": fields.check_constant}

    negative_slope: float = 0.3
    name: str = ""
    inputs: tuple[str, ...] = ()

    @property
    def constant(self) -> float:
        """See `_WithConstant.constant`."""
        return self.negative_slope

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; Keras 2 calls the slope alpha."""
        slope = options.number("alpha", 0.3)
        spec = cls(options.number("negative_slope", slope), name)
        options.finish()
        spec.check(options.label)
        yield spec, shape


@dataclass(frozen=True)
class ELU(_WithConstant):
    """An activation layer in which values below 0 become alpha * (exp(value) - 1).

    Attributes:
        alpha: The factor of exp(value) - 1 for values below 0; at least 0.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "elu"
    keras_class = "ELU"
    core_activation = "elu"
    checks: ClassVar = {"alpha": fields.check_constant}

    alpha: float = 1.0
    name: str = ""
    inputs: tuple[str, ...] = ()

    @property
    def constant(self) -> float:
        """See `_WithConstant.constant`."""
        return self.alpha

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(options.number("alpha", 1.0), name)
        options.finish()
        spec.check(options.label)
        yield spec, shape


@reads("ReLU")
def _relu(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    """Keras's ReLU layer, which may have an upper limit of 6, or a slope for values below 0."""
    limit, slope = options.number("max_value", None), options.number("negative_slope", 0.0)
    options.only("threshold", (0,))
    options.finish()
    if limit is not None and (limit, slope) != (6.0, 0.0):
        raise ConfigError(
            f"{options.label}: max_value is {limit} and negative_slope {slope}; fedcli supports "
            "max_value 6 without a slope, or no max_value"
        )
    if limit is not None or slope in (0.0, None):
        yield Activation("relu" if limit is None else "relu6", name), shape
        return
    spec = LeakyReLU(slope, name)
    spec.check(options.label)
    yield spec, shape


@reads("Softmax")
def _softmax(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    options.only("axis", (-1, [-1], len(shape), [len(shape)]))
    options.finish()
    yield Activation(fields.SOFTMAX, name), shape
