"""How MixUp mixes a batch, number by number: a reference of csrc/client/mixup.c, random/rng.c."""

from __future__ import annotations

import math

import numpy as np

from fedcli.core.seeds import StreamKey

VISIT_BLOCKS = 1 << 20  # blocks of the stream for each visit


class Draws:
    """Draws from a stream, beginning with the first block of a visit."""

    def __init__(self, key: StreamKey, visit: int) -> None:
        counter = visit * VISIT_BLOCKS + (key.round_num << 64) + (key.purpose << 128)
        counter += key.occurrence << 192
        # NumPy increments its counter before it draws, so it starts one lower.
        words = key.seed + (key.client << 64)
        self._philox = np.random.Philox(counter=(counter - 1) % (1 << 256), key=words)
        self._half: int | None = None  # the unread upper half of a word

    def uniform(self) -> float:
        self._half = None
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53

    def normal(self) -> float:
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())

    def below(self, bound: int) -> int:
        while True:
            product = self._bits() * bound
            if product % (1 << 32) >= (1 << 32) % bound:
                return product >> 32

    def _bits(self) -> int:
        if self._half is not None:
            bits, self._half = self._half, None
            return bits
        word = int(self._philox.random_raw())
        self._half = word >> 32
        return word & 0xFFFFFFFF

    def _gamma(self, shape: float) -> float:
        """Marsaglia and Tsang 2000, for shapes from 1."""
        d = shape - 1 / 3
        while True:
            normal, uniform = self.normal(), 1 - self.uniform()
            v = (1 + normal / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(uniform) < normal**2 / 2 + d - d * v + d * math.log(v):
                return d * v

    def log_gamma(self, shape: float) -> float:
        if shape >= 1:
            return math.log(self._gamma(shape))
        larger = self._gamma(shape + 1)
        return math.log(larger) + math.log(1 - self.uniform()) / shape


def mixing(
    alpha: float, key: StreamKey, first_visit: int, num_rows: int
) -> tuple[float, list[int]]:
    """Returns an image's share in its mix (equal in the whole batch), and each row's partner."""
    draws = Draws(key, first_visit)
    first, second = draws.log_gamma(alpha), draws.log_gamma(alpha)
    share = 1 / (1 + math.exp(min(second - first, 700)))
    partners = list(range(num_rows))
    for left in range(num_rows, 1, -1):
        chosen = draws.below(left)
        partners[left - 1], partners[chosen] = partners[chosen], partners[left - 1]
    return share, partners
