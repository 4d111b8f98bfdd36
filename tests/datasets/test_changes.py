from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.partitions import changes
from fedcli.datasets.partitions.partitioned_split import Change
from fedcli.errors import ConfigError
from fedcli.settings import tables
from fedcli.settings.options import resolve

IDS = ["a", "b", "c", "d", "e"]


def build(name: str, ids: Sequence[str] = IDS, num_classes: int = 10, **options: Any) -> Change:
    resolved = resolve(tables.find_partition(name), options)
    (change,) = changes.build([name], resolved, ids, np.arange(num_classes))
    return change


def client(
    client_id: str, pixels: np.ndarray, scale: float = 1 / 255, offset: float = 0.0
) -> ClientDataset:
    labels = np.zeros(len(pixels), np.int32)
    return ClientDataset(client_id, pixels, labels, scale, offset, "a.npz")


def images(seed: int, shape: tuple[int, ...] = (7, 6, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_every_change_has_code_under_its_name() -> None:
    for name in tables.CHANGES:
        assert isinstance(build(name), Change)


# --- rotation ------------------------------------------------------------------------------------


def test_many_images_are_turned_as_each_alone(seed: int) -> None:
    pixels = images(seed, (600, 4, 4))
    alone = [changes.turn(pixels[index : index + 1], 30.0) for index in range(600)]
    assert np.array_equal(changes.turn(pixels, 30.0), np.concatenate(alone))


def test_the_memory_of_a_turn_does_not_grow_with_the_client() -> None:
    pixels = np.zeros((20_000, 28, 28), np.uint8)
    tracemalloc.start()
    try:
        changes.turn(pixels, 30.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * pixels.nbytes  # room for the result and the arrays of one block


@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 6, 6, 3), (0, 6, 6)])
@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0, 360.0, -90.0])
def test_quarter_turns_are_exact(shape: tuple[int, ...], angle: float, seed: int) -> None:
    pixels = images(seed, shape)
    turned = changes.turn(pixels, angle)
    assert np.array_equal(turned, np.rot90(pixels, int(angle // 90) % 4, axes=(1, 2)))
    assert turned.flags.c_contiguous


def test_a_half_turn_of_an_oblong_image_is_exact(seed: int) -> None:
    pixels = images(seed, (3, 4, 9))
    assert np.array_equal(changes.turn(pixels, 180.0), pixels[:, ::-1, ::-1])


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("angle", [90.0, 180.0, 270.0])
def test_bilinear_rotation_agrees_with_quarter_turns(size: int, angle: float, seed: int) -> None:
    pixels = images(seed, (4, size, size)).astype(np.float32)
    near = changes.turn(pixels, angle + 1e-7)
    assert near == pytest.approx(changes.turn(pixels, angle), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_corners_show_the_background_of_any_grey_level(dtype: type) -> None:
    for background, ink in [(0, 200), (255, 3)]:
        pixels: Any = np.full((1, 9, 9), background, dtype)
        pixels[0, 3:6, 3:6] = ink
        pixels[0, 4, 0] = ink  # a stroke may touch the border
        turned = changes.turn(pixels, 45.0)
        assert turned.dtype == dtype
        assert turned[0, 0, 0] == turned[0, 8, 8] == turned[0, 0, 8] == background
        assert turned[0, 4, 4] == ink
        assert turned.min() >= min(background, ink)
        assert turned.max() <= max(background, ink)


def test_a_turn_by_45_degrees_by_hand() -> None:
    """A dot one pixel right of the centre moves up and right, to a place between four pixels."""
    pixels = np.zeros((1, 5, 5), np.float32)
    pixels[0, 2, 3] = 1.0
    turned = changes.turn(pixels, 45.0)[0]
    assert turned[1, 3] == pytest.approx(2 - 2**0.5, abs=1e-6)
    assert turned[3, 3] == pytest.approx(0.0, abs=1e-6)
    assert turned[2, 3] == pytest.approx((2**-0.5) * (1 - 2**-0.5), abs=1e-6)


def test_client_j_has_angle_j_mod_m(seed: int) -> None:
    pixels = images(seed)
    change = build("feature-rotation", angles=[0, 90])
    for index, client_id in enumerate(IDS):
        turned = change.client(client(client_id, pixels))
        assert np.array_equal(turned.pixels, np.rot90(pixels, index % 2, axes=(1, 2)))
        assert (turned.scale, turned.offset) == (1 / 255, 0.0)
    lone = build("feature-rotation", angles=180)
    assert np.array_equal(lone.client(client("a", pixels)).pixels, pixels[:, ::-1, ::-1])


@pytest.mark.parametrize("angles", [[], [400], ["x"], "north", [float("nan")], [0] * 1001, [True]])
def test_wrong_angles_are_refused(angles: Any) -> None:
    with pytest.raises(ConfigError, match=r"^feature-rotation option angles"):
        build("feature-rotation", angles=angles)


# --- noise on pixels -----------------------------------------------------------------------------


def test_noise_grows_from_client_to_client(seed: int) -> None:
    pixels = images(seed, (300, 8, 8))
    change = build("feature-noise", std=0.4, seed=seed)
    for index, client_id in enumerate(IDS):
        before = client(client_id, pixels)
        after = change.client(before)
        assert after.pixels.dtype == np.float32
        assert (after.scale, after.offset) == (1.0, 0.0)
        noise = after.pixels - before.images()
        # The tolerances are five standard errors. There are 19,200 pixels; 138 is the square root.
        assert noise.mean() == pytest.approx(0.0, abs=5 * 0.1 * index / 138 + 1e-9)
        assert noise.std() == pytest.approx(0.1 * index, rel=0.03, abs=1e-9)
    assert np.array_equal(before.pixels, pixels), "the table must not change"


def test_noise_is_a_function_of_client_seed_and_split(seed: int) -> None:
    pixels = images(seed, (300, 4, 4))
    change = build("feature-noise", std=0.4, seed=1)
    (for_test,) = changes.for_testing([change])
    noisy = change.client(client("c", pixels)).pixels
    assert np.array_equal(noisy, change.client(client("c", pixels)).pixels)
    others = [
        for_test.client(client("c", pixels)).pixels,
        build("feature-noise", std=0.4, seed=2).client(client("c", pixels)).pixels,
        build("feature-noise", ["b", "c", "d"], std=0.4, seed=1).client(client("c", pixels)).pixels,
    ]
    assert not any(np.array_equal(noisy, other) for other in others[:2])
    assert np.array_equal(noisy, others[2]), "noise depends only on the position"


def test_no_block_of_images_repeats_another_s_noise() -> None:
    noise = build("feature-noise").client(client("e", np.zeros((600, 4, 4), np.uint8))).pixels
    assert not np.array_equal(noise[:88], noise[512:])
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_noise_does_not_change_the_float_pixels_of_the_table(seed: int) -> None:
    pixels = images(seed).astype(np.float32)
    kept = pixels.copy()
    build("feature-noise").client(client("e", pixels, 1.0))
    assert np.array_equal(pixels, kept)


def test_a_lone_client_has_the_full_deviation(seed: int) -> None:
    pixels = np.zeros((100, 10, 10), np.uint8)
    noisy = build("feature-noise", ["a"], std=0.2).client(client("a", pixels))
    assert noisy.pixels.std() == pytest.approx(0.2, rel=0.05)


# --- inversion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        (np.uint8, 1 / 255, 0.0),
        (np.uint8, -1 / 255, 1.0),
        (np.uint8, 1 / 128, -0.5),
        (np.float32, 1.0, 0.0),
    ],
)
def test_inverted_pixels_are_one_minus_themselves(
    dtype: type, scale: float, offset: float, seed: int
) -> None:
    pixels: Any = images(seed).astype(dtype)
    before = client("b", pixels, scale, offset)
    after = build("feature-inversion").client(before)
    # Decoding rounds to float32: values of up to 1 from uint8, and of up to 256 from float32.
    tolerance = 2e-7 if dtype == np.uint8 else 4e-5
    assert after.images() == pytest.approx(1.0 - before.images(), abs=tolerance)
    if dtype == np.uint8 and abs(scale) == 1 / 255:
        assert after.pixels.dtype == np.uint8, "a store of these pixels must stay small"
        assert (after.scale, after.offset) == (scale, offset)


@pytest.mark.parametrize(
    ("share", "inverted"), [(0.5, "bd"), (0.0, ""), (1.0, "abcde"), (0.2, "e"), (0.4, "ce")]
)
def test_a_share_of_the_clients_is_inverted(share: float, inverted: str, seed: int) -> None:
    change = build("feature-inversion", share=share)
    pixels = images(seed)
    for client_id in IDS:
        is_same = np.array_equal(change.client(client(client_id, pixels)).pixels, pixels)
        assert is_same == (client_id not in inverted)


# --- noise in labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_symmetric_noise_has_its_rate_and_every_other_class(rate: float, seed: int) -> None:
    labels = np.full(40_000, 3, np.int32)
    noisy = build("label-noise", rate=rate, seed=seed).labels("a", labels)
    five = 5 * (rate * (1 - rate) / 40_000) ** 0.5
    assert (noisy != 3).mean() == pytest.approx(rate, abs=five)
    counts = np.bincount(noisy, minlength=10)
    others = np.delete(counts, 3)
    assert others == pytest.approx(np.full(9, rate * 40_000 / 9), abs=5 * (rate * 4500) ** 0.5)
    assert noisy.dtype == np.int32


def test_pair_noise_goes_to_the_next_class(seed: int) -> None:
    labels = (np.arange(20_000) % 10).astype(np.int32)
    noisy = build("label-noise", rate=0.4, kind="pair", seed=seed).labels("a", labels)
    changed = noisy != labels
    assert np.array_equal(noisy[changed], (labels[changed] + 1) % 10)
    assert changed.mean() == pytest.approx(0.4, abs=0.02)


@given(st.integers(0, 60), st.integers(2, 62), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99))
def test_noisy_labels_are_labels(num: int, num_classes: int, rate: float, seed: int) -> None:
    labels = (np.arange(num) % num_classes).astype(np.int32)
    noisy = build("label-noise", num_classes=num_classes, rate=rate, seed=seed).labels("x", labels)
    assert noisy.shape == labels.shape
    assert ((noisy >= 0) & (noisy < num_classes)).all()
    if rate in (0.0, 1.0):
        assert ((noisy == labels) == (rate == 0.0)).all()


def test_label_noise_is_keyed_example_by_example(seed: int) -> None:
    labels = (np.arange(500) % 10).astype(np.int32)
    change = build("label-noise", rate=0.5, seed=seed)
    noisy = change.labels("a", labels)
    assert np.array_equal(change.labels("a", labels[:100]), noisy[:100])
    assert not np.array_equal(change.labels("b", labels), noisy)
    other = build("label-noise", rate=0.5, seed=seed + 1)
    assert not np.array_equal(other.labels("a", labels), noisy)


def test_test_labels_do_not_change() -> None:
    made = [build("label-noise"), build("feature-rotation")]
    assert changes.for_testing(made) == (made[1],)


def test_label_noise_needs_two_classes() -> None:
    with pytest.raises(ConfigError, match=r"^--partition label-noise: the data have one class"):
        build("label-noise", num_classes=1)


@pytest.mark.parametrize("shape", [(0, 5, 4), (0, 5, 4, 3)])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 180.0])
def test_zero_images_can_be_rotated(shape: tuple[int, ...], angle: float) -> None:
    for dtype in (np.uint8, np.float32):
        pixels: Any = np.zeros(shape, dtype)
        assert changes.turn(pixels, angle).shape[0] == 0
