"""Layers that leave out values in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from fedcli.dataclass import dataclass
from fedcli.models.layers import fields
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Dropout"]


@dataclass(frozen=True)
class Dropout(Spec):
    """Dropout: in training, random values become 0 and the others are divided by 1 - rate.

    Attributes:
        rate: The probability that a value becomes 0, at least 0 and below 1. With 0 the layer does
            nothing.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "dropout"
    keras_class = "Dropout"
    checks: ClassVar = {"rate": fields.check_rate}
    takes_activation = False

    rate: float
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer | None:
        """See `Spec.size`."""
        if self.rate == 0:
            return None
        return Layer(self.kind, self.name, incoming.shape, incoming.shape, rate=float(self.rate))

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; fedcli draws from its own seed."""
        spec = cls(options.number("rate"), name)
        options.finish(free=("seed",))
        spec.check(options.label)
        yield spec, shape
