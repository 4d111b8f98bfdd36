"""Images that lie flat in their source: which shape they have."""

from __future__ import annotations

import math

from fedcli.datasets.checks import check_pixel_shape
from fedcli.errors import DataError


def flat_shape(num_values: int, given: tuple[int, ...] | None, where: str) -> tuple[int, ...]:
    """Returns the shape of an image of so many values: the given one, else a grey square.

    Raises:
        DataError: They do not make that image; the message starts with `where`.
    """
    side = math.isqrt(num_values)
    shape = given or (side, side)
    if math.prod(shape) != num_values or not num_values:
        made = " x ".join(map(str, shape)) if given else "a square image"
        raise DataError(
            f"{where}: {num_values} pixels do not make {made}; "
            "pass --image-shape, as in --image-shape 32x32x3"
        )
    check_pixel_shape((1, *shape), where)
    return shape
