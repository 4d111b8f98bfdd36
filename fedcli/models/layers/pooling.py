"""Pools over images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers import fields, windows
from fedcli.models.layers.contract import Incoming, KerasShape, Layer, Read, Spec
from fedcli.models.layers.fields import Pair

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["AveragePool2D", "GlobalAveragePool2D", "GlobalMaxPool2D", "MaxPool2D"]


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
    inputs: tuple[str, ...] = ()

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
        strides: Distance from one window to the next; None: the size of the window.
        padding: "valid" or "same". With "same", windows may extend beyond the image; pixels outside
            it are ignored.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "max_pooling2d"
    keras_class = "MaxPooling2D"


class AveragePool2D(_Pool2D):
    """The mean of each window and channel, over the values within the image; see `MaxPool2D`."""

    kind = "average_pooling2d"
    keras_class = "AveragePooling2D"


@dataclass(frozen=True)
class _GlobalPool2D(Spec):
    """The base of pools over the whole image; see `GlobalAveragePool2D`."""

    needs_channels = True
    gives_vector = True
    of_windows: ClassVar[type[_Pool2D]]

    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`; a vector is an image of one pixel."""
        height, width, channels = incoming.shape
        if not incoming.is_image and (height, width) != (1, 1):
            raise ConfigError(
                f"layer {self.name}: a {self.kind} of a flattened image; put it before the "
                "flattening"
            )
        window = (height, width)
        return Layer(
            self.of_windows.kind,
            self.name,
            incoming.shape,
            (1, 1, channels),
            window=window,
            strides=window,
        )

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; with `keepdims` the output is an image of one pixel."""
        options.only("data_format", ("channels_last", None))
        keeps_image = options.peek("keepdims") is True
        options.only("keepdims", (False, True, None))
        options.finish()
        height, width, channels = windows.keras_image(options, shape)
        if keeps_image:
            window = (height, width)
            yield cls.of_windows(window, window, name=name), (1, 1, channels)
        else:
            yield cls(name), (channels,)


class GlobalAveragePool2D(_GlobalPool2D):
    """The mean of each channel over the whole image; the output is a vector.

    Attributes:
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "global_average_pooling2d"
    keras_class = "GlobalAveragePooling2D"
    of_windows = AveragePool2D


class GlobalMaxPool2D(_GlobalPool2D):
    """The largest value of each channel over the whole image; see `GlobalAveragePool2D`."""

    kind = "global_max_pooling2d"
    keras_class = "GlobalMaxPooling2D"
    of_windows = MaxPool2D
