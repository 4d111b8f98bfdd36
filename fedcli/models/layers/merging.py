"""Layers with more than one input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcli.dataclass import dataclass
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Add"]


@dataclass(frozen=True)
class Add(Spec):
    """The sum of two images or vectors of one shape, such as a block and its shortcut.

    Attributes:
        name: Its own in the model; "": as Keras names it.
        inputs: Names of the two layers; see `Spec.inputs`.
    """

    kind = "add"
    keras_class = "Add"
    num_inputs = 2

    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        return Layer(self.kind, self.name, incoming.shape, incoming.shape)

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        options.finish()
        yield cls(name), shape
