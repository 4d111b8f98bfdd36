"""Convolutions over images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.models.layers import fields, windows
from fedcli.models.layers.contract import (
    GLOROT_UNIFORM,
    Incoming,
    KerasShape,
    Layer,
    LayerTensor,
    Read,
    Spec,
    TensorKind,
)
from fedcli.models.layers.fields import Pair

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = ["Conv2D", "DepthwiseConv2D", "SeparableConv2D"]


@dataclass(frozen=True)
class Conv2D(Spec):
    """A convolution, which is a cross-correlation as in Keras.

    Attributes:
        filters: Number of output channels.
        kernel_size: Size of the window.
        strides: Distance from one window to the next.
        padding: "valid": all windows lie within the image; "same": zeros around it, placed as in
            TensorFlow.
        activation: A key of `ACTIVATIONS`.
        use_bias: Whether it has a bias.
        kernel_initializer: A key of `INITIALIZERS`; like the next one, given by name only.
        bias_initializer: A key of `INITIALIZERS`.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "conv2d"
    keras_class = "Conv2D"
    tensors = (
        TensorKind("kernel", GLOROT_UNIFORM),
        TensorKind("bias", 0.0, field="use_bias"),
    )
    checks: ClassVar = {
        "filters": fields.check_count,
        "kernel_size": fields.check_pair,
        "strides": fields.check_pair,
        "padding": fields.check_padding,
        "activation": fields.check_activation,
        "use_bias": fields.check_flag,
        "kernel_initializer": fields.check_initializer,
        "bias_initializer": fields.check_initializer,
    }
    needs_channels = True

    filters: int
    kernel_size: int | Pair
    strides: int | Pair = (1, 1)
    padding: str = "valid"
    activation: str = "linear"
    use_bias: bool = True
    kernel_initializer: str = field(default="glorot_uniform", kw_only=True)
    bias_initializer: str = field(default="zeros", kw_only=True)
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        placed = windows.place(self, incoming, self.kernel_size, self.strides, self.padding)
        kernel = (*placed.window, incoming.shape[2], self.filters)
        return Layer(
            self.kind,
            self.name,
            incoming.shape,
            (*placed.counts, self.filters),
            self.activation,
            has_bias=self.use_bias,
            window=placed.window,
            strides=placed.strides,
            pads=placed.pads,
            tensors=self._sized({"kernel": kernel, "bias": (self.filters,)}),
            multiply_adds=math.prod(kernel) * math.prod(placed.counts),
        )

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return windows.with_pairs(super().to_keras())

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        filters = options.take("filters")
        window, strides = options.pair("kernel_size"), options.pair("strides", 1)
        padding = options.take("padding", "valid")
        spec = cls(
            *(filters, window, strides, padding),
            *(options.activation(), options.take("use_bias", True), name),
        )
        options.only("data_format", ("channels_last", None))
        options.only("dilation_rate", (1, [1, 1]))
        options.only("groups", (1,))
        options.finish(free=cls.initializers())
        spec.check(options.label)
        height, width = windows.keras_counts(options, shape, window, strides, padding)
        yield spec, (height, width, filters)


@dataclass(frozen=True)
class DepthwiseConv2D(Spec):
    """A depthwise convolution: each channel has its own window and gives one output channel.

    Attributes:
        kernel_size: Size of the window.
        strides: Distance from one window to the next.
        padding: As for `Conv2D`.
        activation: A key of `ACTIVATIONS`.
        use_bias: Whether it has a bias.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "depthwise_conv2d"
    keras_class = "DepthwiseConv2D"
    tensors = (
        TensorKind("kernel", GLOROT_UNIFORM),
        TensorKind("bias", 0.0, field="use_bias"),
    )
    checks: ClassVar = {
        "kernel_size": fields.check_pair,
        "strides": fields.check_pair,
        "padding": fields.check_padding,
        "activation": fields.check_activation,
        "use_bias": fields.check_flag,
    }
    needs_channels = True

    kernel_size: int | Pair
    strides: int | Pair = (1, 1)
    padding: str = "valid"
    activation: str = "linear"
    use_bias: bool = True
    name: str = ""
    inputs: tuple[str, ...] = ()

    def size(self, incoming: Incoming) -> Layer:
        """See `Spec.size`."""
        placed = windows.place(self, incoming, self.kernel_size, self.strides, self.padding)
        channels = incoming.shape[2]
        kernel = (*placed.window, channels, 1)
        return Layer(
            self.kind,
            self.name,
            incoming.shape,
            (*placed.counts, channels),
            self.activation,
            has_bias=self.use_bias,
            window=placed.window,
            strides=placed.strides,
            pads=placed.pads,
            tensors=self._sized({"kernel": kernel, "bias": (channels,)}),
            multiply_adds=math.prod(kernel) * math.prod(placed.counts),
        )

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return windows.with_pairs(super().to_keras())

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        window, strides = options.pair("kernel_size"), options.pair("strides", 1)
        padding = options.take("padding", "valid")
        activation, use_bias = options.activation(), options.take("use_bias", True)
        spec = cls(window, strides, padding, activation, use_bias, name)
        options.only("depth_multiplier", (1,))
        options.only("data_format", ("channels_last", None))
        options.only("dilation_rate", (1, [1, 1]))
        options.only("groups", (1,))
        options.take_initializer("depthwise", "kernel")
        options.finish(free=cls.initializers())
        spec.check(options.label)
        height, width = windows.keras_counts(options, shape, window, strides, padding)
        yield spec, (height, width, shape[2])


@dataclass(frozen=True)
class SeparableConv2D(Spec):
    """A `DepthwiseConv2D` without bias, then a 1 x 1 `Conv2D`.

    Attributes:
        filters: Number of output channels.
        kernel_size: Size of the window of the depthwise convolution.
        strides: Distance from one window to the next.
        padding: As for `Conv2D`.
        activation: A key of `ACTIVATIONS`.
        use_bias: Whether the 1 x 1 convolution has a bias.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "separable_conv2d"
    keras_class = "SeparableConv2D"
    tensors = (
        TensorKind("depthwise_kernel", GLOROT_UNIFORM),
        TensorKind("pointwise_kernel", GLOROT_UNIFORM),
        TensorKind("bias", 0.0, field="use_bias"),
    )
    checks: ClassVar = {"filters": fields.check_count, **DepthwiseConv2D.checks}
    needs_channels = True

    filters: int
    kernel_size: int | Pair
    strides: int | Pair = (1, 1)
    padding: str = "valid"
    activation: str = "linear"
    use_bias: bool = True
    name: str = ""
    inputs: tuple[str, ...] = ()

    def parts(self, incoming: Incoming) -> list[Layer]:
        """See `Spec.parts`."""
        first = DepthwiseConv2D(
            self.kernel_size, self.strides, self.padding, use_bias=False, name=self.name
        ).size(incoming)
        second = Conv2D(
            self.filters, 1, activation=self.activation, use_bias=self.use_bias, name=self.name
        )
        return [
            *_renamed([first], "depthwise_kernel"),
            *_renamed(second.parts(Incoming(first.out_shape, is_image=True)), "pointwise_kernel"),
        ]

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return windows.with_pairs(super().to_keras())

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`."""
        filters = options.take("filters")
        window, strides = options.pair("kernel_size"), options.pair("strides", 1)
        padding = options.take("padding", "valid")
        spec = cls(
            *(filters, window, strides, padding),
            *(options.activation(), options.take("use_bias", True), name),
        )
        options.only("depth_multiplier", (1,))
        options.only("data_format", ("channels_last", None))
        options.only("dilation_rate", (1, [1, 1]))
        options.only("groups", (1,))
        for tensor in ("depthwise", "pointwise"):
            options.take_initializer(tensor, f"{tensor}_kernel")
        options.finish(free=(*cls.initializers(), "kernel_initializer"))
        spec.check(options.label)
        height, width = windows.keras_counts(options, shape, window, strides, padding)
        yield spec, (height, width, filters)


def _renamed(layers: list[Layer], kernel: str) -> list[Layer]:
    """The layers with another name of their kernels."""
    return [
        replace(
            layer,
            tensors=tuple(
                LayerTensor(kernel, each.shape, each.start) if each.name == "kernel" else each
                for each in layer.tensors
            ),
        )
        for layer in layers
    ]
