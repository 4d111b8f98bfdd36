"""Resizes images to one size and centres their ink, as the authors of MNIST did."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import Pixels
from fedcli.datasets.checks import MAX_SIDE
from fedcli.datasets.importers.pillow import load_pillow
from fedcli.errors import ConfigError


@dataclass(frozen=True)
class Fit:
    """A callable that resizes and centres images, as `--size` and `--centre` say.

    Attributes:
        size: (H, W) that every image gets; None leaves sizes as they are.
        centre: Whether the ink's centre of mass is shifted to the middle.

    Raises:
        ConfigError: A side is outside 1 to 4096, or Pillow, which does the resizing, is not
            installed.
    """

    size: tuple[int, int] | None
    centre: bool

    def __post_init__(self) -> None:
        """Checks the size before any image is read."""
        if self.size is None:
            return
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            height, width = self.size
            raise ConfigError(f"--size {height}x{width}: choose sides from 1 to {MAX_SIDE}")
        load_pillow("--size")

    def __call__(self, pixels: Pixels) -> Pixels:
        """Returns images [k, H, W] or [k, H, W, C] of the same type.

        The aspect ratio is kept: the image is scaled to fit, and the space around it is filled
        with the median of the image's border, channel by channel.
        """
        if self.size is not None and pixels.shape[1:3] != self.size:
            size = self.size
            shape = (len(pixels), *size, *pixels.shape[3:])
            fitted = np.empty(shape, pixels.dtype)
            for index, image in enumerate(pixels):
                fitted[index] = _padded(_resized(image, size), size)
            pixels = fitted
        if self.centre and len(pixels):
            pixels = np.stack([_centred(image) for image in pixels])
        return pixels


def _border_median(image: NDArray[Any]) -> NDArray[Any]:
    """Returns the lower median of the border, [C] or [].

    It is a value that occurs in the border.
    """
    border = np.sort(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]), axis=0)
    median: NDArray[Any] = border[(len(border) - 1) // 2]
    return median


def _resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The image [h, w] or [h, w, C], scaled to the largest size within `size`, aspect kept."""
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    new = tuple(
        max(1, min(most, round(side * ratio)))
        for side, most in zip((height, width), size, strict=True)
    )
    if new == (height, width):
        return image
    pillow = load_pillow("--size")
    channels = image.reshape(height, width, -1)
    resized = np.empty((*new, channels.shape[2]), image.dtype)
    for channel in range(channels.shape[2]):
        # This filter (a triangle) avoids aliasing and, unlike Lanczos, never overshoots.
        plane = pillow.fromarray(np.ascontiguousarray(channels[..., channel]))
        resized[..., channel] = plane.resize(new[::-1], pillow.Resampling.BILINEAR)
    return resized.reshape(*new, *image.shape[2:])


def _padded(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The image padded to `size` on all sides with the median of its border."""
    padded = np.empty((*size, *image.shape[2:]), image.dtype)
    padded[...] = _border_median(image)
    top, left = ((most - side) // 2 for side, most in zip(image.shape, size, strict=False))
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded


def _centred(image: NDArray[Any]) -> NDArray[Any]:
    """The image with its ink's centre of mass moved to the middle, by whole pixels."""
    background = _border_median(image)
    ink = np.abs(image - background.astype(np.float64))
    ink = ink.reshape(*image.shape[:2], -1).sum(axis=2)
    mass = ink.sum()
    if not mass:
        return image
    shifted = np.empty_like(image)
    shifted[...] = background
    to: list[slice] = []
    source: list[slice] = []
    for axis, side in enumerate(image.shape[:2]):
        centre = (ink.sum(axis=1 - axis) * np.arange(side)).sum() / mass
        shift = int(np.rint((side - 1) / 2 - centre))
        to.append(slice(max(0, shift), side + min(0, shift)))
        source.append(slice(max(0, -shift), side + min(0, -shift)))
    shifted[tuple(to)] = image[tuple(source)]
    return shifted
