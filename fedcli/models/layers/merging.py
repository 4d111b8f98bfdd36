"""Layers with more than one input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Add", "Concatenate"]


@dataclass(frozen=True)
class Add(Spec):
    """The sum of two images or vectors of the same shape, such as a block and its shortcut.

    Attributes:
        name: Its name in the model; "": the name that Keras would give it.
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


@dataclass(frozen=True)
class Concatenate(Spec):
    """Joins the channels of two images of the same height and width, or the values of two vectors.

    Attributes:
        name: Its name in the model; "": the name that Keras would give it.
        inputs: Names of the two layers; see `Spec.inputs`.
    """

    kind = "concatenate"
    keras_class = "Concatenate"
    num_inputs = 2
    joins_channels = True

    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        height, width, channels = incoming.shape
        if not incoming.is_image and (height, width) != (1, 1):
            raise ConfigError(
                f"layer {self.name}: a {self.kind} of a flattened image; put it before the "
                "flattening"
            )
        assert incoming.second is not None
        return Layer(
            *(self.kind, self.name, incoming.shape),
            (height, width, channels + incoming.second[2]),
        )

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        options.only("axis", (-1, len(shape)))
        options.finish()
        if len(shape) == 2:
            raise ConfigError(
                f"{options.label} takes {list(shape)}; give it images with channels, or vectors"
            )
        yield cls(name), shape
