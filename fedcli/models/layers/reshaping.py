"""Layers that change the shape of their input, but compute nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers import fields, windows
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec
from fedcli.models.layers.fields import Pair

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Flatten", "ZeroPad2D"]


@dataclass(frozen=True)
class Flatten(Spec):
    """Makes an image a vector: row by row, with the channels of a pixel together.

    Attributes:
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "flatten"
    keras_class = "Flatten"
    gives_vector = True

    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> None:
        """See `Spec.size`; the values are already stored in this order."""

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        options.only("data_format", ("channels_last", None))
        options.finish()
        yield cls(name), (math.prod(shape),)


@dataclass(frozen=True)
class ZeroPad2D(Spec):
    """Adds a frame of zeros around an image.

    Attributes:
        padding: Width of the frame in pixels: one number; (above and below, left and right); or
            (top, bottom, left, right).
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "zero_padding2d"
    keras_class = "ZeroPadding2D"
    checks: ClassVar = {"padding": fields.check_frame}
    needs_channels = True

    padding: int | Pair | tuple[int, int, int, int] = 1
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer | None:
        """See `Spec.size`."""
        if not incoming.is_image:
            raise ConfigError(
                f"layer {self.name}: a {self.kind} takes an image, but its input is a vector of "
                f"{math.prod(incoming.shape)} values; put it before the flattening"
            )
        top, bottom, left, right = self._frame()
        height, width, channels = incoming.shape
        shape = (height + top + bottom, width + left + right, channels)
        if shape == incoming.shape:
            return None
        return Layer(self.kind, self.name, incoming.shape, shape, pads=(top, left))

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        top, bottom, left, right = self._frame()
        return {"name": self.name, "padding": [[top, bottom], [left, right]]}

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        from fedcli.models.layers.keras_options import plain  # lazy: only Keras's files need it

        padding = plain(options.take("padding", 1))
        options.only("data_format", ("channels_last", None))
        options.finish()
        if isinstance(padding, list):
            flat = [
                each for side in padding for each in (side if isinstance(side, list) else [side])
            ]
            padding = tuple(flat)
        spec = cls(padding, name)
        spec.check(options.label)
        height, width, channels = windows.keras_image(options, shape)
        top, bottom, left, right = spec._frame()
        yield spec, (height + top + bottom, width + left + right, channels)

    def _frame(self) -> tuple[int, int, int, int]:
        """The widths of the frame: top, bottom, left, right."""
        if isinstance(self.padding, int):
            return (self.padding,) * 4
        if len(self.padding) == 2:
            height, width = self.padding
            return height, height, width, width
        return self.padding
