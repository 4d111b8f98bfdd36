"""The codecs of compression in float64 NumPy, written plainly from the papers' formulas.

Each function takes one vector x, float64 [P], and `words`, the uint32 words that the core draws, in
order; it returns the decoded vector. Scales are rounded to float32, as in the payload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import StreamKey

Vector = NDArray[np.float64]
Words = NDArray[np.uint32]
Shapes = Sequence[tuple[int, ...]]

# Lloyd and Max's centroids of the standard normal distribution, the positive half.
CENTROIDS = {
    1: [0.7978845608],
    2: [0.4527800399, 1.5104176087],
    3: [0.2450941631, 0.7560052490, 1.3439092614, 2.1519456699],
    4: [
        *(0.1283950167, 0.3880482345, 0.6567589958, 0.9423402689),
        *(1.2562309480, 1.6180460517, 2.0690167303, 2.7325888041),
    ],
}


def words_of(key: StreamKey, num: int) -> Words:
    """Returns a stream's first words: of each 64-bit value first the lower, then the upper half."""
    return native.random_u64(key, -(-num // 2)).view(np.uint32)[:num]


def coins(words: Words) -> Vector:
    """Returns words as numbers in [0, 1)."""
    return words.astype(np.float64) / 2.0**32


def tensors(x: Vector, shapes: Shapes) -> Iterator[slice]:
    """Yields the slice of each tensor in the vector."""
    first = 0
    for shape in shapes:
        yield slice(first, first + math.prod(shape))
        first += math.prod(shape)


def round_up(place: Vector, coin: Vector) -> Vector:
    """Returns positions on a grid, rounded up where the coin is below the fraction, else down."""
    below = np.floor(place)
    return below + (coin < place - below)


def uniform(x: Vector, words: Words, shapes: Shapes, bits: int) -> Vector:
    made = np.empty_like(x)
    for part in tensors(x, shapes):
        low, high = x[part].min(), x[part].max()
        step = (high - low) / (2**bits - 1)
        place = (x[part] - low) / step if step else np.zeros(len(x[part]))
        made[part] = low + step * round_up(place, coins(words[part]))
    return made


def fixed_step(x: Vector, words: Words, step: float, bits: int) -> Vector:
    half = 2 ** (bits - 1)
    multiples = round_up(np.clip(x / step, -half, half - 1), coins(words[: len(x)]))
    return step * multiples


def qsgd(x: Vector, words: Words, levels: int) -> Vector:
    norm = float(np.float32(np.sqrt(np.sum(x**2))))
    if not norm:
        return np.zeros_like(x)
    rounded = round_up(np.abs(x) * levels / norm, coins(words[: len(x)]))
    return np.sign(x) * norm / levels * np.minimum(rounded, levels)


def terngrad(x: Vector, words: Words, shapes: Shapes, clip: float) -> Vector:
    made = np.empty_like(x)
    for part in tensors(x, shapes):
        clipped = np.minimum(np.abs(x[part]), clip * x[part].std() if clip else np.inf)
        scale = float(np.float32(clipped.max()))
        made[part] = scale * np.sign(x[part]) * (coins(words[part]) * scale < np.abs(x[part]))
    return made


def sign(x: Vector, shapes: Shapes) -> Vector:
    made = np.empty_like(x)
    for part in tensors(x, shapes):
        made[part] = np.mean(np.abs(x[part])) * np.where(x[part] < 0, -1.0, 1.0)
    return made


def top_k(x: Vector, k: int) -> Vector:
    made = np.zeros_like(x)
    chosen = np.argsort(-np.abs(x), kind="stable")[:k]
    made[chosen] = x[chosen]
    return made


def hadamard(x: Vector) -> Vector:
    """Returns H x / sqrt(d), where H[i, j] = (-1)^(number of bits that are 1 in both i and j)."""
    made = x.copy()
    half = 1
    while half < len(x):
        pairs = made.reshape(-1, 2, half)
        made = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        half *= 2
    return made / math.sqrt(len(x))


def _blocks(x: Vector, words: Words, block: int) -> Iterator[tuple[Vector, Vector]]:
    """Yields each block of x, the last one padded with zeros, and the signs of its rotation."""
    padded: Vector = np.concatenate([x, np.zeros(-len(x) % block)])
    per_block = -(-block // 32)
    for number, part in enumerate(padded.reshape(-1, block)):
        own = words[number * per_block : (number + 1) * per_block]
        bits = np.unpackbits(own.view(np.uint8), bitorder="little")[:block]
        yield part, 1.0 - 2.0 * bits.astype(np.float64)


def drive(x: Vector, words: Words, block: int, *, is_unbiased: bool) -> Vector:
    made = []
    for part, signs in _blocks(x, words, block):
        z = hadamard(signs * part)
        total = np.sum(np.abs(z))
        scale = (np.sum(part**2) / total if is_unbiased else total / block) if total else 0.0
        made.append(signs * hadamard(scale * np.where(z < 0, -1.0, 1.0)))
    return np.concatenate(made)[: len(x)]


def eden(x: Vector, words: Words, block: int, bits: int) -> Vector:
    centroids = np.array(CENTROIDS[bits])
    made = []
    for part, signs in _blocks(x, words, block):
        z = hadamard(signs * part)
        norm = np.sqrt(np.sum(part**2))
        normal = np.abs(z) * math.sqrt(block) / norm if norm else z
        nearest = centroids[np.argmin(np.abs(normal[:, None] - centroids), axis=1)]
        c = np.where(z < 0, -nearest, nearest)
        scale = norm**2 / np.sum(c * z) if norm else 0.0
        made.append(signs * hadamard(scale * c))
    return np.concatenate(made)[: len(x)]


def sketch(x: Vector, words: Words, depth: int, width: int) -> Vector:
    table = words[: len(x) * depth].reshape(len(x), depth)
    cells = (table.astype(np.uint64) * np.uint64(width) >> np.uint64(32)).astype(np.int64)
    signs = 1.0 - 2.0 * (table & 1)
    guesses = []
    for row in range(depth):
        sums = np.bincount(cells[:, row], signs[:, row] * x, minlength=width)
        guesses.append(signs[:, row] * sums[cells[:, row]])
    made: Vector = np.median(guesses, axis=0)
    return made
