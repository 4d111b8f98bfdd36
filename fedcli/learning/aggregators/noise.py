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

    def add(self, round_num: int, scale: float, total: Floats) -> None:
        """Adds the noise of the round after `round_num` rounds.

        Args:
            round_num: Rounds completed.
            scale: The factor of the noise.
            total: The sum, float64 [num_params], which is changed in place.
        """
        ...


class FreshNoise:
    """Independent standard normal noise in each round."""

    def __init__(self, seed: int) -> None:
        """Takes the run's seed."""
        self._seed = seed

    def add(self, round_num: int, scale: float, total: Floats) -> None:
        """See `NoiseSource`."""
        native.add_normal(_key(self._seed, round_num, 0), scale, total)


class TreeNoise:
    """Tree noise: each round adds the change of the noise of the sum over the rounds so far.

    The first t rounds of a tree are divided into complete groups of 1, 2, 4, ... rounds. Each group
    has a standard normal value, and their sum is the noise N_t of the first t rounds. With
    `efficient`, a group of 2^level rounds also uses the values of the two halves inside it: v =
    (own + (left + right) / 2) / (2 - 2^-level) (Honaker, "Efficient Use of Differentially Private
    Binary Trees", 2015). A round adds N_t - N_(t-1); the first one after a restart adds N_1 of the
    next tree.

    The values of the current groups are kept between consecutive rounds. After a jump, as when a
    run is resumed, they are drawn again.
    """

    def __init__(self, seed: int, restart_every: int, efficient: bool) -> None:
        """Takes the run's seed and the rounds of a tree, at least 1."""
        self._seed = seed
        self._restart_every = restart_every
        self._efficient = efficient
        self._num_rounds = 0  # the number of rounds to which `_groups` belongs
        self._groups: dict[int, Floats] = {}  # the values of the groups by level

    def add(self, round_num: int, scale: float, total: Floats) -> None:
        """See `NoiseSource`."""
        num_params = len(total)
        if round_num != self._num_rounds:
            self._num_rounds = round_num - round_num % self._restart_every
            while self._num_rounds < round_num:
                self._advance(num_params)
        for factor, value in self._advance(num_params):
            total += scale * factor * value

    def _advance(self, num_params: int) -> list[tuple[float, Floats]]:
        """Adds the next round to the tree.

        Returns:
            Pairs of a factor and values, whose products add up to the change of the noise: the new
            group's values minus those of the groups that it replaces.
        """
        if self._num_rounds % self._restart_every == 0:
            self._groups = {}
        changes = []
        level, value = 0, self._own(0, np.zeros(num_params))
        while level in self._groups:
            group = self._groups.pop(level)
            changes.append((-self._weight(level), group))
            below = 0.5 * (group + value) if self._efficient else np.zeros(num_params)
            level += 1
            value = self._own(level, below)
        self._groups[level] = value
        changes.append((self._weight(level), value))
        self._num_rounds += 1
        return changes

    def _own(self, level: int, value: Floats) -> Floats:
        """Adds, in place, the value of the group of 2^level rounds that ends with the next one."""
        native.add_normal(_key(self._seed, self._num_rounds, level), 1.0, value)
        return value

    def _weight(self, level: int) -> float:
        """The factor of a group's value in the noise of the sum."""
        return 1.0 / (2.0 - 0.5**level) if self._efficient else 1.0


def _key(seed: int, round_num: int, level: int) -> StreamKey:
    """Returns the key of the value of the group of 2^level rounds that ends with a round."""
    return stream_key(seed, Purpose.DP_NOISE, round_num=round_num, occurrence=level)
