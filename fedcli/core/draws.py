"""Random draws from one stream: uniform, normal, gamma, Dirichlet, permutations.

Equal keys give equal draws. The last bit may differ between processors, because logarithms and
cosines are NumPy's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import StreamKey

# Marsaglia and Tsang's method rejects less than 1 draw in 20, so 64 tries always suffice.
_GAMMA_TRIES = 64
_LEAST_SHAPE = 1e-300  # its reciprocal times a logarithm is still finite
_BLOCK_WORDS = 1 << 20  # words drawn from one key: 8 MiB
_NEXT_BLOCK = 1 << 32  # added to the purpose of a key; far above every seeds.Purpose


class Stream:
    """Draws from the stream of a key; each call continues where the last one stopped.

    The core can only draw from the beginning of a stream. A long stream is therefore made of
    several: block b of 2^20 words is the beginning of the stream with purpose p + 2^32 b, which has
    no other use. At most one block is in memory.
    """

    def __init__(self, key: StreamKey) -> None:
        """Starts at the beginning of the stream of a key."""
        self._key = key
        self._block = np.empty(0, np.uint64)  # the words of the current block that are drawn so far
        self._num_used = 0  # the number of these words that were returned

    def words(self, n: int) -> NDArray[np.uint64]:
        """Returns the next words of the stream: uint64 [n]."""
        words = np.empty(n, np.uint64)
        done = 0
        while done < n:
            if self._num_used == _BLOCK_WORDS:
                self._key = self._key._replace(purpose=self._key.purpose + _NEXT_BLOCK)
                self._block, self._num_used = np.empty(0, np.uint64), 0
            last = min(self._num_used + n - done, _BLOCK_WORDS)
            if last > len(self._block):  # doubling keeps the number of draws from the start small
                size = min(max(last, 2 * len(self._block)), _BLOCK_WORDS)
                self._block = native.random_u64(self._key, size)
            taken = self._block[self._num_used : last]
            words[done : done + len(taken)] = taken
            self._num_used, done = last, done + len(taken)
        return words

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Returns numbers in [0, 1), multiples of 2^-53: float64 [n]."""
        numbers: NDArray[np.float64] = (self.words(n) >> np.uint64(11)) * np.float64(2.0**-53)
        return numbers

    def integers(self, bound: int | NDArray[np.int64], n: int) -> NDArray[np.int64]:
        """Returns integers from 0 to `bound` - 1: int64 [n].

        Their probabilities are equal to within bound / 2^53.

        Args:
            bound: From 1 to 2^53; a number for all draws, or an array with a number for each.
            n: The number of draws.
        """
        numbers: NDArray[np.int64] = (self.uniform(n) * bound).astype(np.int64)
        return numbers

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Returns 0 to n - 1 in random order: int64 [n]."""
        return np.argsort(self.words(n), kind="stable")

    def normal(self, n: int) -> NDArray[np.float64]:
        """Returns standard normal draws, by Box and Muller's method: float64 [n]."""
        num_pairs = -(-n // 2)
        uniform = self.uniform(2 * num_pairs).reshape(2, num_pairs)
        radius = np.sqrt(-2.0 * np.log1p(-uniform[0]))
        angle = 2.0 * np.pi * uniform[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]

    def gamma(
        self, shape: float | NDArray[np.float64], n: int | None = None
    ) -> NDArray[np.float64]:
        """Returns gamma draws with scale 1, by Marsaglia and Tsang's method (2000): float64 [n].

        Args:
            shape: At least 0 (0 gives 0); a number for all draws, or float64 [n].
            n: The number of draws; by default one for each shape.
        """
        each = np.ravel(np.asarray(shape, np.float64))
        return np.exp(self._log_gamma(np.broadcast_to(each, len(each) if n is None else n)))

    def dirichlet(self, alpha: NDArray[np.float64], rows: int = 1) -> NDArray[np.float64]:
        """Returns Dirichlet draws, shares that sum to 1 in each row: float64 [rows, k].

        Logarithms of gamma draws are used, because they do not underflow for tiny alphas.

        Args:
            alpha: float64 [k], at least 0 and not all 0; an alpha of 0 gives share 0.
            rows: The number of draws.
        """
        logs = self._log_gamma(np.tile(alpha, rows)).reshape(rows, len(alpha))
        shares: NDArray[np.float64] = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def _log_gamma(self, shape: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns logarithms of gamma draws, float64 [n].

        For a shape a < 1, a draw with shape a + 1 is multiplied by U^(1 / a), where U is uniform.
        """
        is_small = shape < 1.0
        logs = np.log(self._gamma_from_1(np.where(is_small, shape + 1.0, shape)))
        small = np.maximum(shape[is_small], _LEAST_SHAPE)
        logs[is_small] += np.log1p(-self.uniform(len(small))) / small
        logs[shape == 0.0] = -np.inf
        return logs

    def _gamma_from_1(self, shape: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns gamma draws for shapes of at least 1, float64 [n]."""
        d = shape - 1.0 / 3.0
        c = 1.0 / np.sqrt(9.0 * d)
        numbers = d.copy()
        pending = np.arange(len(shape))
        for _ in range(_GAMMA_TRIES):
            if not len(pending):
                break
            x = self.normal(len(pending))
            v = (1.0 + c[pending] * x) ** 3
            log_uniform = np.log1p(-self.uniform(len(pending)))
            is_kept = v > 0.0
            v = np.where(is_kept, v, 1.0)
            is_kept &= log_uniform < 0.5 * x * x + d[pending] * (1.0 - v + np.log(v))
            kept = pending[is_kept]
            numbers[kept] = d[kept] * v[is_kept]
            pending = pending[~is_kept]
        return numbers
