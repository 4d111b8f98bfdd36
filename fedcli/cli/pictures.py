"""Pictures in characters: images become rows of cells, two pixels above each other in a cell.

Terminals are dark, so ink is bright and the background stays empty, whatever the file holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ink = NDArray[np.float32]

_HALF_BLOCKS = " ▄▀█"  # index: 2 x upper + lower
_INK_THRESHOLD = 0.4  # of the brightest pixel; thin strokes survive, smudges do not
_ASCII_RAMP = " .:-=+*#%@"


def ink_of(images: NDArray[np.float32], convention: str) -> Ink:
    """Returns how much ink each pixel holds, float32 [n, H, W] from 0 to 1.

    Args:
        images: [n, H, W] or [n, H, W, C] as the model sees them; channels are averaged.
        convention: What 1.0 is: "ink" or "background".
    """
    grey = images.mean(axis=3) if images.ndim == 4 else images
    return np.clip(1.0 - grey if convention == "background" else grey, 0.0, 1.0)


def crop(ink: Ink) -> Ink:
    """Returns images [n, H, W] without the margin that is empty in all."""
    drawn = np.any(ink > _INK_THRESHOLD / 2, axis=0)
    if not drawn.any():
        return ink
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return ink[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def halve(ink: Ink) -> Ink:
    """Returns images [n, H, W] at half the size, each pixel the mean of four; odd edges padded."""
    n, height, width = ink.shape
    padded = np.pad(ink, ((0, 0), (0, height % 2), (0, width % 2)))
    quarters = padded.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2)
    halved: Ink = quarters.mean(axis=(2, 4))
    return halved


def cells(ink: Ink) -> NDArray[np.uint8]:
    """Returns the grey levels of one image [H, W] by cell: uint8 [rows, W, 2], upper and lower."""
    even = np.pad(ink, ((0, ink.shape[0] % 2), (0, 0)))
    pairs = even.reshape(-1, 2, even.shape[1]).transpose(0, 2, 1)
    return np.rint(pairs * 255).astype(np.uint8)


def half_blocks(levels: NDArray[np.uint8]) -> list[str]:
    """Returns cells [rows, W, 2] as rows of half blocks, for terminals without greys."""
    is_ink = levels > _INK_THRESHOLD * 255
    codes = 2 * is_ink[..., 0] + is_ink[..., 1]
    return ["".join(_HALF_BLOCKS[code] for code in row) for row in codes]


def ascii_art(levels: NDArray[np.uint8]) -> list[str]:
    """Returns cells [rows, W, 2] as rows of ASCII characters, the denser the more ink."""
    steps = levels.mean(axis=2) * (len(_ASCII_RAMP) - 1) / 255
    return ["".join(_ASCII_RAMP[step] for step in row) for row in np.rint(steps).astype(int)]
