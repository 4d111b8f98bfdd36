"""The order of an image's values in its source: flat rows, channels first or channels last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.checks import check_pixel_shape, has_channels_first
from fedcli.errors import DataError

CHANNELS_LAST, CHANNELS_FIRST = "last", "first"
_COLOURS = 3
_LEAST_FLAT = 64  # least number of values of a flat image whose shape has further sides of 1
_NUM_COMPARED = 256  # number of images on which two orders are compared
_MAX_ROUGHNESS_RATIO = 0.5  # the other order is suggested below this ratio of neighbour differences


def flat_shape(
    num_values: int, given: tuple[int, ...] | None, where: str
) -> tuple[tuple[int, ...], str]:
    """Returns the shape and order of an image of `num_values` values: as given, or a grey square.

    A given (3, 32, 32) is planar: all red values come first, then all green, then all blue values.

    Returns:
        (H, W) or (H, W, C), and CHANNELS_LAST or CHANNELS_FIRST.

    Raises:
        DataError: The values do not fill the given shape, or a square; or the shape is not
            allowed. The message starts with `where`.
    """
    side = math.isqrt(num_values)
    shape = given or (side, side)
    if math.prod(shape) != num_values or not num_values:
        raise _no_image(num_values, given, where)
    check_pixel_shape((1, *shape), where)
    if has_channels_first((1, *shape)):
        return _without_one((*shape[1:], shape[0])), CHANNELS_FIRST
    return shape, CHANNELS_LAST


def is_flat(shape: tuple[int, ...]) -> bool:
    """Returns whether the images in an array are flat: [n, p], or for example [n, 1, 784].

    If there are further sides of 1, the values must make a square image, grey or of three colours.
    """
    if len(shape) == 2:
        return True
    longest = max(shape[1:], default=1)
    is_square = any(math.isqrt(longest // count) ** 2 * count == longest for count in (1, _COLOURS))
    return math.prod(shape[1:]) == longest >= _LEAST_FLAT and is_square


def shaped(rows: NDArray[Any], shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """Returns rows of values [n, ...] as images [n, H, W] or [n, H, W, C]."""
    if order == CHANNELS_LAST or len(shape) < 3:
        return rows.reshape(-1, *shape)
    planes = rows.reshape(-1, shape[2], *shape[:2])
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def array_order(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Returns shape and order of the images in an array [n, H, W], [n, H, W, C] or [n, C, H, W]."""
    if has_channels_first(shape):
        return _without_one((*shape[2:], shape[1])), CHANNELS_FIRST
    return _without_one(tuple(shape[1:])), CHANNELS_LAST


def order_notes(images: NDArray[Any], order: str, where: str) -> list[str]:
    """Returns a warning if the other order of colours gives far smoother images, else none.

    Args:
        images: [n, H, W, 3], the result of `shaped` for flat rows.
        order: The order of values that was assumed.
        where: The beginning of the warning.
    """
    if images.ndim != 4 or images.shape[3] != _COLOURS or not len(images):
        return []
    step = max(1, len(images) // _NUM_COMPARED)
    chosen = images[::step][:_NUM_COMPARED].astype(np.float32)
    count, height, width, _ = chosen.shape
    if order == CHANNELS_LAST:
        other: NDArray[Any] = chosen.reshape(count, _COLOURS, height, width).transpose(0, 2, 3, 1)
        option = f"{_COLOURS}x{height}x{width}, planar: all values of red first"
    else:
        other = chosen.transpose(0, 3, 1, 2).reshape(chosen.shape)
        option = f"{height}x{width}x{_COLOURS}, the colours of a pixel together"
    if _roughness(other) >= _MAX_ROUGHNESS_RATIO * _roughness(chosen):
        return []
    return [
        f"{where}: neighbouring pixels differ far less if the channels are read in the other "
        f"order; to do so, pass --image-shape {option}"
    ]


def _roughness(images: NDArray[np.float32]) -> float:
    """Mean absolute difference of neighbours in both directions, channel by channel."""
    differences = (np.abs(np.diff(images, axis=axis)) for axis in (1, 2))
    return sum(float(each.mean()) for each in differences if each.size)


def _without_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns (H, W) for (H, W, 1), and other shapes unchanged."""
    return shape[:2] if shape[2:] == (1,) else shape


def _no_image(num_values: int, given: tuple[int, ...] | None, where: str) -> DataError:
    if given:
        made, advice = " x ".join(map(str, given)), "pass --image-shape, as in --image-shape 28x28"
    else:
        made, advice = "a square image", "pass --image-shape, as in --image-shape 32x32x3"
    side = math.isqrt(num_values // _COLOURS)
    if side * side * _COLOURS == num_values and num_values:
        advice = (
            f"pass --image-shape {side}x{side}x3 if the three colours of a pixel follow each "
            "other, "
            f"--image-shape 3x{side}x{side} if all red values come first (planar)"
        )
    return DataError(f"{where}: {num_values} pixels do not make {made}; {advice}")
