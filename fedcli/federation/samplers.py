"""Samplers, which draw the cohort of a round as indices into the population.

A draw depends only on the seed and the round, so a resumed run draws the same cohorts as an
uninterrupted one.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.federation import tff_sampling
from fedcli.lazy import load
from fedcli.settings.options import Value

# The largest population of a sampler that stores a number per client: at 8 bytes each, 80 MB.
MAX_LISTED = 10_000_000


_NO_OPTIONS: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True)
class Sampler(abc.ABC):
    """Draws cohorts.

    Attributes:
        population: Number of clients, at least `size`.
        size: Number of clients in a cohort, at least 1.
        seed: The run's seed.
    """

    population: int
    size: int
    seed: int

    @abc.abstractmethod
    def indices(self, round_num: int) -> list[int]:
        """Returns the cohort after `round_num` rounds."""

    def draw_below(self, bound: int, round_num: int) -> list[int]:
        """Returns `size` independent integers from 0 to `bound` - 1, all equally likely.

        The bias is below bound / 2**64.
        """
        key = stream_key(self.seed, Purpose.COHORT, round_num=round_num)
        return [draw * bound >> 64 for draw in native.random_u64(key, self.size).tolist()]


class Uniform(Sampler):
    """Every set of `size` clients is equally likely."""

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices, ascending. Time and memory are proportional to the cohort."""
        return sample_indices(self.population, self.size, self.seed, Purpose.COHORT, round_num)


class Tff(Sampler):
    """The cohort that TFF draws in the same round; TFF's first round has number 1."""

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices in TFF's order; shuffles the whole population."""
        return tff_sampling.choose(self.population, self.size, self.seed, round_num + 1)


class WithReplacement(Sampler):
    """Each place in the cohort goes to any client, independently of the other places."""

    def indices(self, round_num: int) -> list[int]:
        """Returns sorted indices, possibly repeated.

        Time and memory are proportional to the cohort.
        """
        return sorted(self.draw_below(self.population, round_num))


class Poisson(Sampler):
    """Each client takes part with probability size / population, independently of the others.

    Privacy amplification by subsampling assumes this scheme. The number of clients varies and may
    be 0.
    """

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices, ascending.

        It draws the gaps between chosen clients, which are geometrically distributed. Time and
        memory are therefore proportional to the cohort.
        """
        if self.size == self.population:
            return list(range(self.population))
        log_absent = math.log1p(-self.size / self.population)
        stream = Stream(stream_key(self.seed, Purpose.COHORT, round_num=round_num))
        num_draws = self.size + 3 * math.isqrt(self.size) + 1  # rarely too few
        chosen: list[int] = []
        last = -1
        while last < self.population:
            passed_over = np.floor(np.log1p(-stream.uniform(num_draws)) / log_absent)
            places = last + np.cumsum(passed_over.astype(np.int64) + 1)
            chosen.extend(places[places < self.population].tolist())
            last = int(places[-1])
        return chosen


@dataclass(frozen=True)
class Cyclic(Sampler):
    """Cycles through passes over the population, each pass in a new random order.

    After k passes each client has trained k times. A cohort may extend from the end of one pass to
    the start of the next, and then may contain a client twice. (FedJAX
    UniformShuffledClientSampler.)
    """

    # A cache of the order of the most recent pass, because consecutive rounds mostly use the same
    # pass.
    _order: dict[int, NDArray[np.int64]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def indices(self, round_num: int) -> list[int]:
        """Returns sorted indices; keeps the order of one pass in memory, 8 bytes per client."""
        first = round_num * self.size
        chosen: list[int] = []
        while len(chosen) < self.size:
            pass_num, place = divmod(first + len(chosen), self.population)
            rest = self.size - len(chosen)
            chosen.extend(self._pass(pass_num)[place : place + rest].tolist())
        return sorted(chosen)

    def _pass(self, pass_num: int) -> NDArray[np.int64]:
        """Returns the order of the clients in one pass."""
        if pass_num not in self._order:
            key = stream_key(self.seed, Purpose.COHORT, round_num=pass_num)
            order = Stream(key).permutation(self.population)
            self._order.clear()
            self._order[pass_num] = order
        return self._order[pass_num]


@dataclass(frozen=True)
class BySize(Sampler):
    """Each place in the cohort goes to client k with probability n_k / sum n, independently.

    The unweighted mean over the cohort is then an unbiased estimate of the mean over all examples.
    With weights by numbers of examples, these numbers would count twice (Li et al. 2020, arXiv
    1907.02189, scheme I).

    Attributes:
        last_examples: Cumulative sums of n_k, int64 [population]; the last is not 0.
    """

    last_examples: NDArray[np.int64]

    def indices(self, round_num: int) -> list[int]:
        """Returns sorted indices, possibly repeated; never of a client without examples."""
        examples = self.draw_below(int(self.last_examples[-1]), round_num)
        found: list[int] = np.searchsorted(self.last_examples, examples, side="right").tolist()
        return sorted(found)


# The class of each name in tables.SAMPLERS except `fixed`, which samples nothing.
SAMPLERS: Mapping[str, type[Sampler]] = {
    "uniform": Uniform,
    "tff": Tff,
    "with-replacement": WithReplacement,
    "poisson": Poisson,
    "cyclic": Cyclic,
    "by-size": BySize,
}

_LISTING = (Tff, Cyclic, BySize)


def build(
    name: str,
    population: int,
    size: int,
    seed: int,
    num_examples: Callable[[int], int],
    client_ids: Sequence[str] = (),
    options: Mapping[str, Value] = _NO_OPTIONS,
) -> Sampler:
    """Returns the sampler called `name`.

    Args:
        name: A key of `SAMPLERS`, FILE.py or FILE.py:NAME, which is run, or the name of a sampler
            in an installed package.
        population: See `Sampler`.
        size: See `Sampler`.
        seed: See `Sampler`.
        num_examples: Returns the number of examples of the client at an index. `by-size` calls it
            for every client; an own sampler may call it.
        client_ids: The sorted population, for an own sampler; may be generated on demand.
        options: The options of an own sampler.

    Raises:
        ConfigError: The population is too large for this sampler, or no client has examples.
        PartError: The user's file fails, or breaks the contract.
    """
    if name not in SAMPLERS:
        offered = {"client_ids": client_ids, "num_examples": num_examples}
        build_own = load("fedcli.federation.own_samplers:build")
        own: Sampler = build_own(name, population, size, seed, offered, options)
        return own
    sampler = SAMPLERS[name]
    if issubclass(sampler, _LISTING) and population > MAX_LISTED:
        raise ConfigError(
            f"--sampling {name} stores a number per client and supports at most {MAX_LISTED:,} "
            f"clients, not {population:,}; choose uniform"
        )
    if sampler is not BySize:
        return sampler(population, size, seed)
    counts = np.fromiter(map(num_examples, range(population)), np.int64, population)
    last_examples = np.cumsum(counts)
    if not last_examples[-1]:
        raise ConfigError("--sampling by-size: no client has examples; choose another --sampling")
    return BySize(population, size, seed, last_examples)


def sample_indices(
    population: int, count: int, seed: int, purpose: Purpose, round_num: int
) -> list[int]:
    """Returns `count` distinct indices below `population`, sorted; every subset is equally likely.

    This is a partial Fisher-Yates shuffle in O(count) that stores only the positions it swaps. Each
    choice multiplies a 64-bit draw by the number of positions left and shifts it down; the bias is
    below population / 2**64.
    """
    draws = native.random_u64(stream_key(seed, purpose, round_num=round_num), count).tolist()
    moved: dict[int, int] = {}
    chosen = []
    for place, draw in enumerate(draws):
        other = place + (draw * (population - place) >> 64)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return sorted(chosen)
