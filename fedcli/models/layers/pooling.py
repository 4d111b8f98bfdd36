"""Pools over images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.models.layers import fields, windows
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec, reads
from fedcli.models.layers.fields import Pair
from fedcli.models.layers.reshaping import Flatten

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["AveragePool2D", "MaxPool2D"]


@dataclass(frozen=True)
class _Pool2D(Spec):
    """The base of both pools; see `MaxPool2D`."""

    checks: ClassVar = {
        "pool_size": fields.check_pair,
        "strides": fields.check_pair_or_none,
        "padding": fields.check_padding,
    }
    needs_channels = True

    pool_size: int | Pair = (2, 2)
    strides: int | Pair | None = None
    padding: str = "valid"
    name: str = ""

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        placed = windows.place(self, incoming, self.pool_size, self.strides, self.padding)
        return Layer(
            self.kind,
            self.name,
            incoming.shape,
            (*placed.counts, incoming.shape[2]),
            window=placed.window,
            strides=placed.strides,
            pads=placed.pads,
        )

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return windows.with_pairs(super().to_keras())

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        window = options.pair("pool_size", 2)
        strides = window if options.peek("strides") is None else options.pair("strides")
        options.take("strides", None)
        padding = options.take("padding", "valid")
        options.only("data_format", ("channels_last", None))
        options.finish()
        spec = cls(window, strides, padding, name)
        spec.check(options.label)
        height, width = windows.keras_counts(options, shape, window, strides, padding)
        yield spec, (height, width, shape[2])


class MaxPool2D(_Pool2D):
    """The largest value of each window and channel.

    Attributes:
        pool_size: Size of the window.
        strides: From one window to the next; None: as the window.
        padding: "valid" or "same". With "same", windows may reach beyond the image; they ignore the
            outside.
        name: Its own in the model; "": as Keras names it.
    """

    kind = "max_pooling2d"
    keras_class = "MaxPooling2D"


class AveragePool2D(_Pool2D):
    """The mean of each window and channel, over the values within the image; see `MaxPool2D`."""

    kind = "average_pooling2d"
    keras_class = "AveragePooling2D"


@reads("GlobalAveragePooling2D")
def _global_average(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    """An average over the whole image, then a flattening."""
    options.only("data_format", ("channels_last", None))
    options.finish(free=("keepdims",))
    height, width, channels = windows.keras_image(options, shape)
    spec = AveragePool2D((height, width), (height, width), "valid", name)
    spec.check(options.label)
    yield spec, (1, 1, channels)
    yield Flatten(f"{name}_flat"), (channels,)
