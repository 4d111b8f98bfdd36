"""Determines the range of pixels of a source from all its pixels.

A `Survey` collects statistics of all pixels of all splits. Its `Coding` says how they are stored:
as uint8 if that is lossless, else as float32, with the scale that maps them to 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import Pixels, first_non_finite
from fedcli.datasets.importers.shared import blocks
from fedcli.datasets.sources.tff_h5 import quantise
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError
from fedcli.settings.vocabulary import PIXEL_RANGES, STANDARDISED

_KINDS = "biuf"
_MAX_ITEMSIZE = 8
# White in images of 1, 4, 8, 12 and 16 bits, and 16 in the digits of scikit-learn.
_WHITE_VALUES = (1, 15, 16, 255, 4095, 65535)
# Resampling with a cubic or Lanczos kernel exceeds the range of values by at most this share of it.
_OVERSHOOT = 0.25
_FEW_GREYS = 16  # whole numbers up to this may also come from dark images of 8 bits
_LEAST_PIXELS = 1000  # fewer pixels of 8 bits may all be dark by chance
# If this share of the non-zero pixels is within 0 to 255, or within 0 to 1, the larger ones may be
# faults.
_MIN_SHARE_UP_TO_255 = 0.999
_MIN_SHARE_UP_TO_1 = 0.95
# The mean and standard deviation of standardised pixels, (x - mean) / deviation.
_LARGEST_MEAN = 2.0
_DEVIATIONS = (0.05, 5.0)
_LEAST_BELOW_0 = 0.02  # if a smaller share of the pixels is below 0, these are faults


@dataclass(frozen=True)
class Coding:
    """How the pixels of one source are stored.

    Attributes:
        white: The value of white in the source; None: pixels are standardised and not rescaled.
        is_levels: Whether uint8 stores the pixels without loss.
        evidence: The evidence for `white`.
        least: The smallest pixel.
        most: The largest pixel.
        is_plain: Whether the pixels are uint8 from 0 to 255, which needs no note.
    """

    white: int | None
    is_levels: bool
    evidence: str = ""
    least: float = 0.0
    most: float = 0.0
    is_plain: bool = False

    @property
    def range(self) -> str:
        """Returns a text with the range of pixels in the source."""
        if self.white is None:
            return f"standardised, {self.least:.4g} to {self.most:.4g}"
        return f"0 to {self.white}"

    @property
    def scale(self) -> float:
        """Packed pixels decode to `scale * pixels + offset`."""
        if self.white is None:
            return 1.0
        return 1 / 255 if self.is_levels and self.white == 1 else 1 / self.white

    @property
    def offset(self) -> float:
        """See `scale`."""
        return 0.0

    def pack(self, pixels: NDArray[Any]) -> Pixels:
        """Returns pixels of the surveyed source as uint8 or float32."""
        if not self.is_levels:
            return pixels.astype(np.float32)
        if self.white == 1:
            return np.rint(pixels * 255.0).astype(np.uint8)
        return pixels.astype(np.uint8)

    @property
    def note(self) -> str:
        """The decision, in one line."""
        if self.white is None:
            return (
                f"pixels go from {self.least:.4g} to {self.most:.4g} in the source: they are taken "
                "to be standardised and stay as they are"
            )
        kept = "as grey levels, without loss" if self.is_levels else "as float32"
        if self.most > self.white or self.least < 0:
            return (
                f"pixels go from 0 to {self.white} in the source and are stored {kept} (from "
                f"{self.least:.4g} to {self.most:.4g}: values outside are taken to be overshoot of "
                "resampling)"
            )
        if self.most == self.white or self.white == 1:
            return f"pixels go from 0 to {self.white} in the source and are stored {kept}"
        return (
            f"pixels go from {self.least:.4g} to {self.most:.5g} in the source, which is taken as "
            f"the range 0 to {self.white}, and are stored {kept}"
        )


class _Part(NamedTuple):
    """The pixels of one file or array."""

    least: float
    most: float
    are_whole: bool


class Survey:
    """Collects facts about all pixels of a source, block by block, before any block is stored."""

    def __init__(self, pixel_range: str | None = None) -> None:
        """Starts before the first block; `pixel_range` is the value of --pixel-range."""
        self._given = pixel_range
        self._least = math.inf
        self._most = -math.inf
        self._are_unit_levels = True  # whether 255 times each pixel is a whole number
        self._are_whole = True
        self._are_bytes = True  # whether all blocks are uint8
        self._sum = self._sum_of_squares = 0.0
        self._num_pixels = 0
        self._num_not_0 = self._num_below_0 = 0
        self._num_within = dict.fromkeys(_WHITE_VALUES, 0)  # number of pixels up to each white
        self._place_of_most = ""
        self._place_of_least = ""
        self._parts: dict[str, _Part] = {}

    def add(self, pixels: NDArray[Any], first: int, where: str) -> None:
        """Adds a block to the statistics.

        Args:
            pixels: [k, ...] of a type that `check_type` allows.
            first: The index of the first example in it.
            where: Prefix of error messages.

        Raises:
            DataError: A pixel is NaN or infinite, or above the range that was given.
        """
        if not pixels.size:
            return
        if pixels.dtype.kind == "f":
            index = first_non_finite(pixels)
            if index is not None:
                raise DataError(
                    f"{where}: example {first + index}: a pixel is NaN or infinite; correct the "
                    "data"
                )
        least, most = float(pixels.min()), float(pixels.max())
        self._refuse_beyond_given(most, where)
        if most > self._most:
            index = int(pixels.reshape(len(pixels), -1).max(axis=1).argmax())
            self._place_of_most = f"{where}: example {first + index}"
        if least < self._least:
            index = int(pixels.reshape(len(pixels), -1).min(axis=1).argmin())
            self._place_of_least = f"{where}: example {first + index}"
        are_whole = pixels.dtype.kind != "f" or bool((np.rint(pixels) == pixels).all())
        self._extend(least, most, where, are_whole=are_whole)
        self._are_whole = self._are_whole and are_whole
        self._num_pixels += pixels.size
        if pixels.dtype != np.uint8:
            self._add_numbers(pixels)

    def add_unit_levels(self, levels: NDArray[Any], where: str) -> None:
        """Adds a block of uint8 grey levels, each 255 times the pixel in the source."""
        if not levels.size:
            return
        least, most = int(levels.min()) / 255, int(levels.max()) / 255
        self._extend(least, most, where, are_whole=False)
        self._are_bytes = self._are_whole = False

    def coding(self) -> Coding:
        """Returns how to store the pixels.

        Raises:
            DataError: Two ranges are plausible, or none is. The message names the option that
                decides.
        """
        if self._most == -math.inf:
            self._least = self._most = 0.0
        white, why = self._given_white() if self._given else self._found_white()
        is_levels = False
        if white == 1:
            is_levels = self._are_unit_levels if not self._are_bytes else self._least >= 0
        elif white is not None and white <= 255:
            is_levels = self._are_whole and self._least >= 0 and self._most <= 255
        is_plain = self._are_bytes and white == 255
        return Coding(white, is_levels, why, self._least, self._most, is_plain)

    def _add_numbers(self, pixels: NDArray[Any]) -> None:
        self._are_bytes = False
        if self._most > 1:
            self._are_unit_levels = False
        elif self._are_unit_levels:
            single = np.ascontiguousarray(pixels, np.float32)
            self._are_unit_levels = quantise(single, 1 / 255, 0.0) is not None
        self._sum += float(pixels.sum(dtype=np.float64))
        with np.errstate(over="ignore"):
            self._sum_of_squares += float(np.square(pixels, dtype=np.float64).sum())
        self._num_not_0 += int(np.count_nonzero(pixels))
        if self._least < 0:
            self._num_below_0 += int(np.count_nonzero(pixels < 0))
        if self._most > 1 + _OVERSHOOT:
            for white in _WHITE_VALUES:
                within = (pixels != 0) & (pixels <= white * (1 + _OVERSHOOT))
                self._num_within[white] += int(np.count_nonzero(within))
        else:
            for white in _WHITE_VALUES:
                self._num_within[white] += int(np.count_nonzero(pixels))

    def _extend(self, least: float, most: float, where: str, *, are_whole: bool) -> None:
        self._least, self._most = min(self._least, least), max(self._most, most)
        known = self._parts.get(where, _Part(least, most, True))
        self._parts[where] = _Part(
            min(known.least, least), max(known.most, most), known.are_whole and are_whole
        )

    def _refuse_beyond_given(self, most: float, where: str) -> None:
        white = None if self._given in (None, STANDARDISED) else _white_of(self._given)
        if white is not None and most > white * (1 + _OVERSHOOT):
            raise DataError(
                f"{where}: the largest pixel is {most:g}, but --pixel-range ends at {white}; leave "
                "that option out, or correct the data"
            )

    def _given_white(self) -> tuple[int | None, str]:
        assert self._given is not None
        white = None if self._given == STANDARDISED else _white_of(self._given)
        return white, "given by --pixel-range"

    def _found_white(self) -> tuple[int | None, str]:
        """Returns the value of white, and the evidence for it."""
        self._refuse_unlike_parts()
        why = f"the largest pixel is {self._most:g}"
        if self._least < 0 and not self._is_overshoot():
            return self._standardised()
        if self._are_bytes:
            few = self._most in (1, 15, 16)
            if 1 < self._most <= _FEW_GREYS and not few and self._num_pixels >= _LEAST_PIXELS:
                raise self._ambiguous("0-16", "0-255")
            return (int(self._most) if few else 255), why if few else "pixels are uint8"
        if self._most <= 1 + _OVERSHOOT:
            return 1, why
        if self._most <= _FEW_GREYS:
            if self._are_whole and self._most in (15, 16):
                return int(self._most), why
            raise self._ambiguous("0-1", "0-16" if self._are_whole else "0-255")
        white = next(
            (each for each in _WHITE_VALUES[3:] if self._most <= each * (1 + _OVERSHOOT)), None
        )
        if white == 4095 * (self._most > 4095):
            white = 65535
        if white is None:
            raise DataError(
                f"{self._place_of_most}: the largest pixel is {self._most:g}, but at most 65535 is "
                "allowed; scale the pixels to 0 to 1"
            )
        self._refuse_outliers(white)
        return white, why

    def _refuse_unlike_parts(self) -> None:
        """Refuses splits whose pixels are scaled differently."""
        if self._most <= _FEW_GREYS and self._least >= -_OVERSHOOT:
            return
        is_far = {
            where: part.most > _FEW_GREYS or part.least < -_OVERSHOOT
            for where, part in self._parts.items()
        }
        for where, part in self._parts.items():
            is_scaled = 0 < part.most <= 1 + _OVERSHOOT and not part.are_whole
            if is_scaled and not is_far[where]:
                other = next(each for each in is_far if is_far[each])
                least, most, _ = self._parts[other]
                raise DataError(
                    f"{where} has pixels from {part.least:g} to {part.most:g}, but {other} from "
                    f"{least:g} to {most:g}, so they are scaled differently; scale train and test "
                    "in the same way"
                )

    def _is_overshoot(self) -> bool:
        """Whether the pixels below 0 are few and small enough to come from resampling."""
        white = next((each for each in (1, 255) if self._most <= each * (1 + _OVERSHOOT)), 65535)
        mean, deviation = self._moments()
        return self._least >= -_OVERSHOOT * white and mean > 0.05 * deviation

    def _moments(self) -> tuple[float, float]:
        mean = self._sum / max(self._num_pixels, 1)
        variance = self._sum_of_squares / max(self._num_pixels, 1) - mean * mean
        return mean, math.sqrt(max(variance, 0.0))

    def _standardised(self) -> tuple[None, str]:
        mean, deviation = self._moments()
        low, high = _DEVIATIONS
        are_many = self._num_below_0 >= _LEAST_BELOW_0 * self._num_pixels
        if (
            are_many
            and not self._are_whole
            and abs(mean) <= _LARGEST_MEAN
            and low <= deviation <= high
        ):
            return None, f"their mean is {mean:.3g} and their standard deviation {deviation:.3g}"
        raise DataError(
            f"{self._place_of_least}: pixels go from {self._least:g} to {self._most:g}, which is "
            "not a known range; scale them to 0 to 1, or pass --pixel-range "
            f"{STANDARDISED} to keep them as they are"
        )

    def _refuse_outliers(self, white: int) -> None:
        """Refuses a range that few pixels need: they may be faults, or the others may be dark."""
        for smaller, share in ((1, _MIN_SHARE_UP_TO_1), (255, _MIN_SHARE_UP_TO_255)):
            is_possible = smaller < white and not (smaller == 1 and self._are_whole)
            num_beyond = self._num_not_0 - self._num_within[smaller]
            if is_possible and num_beyond < (1 - share) * self._num_not_0:
                raise self._ambiguous(f"0-{smaller}", f"0-{white}", num_beyond)

    def _ambiguous(self, one: str, other: str, num_beyond: int = 0) -> DataError:
        few = f" but only {num_beyond:,} pixels lie beyond {one[2:]}" if num_beyond else ""
        return DataError(
            f"{self._place_of_most}: the largest pixel is {self._most:g}{few}: the range may be "
            f"{one} or {other}; choose with --pixel-range (one of {', '.join(PIXEL_RANGES)}), or "
            "correct "
            "the data"
        )


def rescale(
    tables: Mapping[str, ExampleTable], pixel_range: str | None, *, are_unit_levels: bool
) -> tuple[dict[str, ExampleTable], Coding]:
    """Returns tables whose pixels decode to 0 to 1, and the range that they had.

    Args:
        tables: Tables of one source, with its original pixels, uint8 or float32.
        pixel_range: The value of --pixel-range.
        are_unit_levels: Whether uint8 pixels are grey levels whose values in the source are 0 to 1.

    Raises:
        DataError: See `Survey`.
    """
    survey = Survey(pixel_range)
    is_packed = are_unit_levels or any(table.pixels.dtype != np.uint8 for table in tables.values())
    for table in tables.values():
        # Blocks are small, because counting takes several times as much memory.
        for first, last in blocks(len(table), table.pixels.shape[1:], 8 * table.pixels.itemsize):
            block = np.asarray(table.pixels[first:last])
            if is_packed and block.dtype == np.uint8:
                survey.add_unit_levels(block, table.source)
            else:
                survey.add(block, first, table.source)
    coding = survey.coding()
    factor = 1.0 if coding.white is None else (1 if is_packed else 255) / coding.white
    if factor == 1:
        return dict(tables), coding
    return {
        name: replace(table, scale=table.scale * factor, offset=table.offset * factor)
        for name, table in tables.items()
    }, coding


def check_type(dtype: np.dtype[Any], where: str) -> None:
    """Checks the type that pixels are stored in.

    Raises:
        DataError: It is not a type of real numbers.
    """
    if dtype.kind not in _KINDS or dtype.itemsize > _MAX_ITEMSIZE:
        raise DataError(f"{where}: pixels are {dtype}; give uint8, or float32 from 0 to 1")


def _white_of(pixel_range: str) -> int:
    return int(pixel_range.partition("-")[2])
