"""Pictures in characters: images become rows of cells, two pixels above each other in a cell.

Terminals are dark, so ink is bright and the background stays empty, whatever the file holds.
Images of three channels keep their colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float32]  # [n, H, W] of ink or [n, H, W, 3] of red, green, blue; 0 to 1

_HALF_BLOCKS = " ▄▀█"  # index: 2 x upper + lower
_INK_THRESHOLD = 0.4  # share of full ink; thin strokes are kept, smudges dropped
_ASCII_RAMP = " .:-=+*#%@"
_NUM_COLOURS = 3


def pictures_of(images: NDArray[np.float32], convention: str) -> Pictures:
    """Returns the pictures of images: their ink [n, H, W], or [n, H, W, 3] for coloured ones.

    Args:
        images: [n, H, W] or [n, H, W, C] as the model sees them; channels are averaged unless
            there are three.
        convention: Meaning of 1.0: "ink" or "background".
    """
    if images.ndim == 4 and images.shape[3] != _NUM_COLOURS:
        images = images.mean(axis=3)
    shown: Pictures = np.clip(1.0 - images if convention == "background" else images, 0.0, 1.0)
    return shown


def are_coloured(pictures: Pictures) -> bool:
    """Whether pictures [n, ...] have colours."""
    return pictures.ndim == 4


def crop(pictures: Pictures) -> Pictures:
    """Returns pictures [n, H, W] without the margin that is empty in all of them.

    Coloured pictures are returned unchanged, with their margins.
    """
    drawn = np.any(pictures > _INK_THRESHOLD / 2, axis=0)
    if are_coloured(pictures) or not drawn.any():
        return pictures
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return pictures[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shrink(pictures: Pictures, factor: int) -> Pictures:
    """Returns pictures [n, H, W, ...] whose pixels are means of `factor` x `factor` squares.

    Squares that reach beyond the picture repeat its last row and column.
    """
    n, height, width, *channels = pictures.shape
    margins = [(0, 0), (0, -height % factor), (0, -width % factor), *((0, 0) for _ in channels)]
    padded = np.pad(pictures, margins, mode="edge")
    rows, columns = padded.shape[1] // factor, padded.shape[2] // factor
    squares = padded.reshape(n, rows, factor, columns, factor, *channels)
    shrunk: Pictures = squares.mean(axis=(2, 4), dtype=np.float32)
    return shrunk


def stretch(pictures: Pictures) -> Pictures:
    """Returns pictures of ink, each scaled so that its darkest pixel is 1: mean images are faint.

    Coloured pictures are returned unchanged.
    """
    if are_coloured(pictures):
        return pictures
    darkest = pictures.max(axis=(1, 2), keepdims=True, initial=0)
    stretched: Pictures = np.divide(pictures, np.where(darkest > 0, darkest, 1), dtype=np.float32)
    return stretched


def cells(picture: Pictures) -> NDArray[np.uint8]:
    """Returns the levels of one picture [H, W, ...] by cell: uint8 [rows, W, 2, ...], upper first.

    If the number of rows is odd, the lower halves of the last cells are empty.
    """
    height, width, *channels = picture.shape
    even = np.pad(picture, [(0, height % 2), (0, 0), *((0, 0) for _ in channels)])
    pairs = even.reshape(-1, 2, width, *channels).swapaxes(1, 2)
    return np.rint(pairs * 255).astype(np.uint8)


def half_blocks(levels: NDArray[np.uint8]) -> list[str]:
    """Returns cells [rows, W, 2] as rows of half blocks, for terminals without greys."""
    is_ink = levels > _INK_THRESHOLD * 255
    codes = 2 * is_ink[..., 0] + is_ink[..., 1]
    return ["".join(_HALF_BLOCKS[code] for code in row) for row in codes]


def ascii_art(levels: NDArray[np.uint8]) -> list[str]:
    """Returns cells [rows, W, 2] as rows of ASCII characters; brighter cells get denser ones."""
    steps = levels.mean(axis=2) * (len(_ASCII_RAMP) - 1) / 255
    return ["".join(_ASCII_RAMP[step] for step in row) for row in np.rint(steps).astype(int)]
