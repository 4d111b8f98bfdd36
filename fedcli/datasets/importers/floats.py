"""Which scale floating-point and wide integer pixels have: 0 to 1, or 0 to 255.

A source is read twice: a `Survey` looks at all pixels, and its `Coding` then packs them as uint8
if all are grey levels, else as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import Pixels, first_non_finite
from fedcli.datasets.sources.tff_h5 import quantise
from fedcli.errors import DataError

_KINDS = "biuf"
_MAX_ITEMSIZE = 8


@dataclass(frozen=True)
class Coding:
    """How pixels of one source are kept.

    Attributes:
        top: What white is in the source: 1 or 255.
        is_levels: Whether all are grey levels, so that uint8 loses nothing.
        evidence: What decided on `top`.
    """

    top: int
    is_levels: bool
    evidence: str = ""

    @property
    def range(self) -> str:
        """From what to what pixels go in the source, in words."""
        return f"0 to {self.top}"

    @property
    def scale(self) -> float:
        """Packed pixels decode to `scale * pixels`."""
        return 1 / 255 if self.is_levels or self.top == 255 else 1.0

    def pack(self, pixels: NDArray[Any]) -> Pixels:
        """Returns pixels, of the source that was surveyed, as uint8 or float32."""
        if not self.is_levels:
            return pixels.astype(np.float32)
        if self.top == 255:
            return pixels.astype(np.uint8)
        return np.rint(pixels * 255.0).astype(np.uint8)

    @property
    def note(self) -> str:
        """What was decided, in one line."""
        kept = "as grey levels, which loses nothing" if self.is_levels else "as float32"
        return f"pixels go from 0 to {self.top} in the source; they are kept {kept}"


UINT8 = Coding(top=255, is_levels=True, evidence="pixels are uint8")


class Survey:
    """Collects facts about all pixels of a source, block by block, before any is kept."""

    def __init__(self, pixel_range: str | None = None) -> None:
        """Starts before the first block; `pixel_range` is what --pixel-range says."""
        self._top = None if pixel_range is None else int(pixel_range.partition("-")[2])
        self._most = 0.0
        self._are_shares = True  # every one a whole number / 255
        self._are_whole = True

    def add(self, pixels: NDArray[Any], first: int, where: str) -> None:
        """Looks at a block.

        Args:
            pixels: [k, ...] of a type that `check_type` allows.
            first: The index of the first example in it.
            where: Starts messages.

        Raises:
            DataError: A pixel is NaN, infinite, below 0 or above 255.
        """
        if not pixels.size:
            return
        if pixels.dtype.kind == "f":
            index = first_non_finite(pixels)
            if index is not None:
                raise DataError(
                    f"{where}: example {first + index}: a pixel is NaN or infinite; mend the data"
                )
        least, most = float(pixels.min()), float(pixels.max())
        if self._top is not None and most > self._top:
            raise DataError(
                f"{where}: pixels reach {most:g}, and --pixel-range says that they end at "
                f"{self._top}; leave it out, or mend the data"
            )
        if least < 0 or most > 255:
            flat = pixels.reshape(len(pixels), -1)
            index = int(((flat < 0) | (flat > 255)).any(axis=1).argmax())
            value = least if least < 0 else most
            raise DataError(
                f"{where}: example {first + index}: pixels reach {value:g}; only 0 to 1 and "
                "0 to 255 are read, scale them"
            )
        self._most = max(self._most, most)
        if self._are_whole:
            self._are_whole = pixels.dtype.kind != "f" or bool((np.rint(pixels) == pixels).all())
        if self._are_shares:
            single = np.ascontiguousarray(pixels, np.float32)
            self._are_shares = quantise(single, 1 / 255, 0.0) is not None

    def coding(self) -> Coding:
        """Returns how to keep what was seen."""
        top, why = 1 if self._most <= 1 else 255, f"the largest pixel is {self._most:g}"
        if self._top is not None:
            top, why = self._top, "as --pixel-range says"
        return Coding(top, self._are_shares if top == 1 else self._are_whole, why)


def check_type(dtype: np.dtype[Any], where: str) -> None:
    """Checks the type that pixels are stored in.

    Raises:
        DataError: It is not a plain number.
    """
    if dtype.kind not in _KINDS or dtype.itemsize > _MAX_ITEMSIZE:
        raise DataError(f"{where}: pixels are {dtype}; give uint8, or float32 from 0 to 1")
