"""The noise that each round of a run adds, a function of the seed and the round."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, stream_key

Floats = NDArray[np.float64]


class NoiseSource(Protocol):
    """The noise that a round adds to a sum."""

    def mean(
        self, round_num: int, scale: float, total: Floats, divisor: float, num_threads: int = 1
    ) -> NDArray[np.float32]:
        """Returns (total + scale * noise of the round) / divisor, float32 [num_params].

        Args:
            round_num: Rounds completed before this one.
            scale: The factor of the noise.
            total: The sum, float64 [num_params].
            divisor: The divisor of the noised sum, above 0.
            num_threads: The number of threads, which changes no result; see `native.Helpers`.
        """
        ...


class FreshNoise:
    """Independent standard normal noise in each round."""

    def __init__(self, seed: int) -> None:
        """Takes the run's seed."""
        self._seed = seed

    def mean(
        self, round_num: int, scale: float, total: Floats, divisor: float, num_threads: int = 1
    ) -> NDArray[np.float32]:
        """See `NoiseSource`."""
        noise = native.Noise([_key(self._seed, round_num, 0)], np.array([scale]))
        return native.noised_mean(total, noise, divisor, num_threads)


class TreeNoise:
    """Tree noise: after round t the sum of all rounds has noise N_t; round t adds N_t - N_(t-1).

    The first t rounds of a tree are divided into complete groups of 1, 2, 4, ... rounds. Each group
    has a standard normal value; N_t is the sum of the values of these groups. With `efficient`, the
    value of a group is its standard normal value plus half the sum of the values of its two halves,
    and N_t is the sum of the values of groups of 2^level rounds, each divided by 2 - 2^-level
    (Honaker, "Efficient Use of Differentially Private Binary Trees", 2015). The first round after a
    restart adds N_1 of the next tree.

    The values of the current groups are kept between consecutive rounds. They are drawn again if a
    round does not follow the last one, for example when a run is resumed.
    """

    def __init__(self, seed: int, restart_every: int, efficient: bool) -> None:
        """Takes the run's seed and the number of rounds of a tree, at least 1."""
        self._seed = seed
        self._restart_every = restart_every
        self._efficient = efficient
        self._num_rounds = 0  # the number of rounds to which `_groups` belongs
        self._groups = np.empty((0, 0))  # [levels, num_params]: the current group of each level

    def mean(
        self, round_num: int, scale: float, total: Floats, divisor: float, num_threads: int = 1
    ) -> NDArray[np.float32]:
        """See `NoiseSource`."""
        shape = self._restart_every.bit_length(), len(total)
        if round_num != self._num_rounds or self._groups.shape != shape:
            self._num_rounds = round_num - round_num % self._restart_every
            self._groups = np.empty(shape)
            while self._num_rounds < round_num:
                native.noised_mean(total, self._next(scale), divisor, num_threads)
        return native.noised_mean(total, self._next(scale), divisor, num_threads)

    def _next(self, scale: float) -> native.Noise:
        """Adds the next round to the tree; returns the change of the noise, times a scale."""
        # Like a binary counter: the round replaces the group of level l if all lower bits of the
        # number of earlier rounds are 1.
        before = self._num_rounds % self._restart_every
        levels = range((before ^ before + 1).bit_length())
        keys = [_key(self._seed, self._num_rounds, level) for level in levels]
        factors = scale * np.array([self._weight(level) for level in levels])
        self._num_rounds += 1
        return native.Noise(keys, factors, self._groups, self._efficient)

    def _weight(self, level: int) -> float:
        """The factor of a group's value in the noise of the sum."""
        return 1.0 / (2.0 - 0.5**level) if self._efficient else 1.0


def _key(seed: int, round_num: int, level: int) -> StreamKey:
    """Returns the key for a group's value; the 2^level rounds of the group end with this round."""
    return stream_key(seed, Purpose.DP_NOISE, round_num=round_num, occurrence=level)
