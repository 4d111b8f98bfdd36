"""The windows of convolutions and pools on an image, placed as in TensorFlow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from fedcli.errors import ConfigError
from fedcli.models.layers.contract import Incoming, KerasShape, Spec
from fedcli.models.layers.fields import Pair, pair

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options


class Windows(NamedTuple):
    """The windows on one image; each pair is (height, width).

    Attributes:
        window: Size of a window.
        strides: Distances from one window to the next.
        counts: Numbers of windows.
        pads: Padding at the top and left of the image.
    """

    window: Pair
    strides: Pair
    counts: Pair
    pads: Pair


def place(
    spec: Spec, incoming: Incoming, size: int | Pair, strides: int | Pair | None, padding: str
) -> Windows:
    """Returns the windows of a layer on its input.

    Args:
        spec: The layer, for messages.
        incoming: Its input.
        size: Size of a window.
        strides: Distances from one window to the next; None: the size of the window.
        padding: "valid" or "same".

    Raises:
        ConfigError: The input is not an image, or is smaller than an unpadded window.
    """
    shape = incoming.shape
    if not incoming.is_image:
        raise ConfigError(
            f"layer {spec.name}: a {spec.kind} takes an image, but its input is a vector of "
            f"{math.prod(shape)} values; put it before the flattening"
        )
    window = pair(size)
    steps = window if strides is None else pair(strides)
    counts, pads = [], []
    for extent, length, step in zip(shape[:2], window, steps, strict=True):
        if padding == "valid" and extent < length:
            raise ConfigError(
                f"layer {spec.name}: its window of {window[0]} x {window[1]} is larger than the "
                f"{shape[0]} x {shape[1]} image that reaches it; use larger images, or padding same"
            )
        count = _count(extent, length, step, padding)
        reach = max((count - 1) * step + length - extent, 0) if padding == "same" else 0
        counts.append(count)
        pads.append(reach // 2)
    return Windows(window, steps, (counts[0], counts[1]), (pads[0], pads[1]))


def keras_counts(
    options: Options, shape: KerasShape, window: Pair, strides: Pair, padding: str
) -> Pair:
    """Returns the number of windows on an image, vertically and horizontally.

    Args:
        options: The layer's options, for messages.
        shape: Shape of its input.
        window: Size of a window.
        strides: Distances from one window to the next.
        padding: "valid" or "same".

    Raises:
        ConfigError: The input is not an image with channels, or is smaller than an unpadded window.
    """
    height, width, _ = keras_image(options, shape)
    counts = (
        _count(height, window[0], strides[0], padding),
        _count(width, window[1], strides[1], padding),
    )
    if min(counts) < 1:
        raise ConfigError(
            f"{options.label}: a window of {list(window)} does not fit an image of "
            f"{[height, width]}"
        )
    return counts


def keras_image(options: Options, shape: KerasShape) -> tuple[int, int, int]:
    """Returns the shape of a layer's input, which must be an image with channels.

    Raises:
        ConfigError: The input is not an image with channels.
    """
    if len(shape) != 3:
        raise ConfigError(
            f"{options.label} takes an image [height, width, channels], but its input is "
            f"{list(shape)}"
        )
    return shape[0], shape[1], shape[2]


def with_pairs(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options for Keras's JSON in which every size of a window is a pair."""
    sizes = ("kernel_size", "pool_size", "strides")
    return {
        key: list(pair(value)) if key in sizes and value is not None else value
        for key, value in options.items()
    }


def _count(extent: int, window: int, stride: int, padding: str) -> int:
    """Number of windows along one side of an image; below 1 if none fits."""
    return -(-extent // stride) if padding == "same" else (extent - window) // stride + 1
