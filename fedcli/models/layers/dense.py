"""Dense layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers import fields
from fedcli.models.layers.contract import (
    GLOROT_UNIFORM,
    Incoming,
    KerasShape,
    Layer,
    Read,
    Spec,
    TensorKind,
)

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Spec):
    """A dense layer.

    An image is read as one vector: row by row, with the channels of a pixel together.

    Attributes:
        units: Number of outputs.
        activation: A key of `ACTIVATIONS`, or "softmax" in the last layer.
        use_bias: Whether it has a bias.
        kernel_initializer: A key of `INITIALIZERS`; like the next one, given by name only.
        bias_initializer: A key of `INITIALIZERS`.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "dense"
    keras_class = "Dense"
    tensors = (
        TensorKind("kernel", GLOROT_UNIFORM),
        TensorKind("bias", 0.0, field="use_bias"),
    )
    checks: ClassVar = {
        "units": fields.check_count,
        "activation": fields.check_activation,
        "use_bias": fields.check_flag,
        "kernel_initializer": fields.check_initializer,
        "bias_initializer": fields.check_initializer,
    }
    takes_vector = True
    gives_vector = True

    units: int
    activation: str = "linear"
    use_bias: bool = True
    kernel_initializer: str = field(default="glorot_uniform", kw_only=True)
    bias_initializer: str = field(default="zeros", kw_only=True)
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`; any input fits."""
        num_inputs = math.prod(incoming.shape)
        return Layer(
            self.kind,
            self.name,
            incoming.shape,
            (1, 1, self.units),
            self.activation,
            has_bias=self.use_bias,
            tensors=self._sized({"kernel": (num_inputs, self.units), "bias": (self.units,)}),
            multiply_adds=num_inputs * self.units,
        )

    def with_softmax(self) -> Dense:
        """See `Spec.with_softmax`."""
        return self.changed(activation=fields.SOFTMAX)

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; an image is refused: Keras would treat it pixel by pixel."""
        units = options.take("units")
        spec = cls(units, options.activation(), options.take("use_bias", True), name)
        options.finish(free=cls.initializers())
        spec.check(options.label)
        if math.prod(shape[:-1]) != 1:
            raise ConfigError(
                f"{options.label} takes an image of shape {list(shape)}, to which Keras would "
                "apply it pixel by pixel; put a Flatten before it"
            )
        yield spec, (*shape[:-1], units)
