"""Activations as separate layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fedcli.dataclass import dataclass
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

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation(Spec):
    """An activation layer. It becomes part of the layer before if that has no activation.

    Attributes:
        activation: A key of `ACTIVATIONS`, or "softmax" at the end.
        name: Its own in the model; "": as Keras names it.
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
        is_free = before.activation == "linear" and KINDS[before.kind].takes_activation
        return replace(before, activation=self.activation) if is_free else None

    def without_softmax(self) -> Activation | None:
        """See `Spec.without_softmax`."""
        return None if self.activation == fields.SOFTMAX else self

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        spec = cls(options.activation(), name)
        options.finish()
        yield spec, shape


@reads("ReLU")
def _relu(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    options.only("max_value", (None,))
    options.only("negative_slope", (0,))
    options.only("threshold", (0,))
    options.finish()
    yield Activation("relu", name), shape


@reads("Softmax")
def _softmax(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    options.only("axis", (-1, [-1], len(shape), [len(shape)]))
    options.finish()
    yield Activation(fields.SOFTMAX, name), shape
