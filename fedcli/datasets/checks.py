"""Checks of examples, the same for every source: labels, pixel shapes, pixel values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import first_non_finite, first_outside
from fedcli.errors import ConfigError, DataError, plural
from fedcli.settings.vocabulary import MAX_CLASSES

MAX_SIDE = 4096  # pixels; larger images are not supported
MAX_CHANNELS = 64
MAX_CLIENT_BYTES = 2 << 30  # size of one client's pixels as stored
MAX_ID_BYTES = 255  # size of a client's or a class's name in UTF-8


def is_name(text: str) -> bool:
    """Returns whether a store can keep a text as a client's id or a class's name."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which is half a character
        return False
    return 1 <= len(encoded) <= MAX_ID_BYTES and b"\0" not in encoded


def check_num_classes(num_classes: int, what: str) -> int:
    """Returns a number of classes after checking it.

    Raises:
        ConfigError: It is below 1 or above `MAX_CLASSES`. The message starts with `what`, the
            name of the option.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ConfigError(f"{what} {num_classes}: choose a whole number from 1 to {MAX_CLASSES}")
    return num_classes


def check_labels(labels: NDArray[Any], num_classes: int, where: str) -> None:
    """Checks integer labels [n] in their stored type.

    Raises:
        DataError: A label lies outside the classes.
    """
    index = first_outside(labels, num_classes)
    if index is not None:
        raise bad_label(int(labels[index]), index, num_classes, where, int(labels.max()))


def bad_label(
    label: int, index: int, num_classes: int, where: str, largest: int | None = None
) -> DataError:
    """Returns the error for one label outside the classes; `largest` is the largest label known."""
    enough = 1 + (label if largest is None else largest)
    is_class = label >= 0 and enough <= MAX_CLASSES
    remedy = f"pass --num-classes {enough} or more, or correct" if is_class else "correct"
    return DataError(
        f"{where}: example {index}: label {label} is outside 0 to {num_classes - 1}; "
        f"{remedy} the data"
    )


def bad_class_name(name: str, where: str) -> DataError:
    """Returns the error for a name of a class that no store can keep; see `is_name`."""
    return DataError(
        f"{where}: class {name[:40]!r}: a name must have 1 to {MAX_ID_BYTES} bytes of UTF-8 and no "
        "zero byte; rename the class"
    )


def check_pixel_shape(shape: tuple[int, ...], where: str) -> None:
    """Checks the shape of an array of images.

    Raises:
        DataError: It is not [n, H, W] or [n, H, W, C], or the images exceed `MAX_SIDE` or
            `MAX_CHANNELS`.
    """
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(
            f"{where}: pixels have shape {list(shape)}; give images [n, H, W] or [n, H, W, C]"
        )
    if has_channels_first(shape):
        shape = (shape[0], *shape[2:], shape[1])
    if max(shape[1:3]) > MAX_SIDE or max(shape[3:], default=1) > MAX_CHANNELS:
        raise DataError(
            f"{where}: images of shape {list(shape[1:])} are too large; give images of at most "
            f"{MAX_SIDE} x {MAX_SIDE} x {MAX_CHANNELS}"
        )


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Returns whether a shape is [n, C, H, W]: 1 or 3 channels before the sides, none after."""
    return len(shape) == 4 and shape[1] in (1, 3) and shape[2] > 1 and shape[3] not in (1, 3, 4)


def check_pixel_array(shape: tuple[int, ...], itemsize: int, where: str) -> None:
    """Checks the shape of one client's pixels before an array of that size is allocated.

    Raises:
        DataError: See `check_pixel_shape`; or the client's pixels have too many bytes.
    """
    check_pixel_shape(shape, where)
    num_bytes = math.prod(shape) * itemsize
    if num_bytes > MAX_CLIENT_BYTES:
        raise DataError(
            f"{where}: pixels of shape {list(shape)} take {num_bytes} bytes; a client may have at "
            f"most {MAX_CLIENT_BYTES}, so divide it into several clients"
        )


def check_examples(
    pixels: NDArray[Any], labels: NDArray[Any], shape: tuple[int, ...] | None, where: str
) -> None:
    """Checks that pixels fit the labels and earlier images. Label values are not checked.

    Args:
        pixels: uint8 or float32 [n, H, W] or [n, H, W, C].
        labels: [n].
        shape: Shape of the earlier images; None: there are none.
        where: Prefix of error messages.

    Raises:
        DataError: Shapes differ, the numbers of images and labels differ, or a pixel is not finite.
    """
    check_pixel_array(pixels.shape, pixels.itemsize, where)
    if shape not in (None, pixels.shape[1:]):
        raise DataError(
            f"{where}: images have shape {list(pixels.shape[1:])} but earlier ones "
            f"{list(shape or ())}; give all images the same shape"
        )
    if len(labels) != len(pixels):
        raise DataError(
            f"{where}: {plural(len(pixels), 'image')} but {plural(len(labels), 'label')}; each "
            "image needs one label"
        )
    if pixels.dtype != np.uint8:
        check_finite(pixels, where)


def check_finite(pixels: NDArray[Any], where: str) -> None:
    """Checks floating-point pixels [n, ...].

    Raises:
        DataError: A pixel is NaN or infinite.
    """
    index = first_non_finite(pixels)
    if index is not None:
        raise DataError(f"{where}: example {index}: a pixel is NaN or infinite; correct the data")
