"""Measures whether 1.0 is ink or background in images: compares the border with the centre.

EMNIST's convention (1.0 is the background) is assumed for EMNIST's own files. It is also assumed
for TFF's feature `pixels` in other files, if the images decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WRITER = re.compile(r"f[0-9]{4}_[0-9]{2}")  # ids of EMNIST's writers in TFF and LEAF
_CLEAR_SHARE = 0.65  # share of light, or dark, border pixels that decides without the centre
_LEAST_SIDE = 5  # pixels; smaller images have no border and centre
_CLEAR_STEP = 0.1  # difference of centre and border that decides if the border alone does not


def are_emnist_writers(client_ids: Iterable[str]) -> bool:
    """Returns whether all ids are of the form that TFF and LEAF give EMNIST's writers."""
    return all(_WRITER.fullmatch(each) for each in client_ids)


def can_measure(shape: tuple[int, ...]) -> bool:
    """Returns whether images (H, W) or (H, W, C) have one channel, and a border and a centre."""
    return min(shape[:2]) >= _LEAST_SIDE and shape[2:] in ((), (1,))


class Border:
    """Compares the borders of grey images with their centres, block by block."""

    def __init__(self) -> None:
        """Starts without images."""
        self._num_light = self._num_border = self._num_centre = 0
        self._sum_border = self._sum_centre = 0.0

    def add(self, images: NDArray[Any], scale: float, offset: float) -> None:
        """Adds images [k, H, W] or [k, H, W, 1] that decode to `scale * images + offset`."""
        if not images.size:
            return
        border = _border(images) * np.float32(scale) + np.float32(offset)
        centre = _centre(images) * np.float32(scale) + np.float32(offset)
        self._num_border += border.size
        self._num_centre += centre.size
        self._num_light += int(np.count_nonzero(border > 0.5))
        self._sum_border += float(border.sum(dtype=np.float64))
        self._sum_centre += float(centre.sum(dtype=np.float64))

    @property
    def share(self) -> float:
        """The share of the border pixels that are light."""
        return self._num_light / max(self._num_border, 1)

    def decide(self) -> str | None:
        """Returns "ink" or "background"; None if neither border nor centre decides."""
        if not 1 - _CLEAR_SHARE < self.share < _CLEAR_SHARE:
            return "background" if self.share > 0.5 else "ink"
        step = self._sum_border / max(self._num_border, 1)
        step -= self._sum_centre / max(self._num_centre, 1)
        if abs(step) < _CLEAR_STEP:
            return None
        return "background" if step > 0 else "ink"

    @property
    def evidence(self) -> str:
        """The evidence for the decision, in words."""
        border = self._sum_border / max(self._num_border, 1)
        centre = self._sum_centre / max(self._num_centre, 1)
        return (
            f"{100 * self.share:.0f} % of the border pixels are light, their mean is {border:.2f}, "
            f"and the mean of the centre is {centre:.2f}"
        )


def _border(images: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels of each image [k, H, W, ...], flat."""
    sides = [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]]
    return np.concatenate([np.asarray(side).reshape(-1) for side in sides])


def _centre(images: NDArray[Any]) -> NDArray[Any]:
    """The middle half of each image in both directions, flat."""
    height, width = images.shape[1:3]
    rows = slice(height // 4, height - height // 4)
    columns = slice(width // 4, width - width // 4)
    return np.asarray(images[:, rows, columns]).reshape(-1)
