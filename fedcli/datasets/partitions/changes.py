"""Changes to clients' examples: rotated, noisy or inverted images, wrong labels.

`tables.CHANGES` lists the options; `build` makes the changes. A change is a pure function of the
client's id and examples, so clients can be read in any order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import ClientDataset, Pixels
from fedcli.datasets.partitions.partitioned_split import Change
from fedcli.errors import ConfigError
from fedcli.settings.options import Value
from fedcli.settings.shares import rounded_down

_NOISE_IMAGES = 256  # number of consecutive images whose noise comes from one random stream
_TURNED_IMAGES = 256  # images rotated at a time; intermediate arrays are several times as large
_SYMMETRIC = 1e-6  # tolerance for a symmetric range of pixels, which is inverted by 255 - x


@dataclass(frozen=True, eq=False)
class Rotation(Change):
    """Turns the images of client j anticlockwise by `angles[j mod m]`, for m angles.

    Multiples of 180 degrees are exact, and multiples of 90 degrees if the image is square. Other
    angles are interpolated bilinearly about the centre. Pixels from outside the image get the
    median of the image's border, so the background stays the same for either meaning of 1.0. This
    is IFCA's rotated MNIST, whose angles are 0, 90, 180 and 270 degrees.
    """

    client_ids: Sequence[str]
    angles: Sequence[float]

    def client(self, client: ClientDataset) -> ClientDataset:
        """Returns the client with rotated images."""
        angle = self.angles[bisect_left(self.client_ids, client.client_id) % len(self.angles)]
        return replace(client, pixels=turn(client.pixels, angle))


@dataclass(frozen=True, eq=False)
class FeatureNoise(Change):
    """Adds N(0, (std j / (K - 1))^2) to every pixel of client j of K, as float32.

    This is NIID-Bench's noise-based feature skew as in its code: `std` is a standard deviation, and
    pixels may leave the range 0 to 1. A single client has the deviation `std`.
    """

    client_ids: Sequence[str]
    std: float
    seed: int
    is_test: bool

    def client(self, client: ClientDataset) -> ClientDataset:
        """Returns the client with noise on its images."""
        index = bisect_left(self.client_ids, client.client_id)
        last = len(self.client_ids) - 1
        deviation = self.std * index / last if last else self.std
        pixels = client.images()
        if deviation:
            for first in range(0, len(pixels), _NOISE_IMAGES):
                block = pixels[first : first + _NOISE_IMAGES]
                noise = self._stream(client.client_id, first).normal(block.size)
                block += (deviation * noise).reshape(block.shape).astype(np.float32)
        return replace(client, pixels=pixels, scale=1.0, offset=0.0)

    def _stream(self, client_id: str, first: int) -> Stream:
        """The random stream of a block of images.

        The occurrence number is even for train, odd for test.
        """
        occurrence = 2 * (first // _NOISE_IMAGES) + self.is_test
        key = client_key(client_id)
        return Stream(
            stream_key(self.seed, Purpose.FEATURE_NOISE, client=key, occurrence=occurrence)
        )


@dataclass(frozen=True, eq=False)
class Inversion(Change):
    """Turns pixels x into 1 - x for a share of the clients, spread evenly.

    Client j is one of them if floor((j + 1) share) > floor(j share). A share of 0.5 means every
    second client, beginning with the second.
    """

    client_ids: Sequence[str]
    share: float

    def client(self, client: ClientDataset) -> ClientDataset:
        """Returns the client, with inverted pixels if it is one of these clients."""
        index = bisect_left(self.client_ids, client.client_id)
        if rounded_down(self.share, index + 1) == rounded_down(self.share, index):
            return client
        is_symmetric = abs(255.0 * client.scale + 2.0 * client.offset - 1.0) < _SYMMETRIC
        if client.pixels.dtype == np.uint8 and is_symmetric:
            return replace(client, pixels=np.uint8(255) - client.pixels)  # with the same scale
        pixels = np.float32(1.0) - client.images()
        return replace(client, pixels=pixels, scale=1.0, offset=0.0)


@dataclass(frozen=True, eq=False)
class LabelNoise(Change):
    """Changes each train label to another class with probability `rate`.

    "symmetric": each of the other C - 1 classes has the same probability (Patrini et al. 2017; many
    implementations draw from all C, so that for C = 10 a tenth of the noise changes nothing).

    "pair": the label becomes the next class, and the last class becomes the first (Han et al.
    2018).

    Test labels are not changed, so accuracy is measured on true labels.

    Attributes:
        classes: The labels that occur, int64 [C], sorted; new labels are among them.
        rate: The probability that a label changes.
        kind: "symmetric" or "pair".
        seed: Seed of the random numbers.
    """

    classes: NDArray[np.int64]
    rate: float
    kind: str
    seed: int

    def labels(self, client_id: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the labels with noise, int32 [n].

        The k-th label depends only on the seed, the client's id, k and the k-th label.
        """
        stream = Stream(stream_key(self.seed, Purpose.LABEL_NOISE, client=client_key(client_id)))
        drawn = stream.uniform(2 * len(labels)).reshape(-1, 2)
        num_classes = len(self.classes)
        step = 1 + (drawn[:, 1] * (num_classes - 1)).astype(np.int64)
        if self.kind == "pair":
            step[:] = 1
        places = np.searchsorted(self.classes, labels)
        noisy = self.classes[(places + step) % num_classes]
        return np.where(drawn[:, 0] < self.rate, noisy, labels).astype(np.int32)


def build(
    names: Sequence[str],
    options: Mapping[str, Value],
    client_ids: Sequence[str],
    classes: NDArray[np.int64],
) -> tuple[Change, ...]:
    """Returns changes for a train split, in the order of their names.

    Args:
        names: Keys of `tables.CHANGES`.
        options: The options of all these changes, with defaults filled in.
        client_ids: All clients, sorted; client j is `client_ids[j]`.
        classes: The labels that occur, int64 [C], sorted.

    Raises:
        ConfigError: The options do not suit the data.
    """
    if "label-noise" in names and len(classes) < 2:
        raise ConfigError(
            "--partition label-noise: the data have one class, so no label can change; leave it out"
        )
    get: Callable[[str], Any] = options.__getitem__
    builders: dict[str, Callable[[], Change]] = {
        "feature-rotation": lambda: Rotation(client_ids, get("angles")),
        "feature-noise": lambda: FeatureNoise(client_ids, get("std"), get("seed"), is_test=False),
        "feature-inversion": lambda: Inversion(client_ids, get("share")),
        "label-noise": lambda: LabelNoise(classes, get("rate"), get("kind"), get("seed")),
    }
    return tuple(builders[name]() for name in names)


def for_testing(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Returns the changes for the test examples: with other noise, without label noise."""
    return tuple(
        replace(each, is_test=True) if isinstance(each, FeatureNoise) else each
        for each in changes
        if not isinstance(each, LabelNoise)
    )


def turn(pixels: Pixels, angle: float) -> Pixels:
    """Returns images [n, H, W] or [n, H, W, C] rotated anticlockwise by `angle` degrees."""
    quarters, rest = divmod(angle, 90.0)
    if rest == 0.0 and (quarters % 2 == 0.0 or pixels.shape[1] == pixels.shape[2]):
        exact: Any = np.ascontiguousarray(np.rot90(pixels, int(quarters) % 4, axes=(1, 2)))
        return exact  # type: ignore[no-any-return]
    height, width = pixels.shape[1:3]
    # The shape has no -1, which is ambiguous for zero images.
    images = pixels.reshape(len(pixels), height, width, math.prod(pixels.shape[3:]))
    rows, columns = _sources(height, width, np.deg2rad(angle))
    turned = np.empty_like(images)
    for first in range(0, len(images), _TURNED_IMAGES):
        block = slice(first, first + _TURNED_IMAGES)
        mixed = _interpolate(_framed(images[block]), rows, columns)
        turned[block] = np.rint(mixed) if pixels.dtype == np.uint8 else mixed
    return turned.reshape(pixels.shape)


def _sources(
    height: int, width: int, angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The source position of each pixel of a rotated image: rows and columns, float64 [H, W]."""
    down, right = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    rows = right * np.sin(angle) + down * np.cos(angle) + (height - 1) / 2
    columns = right * np.cos(angle) - down * np.sin(angle) + (width - 1) / 2
    return rows, columns


def _framed(images: NDArray[Any]) -> NDArray[Any]:
    """Images [n, H, W, C] padded by one pixel with the median of each image's border."""
    edges = (images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1])
    border = np.sort(np.concatenate(edges, axis=1), axis=1)
    fill = border[:, border.shape[1] // 2]
    num, height, width, channels = images.shape
    framed = np.empty((num, height + 2, width + 2, channels), images.dtype)
    framed[:] = fill[:, None, None, :]
    framed[:, 1:-1, 1:-1] = images
    return framed


def _interpolate(
    framed: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Padded images at positions between pixels, interpolated bilinearly: float32 [n, H, W, C]."""
    height, width = framed.shape[1] - 2, framed.shape[2] - 2
    rows = np.clip(rows + 1.0, 0.0, height + 1.0)
    columns = np.clip(columns + 1.0, 0.0, width + 1.0)
    top, left = (np.minimum(rows, height).astype(int), np.minimum(columns, width).astype(int))
    below = (rows - top).astype(np.float32)[..., None]
    beside = (columns - left).astype(np.float32)[..., None]
    upper = framed[:, top, left] * (1 - beside) + framed[:, top, left + 1] * beside
    lower = framed[:, top + 1, left] * (1 - beside) + framed[:, top + 1, left + 1] * beside
    mixed: NDArray[np.float32] = (upper * (1 - below) + lower * below).astype(np.float32)
    return mixed
