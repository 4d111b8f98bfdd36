"""`PixelSpool`: collects an unknown number of images in an unnamed temporary file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import Pixels, decode
from fedcli.files import nameless_file

_BLOCK_BYTES = 8 << 20  # number of bytes decoded at a time


class PixelSpool:
    """Collects blocks of images of one shape, and maps them when they are complete.

    If all blocks have the same type, scale and offset, the images are stored unchanged; otherwise
    they become float32 as the model sees them. Blocks without images do not count.

    Attributes:
        shape: (H, W) or (H, W, C) of an image; None before the first block.
        num_images: Number of images so far.
        scale: Images decode to `scale * pixels + offset`.
        offset: See `scale`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Opens the file in a folder, by default the system's folder for temporary files.

        Raises:
            OSError: The folder cannot be written to.
        """
        self.shape: tuple[int, ...] | None = None
        self.num_images = 0
        self.scale, self.offset = 1.0, 0.0
        self._folder = folder
        self._file = nameless_file(folder)
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)

    def close(self) -> None:
        """Closes the file. Mapped images stay valid."""
        self._file.close()

    def add(self, pixels: Pixels, scale: float, offset: float) -> None:
        """Appends images [k, *shape]. Raises OSError, for example if the disk is full."""
        block: NDArray[Any] = pixels
        if not self.num_images:
            self.shape = pixels.shape[1:]
            self._dtype, self.scale, self.offset = pixels.dtype, scale, offset
        elif len(pixels) and (pixels.dtype, scale, offset) != (
            self._dtype,
            self.scale,
            self.offset,
        ):
            self._widen()
            block = decode(pixels, scale, offset)
        self._file.write(np.ascontiguousarray(block).data)
        self.num_images += len(pixels)

    def mapped(self) -> Pixels:
        """Returns all images [num_images, *shape], mapped read-only; `add` must be called first.

        Raises:
            OSError: The disk is full.
        """
        assert self.shape is not None
        self._file.flush()
        shape = (self.num_images, *self.shape)
        if not math.prod(shape):
            nothing: Pixels = np.empty(shape, self._dtype)
            nothing.flags.writeable = False
            return nothing
        return np.memmap(self._file, self._dtype, "r", shape=shape)

    def _widen(self) -> None:
        """Converts the images so far to float32 as the model sees them, if blocks differ."""
        if (self._dtype, self.scale, self.offset) == (np.dtype(np.float32), 1.0, 0.0):
            return
        narrow = self._file
        self._file = nameless_file(self._folder)
        with narrow:
            narrow.seek(0)
            while block := narrow.read(_BLOCK_BYTES):
                decoded = decode(np.frombuffer(block, self._dtype), self.scale, self.offset)
                self._file.write(decoded.data)
        self._dtype, self.scale, self.offset = np.dtype(np.float32), 1.0, 0.0
