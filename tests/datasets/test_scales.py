"""The range of pixels is found from all pixels; if it is ambiguous, an error names the option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedcli.datasets.importers.scales import Coding, Survey
from fedcli.errors import DataError

RNG = np.random.default_rng(5)
FRACTIONS = RNG.random((40, 6, 6))
LEVELS = np.rint(FRACTIONS * 255)


def coding_of(*blocks: Any, pixel_range: str | None = None) -> Coding:
    survey = Survey(pixel_range)
    for index, block in enumerate(blocks):
        survey.add(np.asarray(block), 0, f"split {index}")
    return survey.coding()


def with_pixel(pixels: Any, value: float) -> Any:
    changed = pixels.copy()
    changed[3, 2, 2] = value
    return changed


@pytest.mark.parametrize(
    ("pixels", "white"),
    [
        (FRACTIONS, 1),
        (with_pixel(FRACTIONS, 1.02), 1),
        (with_pixel(FRACTIONS, -0.03), 1),
        ((FRACTIONS > 0.5), 1),
        ((FRACTIONS > 0.5).astype(np.uint8), 1),
        (np.rint(FRACTIONS * 15), 15),
        (np.rint(FRACTIONS * 16), 16),
        (np.rint(FRACTIONS * 16).astype(np.uint8), 16),
        (LEVELS, 255),
        (LEVELS.astype(np.uint8), 255),
        (LEVELS.astype(np.uint16), 255),
        (FRACTIONS * 255, 255),
        (with_pixel(FRACTIONS * 255, 262.5), 255),
        (np.rint(FRACTIONS * 4095).astype(np.uint16), 4095),
        (FRACTIONS * 65535, 65535),
        ((FRACTIONS - 0.5) / 0.29, None),
        (FRACTIONS * 2 - 1, None),
    ],
)
def test_the_range_is_found(pixels: Any, white: int | None) -> None:
    coding = coding_of(pixels)
    assert coding.white == white
    decoded = coding.pack(pixels) * np.float32(coding.scale) + np.float32(coding.offset)
    scaled = pixels if white is None else np.asarray(pixels, np.float64) / white
    np.testing.assert_allclose(decoded, scaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.rint(FRACTIONS * 9), "the range may be 0-1 or 0-16; choose with --pixel-range"),
        (np.rint(FRACTIONS * 9).astype(np.uint8), "the range may be 0-16 or 0-255; choose with"),
        (with_pixel(FRACTIONS, 3.5), "example 3: the largest pixel is 3.5"),
        (with_pixel(FRACTIONS, 200.5), "only 1 pixels lie beyond 1: the range may be 0-1 or 0-255"),
        (with_pixel(LEVELS, 60000), "only 1 pixels lie beyond 255: the range may be 0-255 or"),
        (with_pixel(FRACTIONS, -0.8), "example 3: pixels go from -0.8 to"),
        ((LEVELS - 128).astype(np.int8), "which is not a known range"),
        (FRACTIONS * 1e6, "at most 65535 is allowed"),
        (with_pixel(FRACTIONS, np.nan), "example 3: a pixel is NaN or infinite"),
    ],
)
def test_an_ambiguous_range_is_an_error_that_names_the_option(pixels: Any, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        coding_of(pixels)
    assert fault in str(caught.value)


def test_train_and_test_must_be_alike() -> None:
    with pytest.raises(DataError, match=r"split 1 has pixels from .* scale train and test"):
        coding_of(FRACTIONS * 255, FRACTIONS)
    with pytest.raises(DataError, match=r"split 0 has pixels .* scale train and test"):
        coding_of(FRACTIONS, LEVELS.astype(np.uint8))
    with pytest.raises(DataError, match="scale train and test"):
        coding_of((FRACTIONS - 0.5) / 0.29, FRACTIONS)


def test_the_option_decides() -> None:
    assert coding_of(np.rint(FRACTIONS * 9), pixel_range="0-255").white == 255
    assert coding_of(np.rint(FRACTIONS * 9), pixel_range="0-15").scale == pytest.approx(1 / 15)
    assert coding_of(LEVELS - 128, pixel_range="standardised").white is None
    with pytest.raises(DataError, match="but --pixel-range ends at 1"):
        coding_of(LEVELS, pixel_range="0-1")


def test_notes_say_what_was_decided() -> None:
    assert "from 0 to 1 in the source" in coding_of(with_pixel(FRACTIONS, 1.02)).note
    assert "overshoot of resampling" in coding_of(with_pixel(FRACTIONS, 1.02)).note
    assert "standardised" in coding_of((FRACTIONS - 0.5) / 0.29).note
    assert coding_of(LEVELS.astype(np.uint8)).is_plain
