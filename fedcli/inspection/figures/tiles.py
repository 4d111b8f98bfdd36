"""Converts images to tiles for figures: shrunk, grey or RGB, on a white background."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import ClientDataset, decode
from fedcli.inspection.statistics import MeanImages

TILE = 84  # largest width and height of a tile, in dots

_BLOCK_PIXELS = 4 << 20  # pixels decoded at a time
_NO_IMAGE = 0.94  # the grey of a tile without an example

Tiles = NDArray[np.float64]


def mean_tiles(
    clients: Iterable[ClientDataset], labels: NDArray[np.int64], pixel_shape: tuple[int, ...]
) -> Tiles:
    """Returns the mean tile of each label over all clients; NaN for a label without examples.

    Args:
        clients: The clients, read one at a time.
        labels: The labels, int64 [num_labels], ascending.
        pixel_shape: (H, W) or (H, W, C) of every example.

    Returns:
        float64 [num_labels, h, w] or [num_labels, h, w, 3].
    """
    shape = _tile_shape(pixel_shape)
    means = MeanImages(len(labels), shape)
    for client in clients:
        for tiles, tile_labels in tile_blocks(client):
            places = np.searchsorted(labels, tile_labels)
            is_known = labels[np.minimum(places, len(labels) - 1)] == tile_labels
            means.add(tiles[is_known], places[is_known].astype(np.int32), 1.0, 0.0)
    images = np.full((len(labels), *shape), np.nan)
    for place in np.flatnonzero(means.counts).tolist():
        images[place] = means.image(place)
    return images


def tile_blocks(client: ClientDataset) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Yields a client's images as tiles, as the model sees them, and their labels int32 [k].

    Tiles are float32 [k, h, w] or [k, h, w, 3]; channels that are not RGB are averaged.
    """
    shape = client.pixels.shape[1:]
    step = max(1, _BLOCK_PIXELS // math.prod(shape))
    for first in range(0, len(client), step):
        block = decode(client.pixels[first : first + step], client.scale, client.offset)
        yield as_tiles(block), client.labels[first : first + step]


def on_paper(tiles: NDArray[np.floating], convention: str) -> Tiles:
    """Returns tiles as RGB on white, float64 [k, h, w, 3] from 0 to 1.

    In grey tiles ink is dark; RGB tiles keep their colours. If values exceed the range 0 to 1, all
    values are rescaled.

    Args:
        tiles: [k, h, w] or [k, h, w, 3]; NaN: no image.
        convention: The meaning of 1.0: "ink" or "background".
    """
    present = tiles[~np.isnan(tiles)]
    lowest, highest = float(present.min(initial=0.0)), float(present.max(initial=1.0))  # float64
    ink = (tiles.astype(np.float64) - lowest) / (highest - lowest)
    if convention == "background":
        ink = 1.0 - ink
    rgb = ink if tiles.ndim == 4 else np.repeat((1.0 - ink)[..., None], 3, axis=3)
    return np.where(np.isnan(rgb), _NO_IMAGE, rgb)


def as_tiles(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns images [k, H, W] or [k, H, W, C] as tiles: [k, h, w], or [k, h, w, 3] of RGB."""
    if images.ndim == 4 and images.shape[3] != 3:
        images = images.mean(axis=3)
    down, across = _shrinking(images.shape[1:])
    if (down, across) == (1, 1):
        return images
    height, width = images.shape[1] // down, images.shape[2] // across
    cut = images[:, : height * down, : width * across]
    parts = cut.reshape(len(cut), height, down, width, across, *cut.shape[3:])
    small: NDArray[np.float32] = parts.mean(axis=(2, 4))
    return small


def _tile_shape(pixel_shape: tuple[int, ...]) -> tuple[int, ...]:
    down, across = _shrinking(pixel_shape)
    channels = (3,) if pixel_shape[2:] == (3,) else ()
    return (pixel_shape[0] // down, pixel_shape[1] // across, *channels)


def _shrinking(pixel_shape: tuple[int, ...]) -> tuple[int, int]:
    """The factors by which rows and columns are shrunk."""
    factor = -(-max(pixel_shape[:2]) // TILE)
    return min(factor, pixel_shape[0]), min(factor, pixel_shape[1])
