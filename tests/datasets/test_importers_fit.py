"""Fitting keeps the aspect ratio, fills with the image's background and centres the ink."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedcli.datasets.batches import Pixels
from fedcli.datasets.importers.fit import Fit
from fedcli.errors import ConfigError


def ink_centre(image: np.ndarray, background: float = 0) -> tuple[float, float]:
    ink = np.abs(image - float(background))
    rows, columns = np.indices(image.shape)
    return float((ink * rows).sum() / ink.sum()), float((ink * columns).sum() / ink.sum())


@given(
    pixels=hnp.arrays(
        st.sampled_from([np.uint8, np.float32]),
        st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 9))
        | st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
        elements={"min_value": 0, "max_value": 1},
    ),
    size=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    centre=st.booleans(),
)
def test_type_count_and_channels_are_kept_and_nothing_overshoots(
    pixels: Any, size: tuple[int, int] | None, centre: bool
) -> None:
    fitted = Fit(size, centre)(pixels)
    assert fitted.dtype == pixels.dtype
    assert fitted.shape == (len(pixels), *(size or pixels.shape[1:3]), *pixels.shape[3:])
    if pixels.size:
        assert pixels.min() <= fitted.min() <= fitted.max() <= pixels.max()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_one_colour_stays_one_colour(dtype: type, channels: tuple[int, ...]) -> None:
    pixels: Any = np.full((2, 5, 9, *channels), 7, dtype)
    assert (Fit((28, 20), centre=True)(pixels) == 7).all()


def test_equal_size_is_left_as_it_is() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(Fit((3, 4), centre=False)(pixels), pixels)


def test_reduction_averages_and_keeps_the_aspect_ratio() -> None:
    pixels = np.zeros((1, 40, 80), np.uint8)
    pixels[:, 10:30, 20:60] = 200
    fitted = Fit((20, 20), centre=False)(pixels)[0]
    rows, columns = np.nonzero(fitted)
    # 40 x 80 becomes 10 x 20 in the middle. The ink, 20 x 40, becomes 5 x 10 with blurred edges.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 12, 4, 15)
    assert abs(int(fitted.sum()) - 200 * 50) < 200 * 3
    striped = np.zeros((1, 64, 64), np.uint8)
    striped[:, :, ::2] = 200
    grey = Fit((8, 8), centre=False)(striped)[0]
    assert abs(int(grey[4, 4]) - 100) <= 5  # the mean; the nearest pixel would give 0 or 200


def test_small_images_grow() -> None:
    pixels = np.array([[[0, 200], [0, 200]]], np.uint8)
    fitted = Fit((8, 8), centre=False)(pixels)[0]
    assert fitted[0, 0] == 0
    assert fitted[0, 7] == 200


def test_rest_is_the_border_median_channel_by_channel() -> None:
    pixels = np.zeros((1, 4, 8, 3), np.uint8)
    pixels[...] = (10, 200, 90)
    pixels[:, 1:3, 1:7] = 255
    pixels[:, 0, 0] = 0
    pixels[:, 3, 7] = 255
    fitted = Fit((8, 8), centre=False)(pixels)[0]
    assert (fitted[:2] == (10, 200, 90)).all()
    assert (fitted[6:] == (10, 200, 90)).all()
    np.testing.assert_array_equal(fitted[2:6], pixels[0])


def test_border_of_two_halves_gives_one_of_them() -> None:
    pixels = np.zeros((1, 4, 2), np.uint8)
    pixels[:, :, 1] = 255
    assert set(np.unique(Fit((4, 4), centre=False)(pixels))) == {0, 255}


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_ink_is_centred(background: int, dtype: type) -> None:
    pixels: Any = np.full((2, 28, 28), background, dtype)
    pixels[0, 2:6, 3:5] = 128
    pixels[1, 20:27, 18:27] = 60
    for before, after in zip(pixels, Fit(None, centre=True)(pixels), strict=True):
        assert np.sort(after, axis=None).tolist() == np.sort(before, axis=None).tolist()
        assert max(abs(place - 13.5) for place in ink_centre(after, background)) <= 0.5


@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_dot_is_centred_exactly(place: int) -> None:
    pixels: Pixels = np.zeros((1, 9, 9), np.uint8)
    pixels[0, place, 8 - place] = 255
    rows, columns = np.nonzero(Fit(None, centre=True)(pixels)[0])
    assert (rows.tolist(), columns.tolist()) == ([4], [4])
    pixels = np.zeros((1, 8, 8), np.uint8)
    pixels[0, :2, 6:] = 255
    rows, columns = np.nonzero(Fit(None, centre=True)(pixels)[0])
    assert (rows.tolist(), columns.tolist()) == ([3, 3, 4, 4], [3, 4, 3, 4])


def test_centring_twice_changes_nothing() -> None:
    pixels: Pixels = np.zeros((1, 9, 9), np.uint8)
    pixels[0, 1, 1:3] = 255
    once = Fit(None, centre=True)(pixels)
    assert (once != pixels).any()
    np.testing.assert_array_equal(Fit(None, centre=True)(once), once)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (4097, 5)])
def test_sides_that_are_not_allowed(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"--size {size[0]}x{size[1]}: choose sides from 1"):
        Fit(size, centre=False)
