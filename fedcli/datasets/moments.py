"""Mean and standard deviation of each channel over a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import Cancelled
from fedcli.errors import ConfigError

if TYPE_CHECKING:
    from fedcli.datasets.client_data import ClientData

_BLOCK = 256  # examples that are decoded at a time


def channel_moments(
    data: ClientData, is_cancelled: Callable[[], bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns means and standard deviations of the decoded pixels: float64 [C] each.

    Every client is read once, in the order of the ids. The deviation is taken over all pixels of
    all examples, as in torchvision's scripts.

    Args:
        data: A split of images [H, W] or [H, W, C].
        is_cancelled: Called after each client; returns whether to stop.

    Raises:
        Cancelled: `is_cancelled` returned true.
        ConfigError: There are no examples, or a channel has the same value everywhere.
        DataError: A client's data are invalid.
    """
    num_channels = data.pixel_shape[2] if len(data.pixel_shape) == 3 else 1
    count, sums, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
    for client_id in data.client_ids:
        if is_cancelled():
            raise Cancelled
        images = data.client(client_id).images()
        for first in range(0, len(images), _BLOCK):
            pixels = images[first : first + _BLOCK].reshape(-1, num_channels).astype(np.float64)
            count += len(pixels)
            sums += pixels.sum(axis=0)
            squares += np.square(pixels).sum(axis=0)
    if not count:
        raise ConfigError(
            f"{data.source}: the split {data.split} has no examples to normalize by; give "
            "--normalize MEAN,...:STD,... or leave it out"
        )
    means = sums / count
    deviations = np.sqrt(np.maximum(squares / count - means**2, 0))
    if not (deviations > 1e-6).all():
        raise ConfigError(
            f"{data.source}: a channel has the same value in all examples of {data.split}, so it "
            "cannot be divided by its deviation; give --normalize MEAN,...:STD,... or leave it out"
        )
    return means, deviations
