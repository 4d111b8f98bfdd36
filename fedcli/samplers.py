"""Ways to draw the cohort of a round, as indices into the population; a class each.

What a sampler draws depends on the seed and the round alone, so a resumed run draws what the
straight run draws.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

from fedcli import backend, tff_sampling
from fedcli.errors import ConfigError
from fedcli.seeds import Purpose, stream_key

# Most clients of a scheme that puts the whole population in order: at 8 bytes each, 80 MB.
MAX_ORDERED = 10_000_000


@dataclass(frozen=True)
class Sampler(abc.ABC):
    """Draws cohorts.

    Attributes:
        population: Number of clients, at least `size`.
        size: Clients in a cohort, at least 1.
        seed: The run's seed.
    """

    population: int
    size: int
    seed: int

    @abc.abstractmethod
    def indices(self, round_num: int) -> list[int]:
        """Returns the cohort that is drawn after `round_num` rounds."""


class Uniform(Sampler):
    """Every set of `size` clients is equally likely."""

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices in order; time and memory are those of a cohort."""
        return sample_indices(self.population, self.size, self.seed, Purpose.COHORT, round_num)


class Tff(Sampler):
    """What TFF draws in the round of the same number, of which the first is 1."""

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices in the order TFF draws them; orders the whole population."""
        return tff_sampling.choose(self.population, self.size, self.seed, round_num + 1)


# The code behind each of config.SAMPLINGS but `fixed`, which draws nothing.
SAMPLERS: Mapping[str, type[Sampler]] = {"uniform": Uniform, "tff": Tff}

_ORDERING = (Tff,)


def build(name: str, population: int, size: int, seed: int) -> Sampler:
    """Returns the sampler called `name`.

    Raises:
        ConfigError: It would put too many clients in order.
    """
    sampler = SAMPLERS[name]
    if issubclass(sampler, _ORDERING) and population > MAX_ORDERED:
        raise ConfigError(
            f"--sampling {name} goes through the whole population every time, {population:,} "
            f"clients; it takes {MAX_ORDERED:,} at most; choose uniform"
        )
    return sampler(population, size, seed)


def sample_indices(
    population: int, count: int, seed: int, purpose: Purpose, round_num: int
) -> list[int]:
    """Returns `count` distinct indices below `population`, sorted; every subset equally likely.

    A partial Fisher-Yates shuffle that remembers only the places it has touched: O(count). Each
    choice is a 64-bit draw times the number left, shifted down, whose bias is below
    population / 2**64.
    """
    draws = backend.random_u64(stream_key(seed, purpose, round_num=round_num), count).tolist()
    moved: dict[int, int] = {}
    chosen = []
    for place, draw in enumerate(draws):
        other = place + (draw * (population - place) >> 64)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return sorted(chosen)
