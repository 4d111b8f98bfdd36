"""Ways to draw the cohort of a round, as indices into the population; a class each.

What a sampler draws depends on the seed and the round alone, so a resumed run draws what the
straight run draws.
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

# Most clients of a scheme that holds a number for each client: at 8 bytes each, 80 MB.
MAX_LISTED = 10_000_000


_NO_OPTIONS: Mapping[str, Value] = MappingProxyType({})


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

    def draw_below(self, bound: int, round_num: int) -> list[int]:
        """Returns `size` independent whole numbers from 0 to below `bound`, all equally likely.

        The bias is below bound / 2**64.
        """
        key = stream_key(self.seed, Purpose.COHORT, round_num=round_num)
        return [draw * bound >> 64 for draw in native.random_u64(key, self.size).tolist()]


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


class WithReplacement(Sampler):
    """Each place in the cohort goes to any client, whoever has the others."""

    def indices(self, round_num: int) -> list[int]:
        """Returns indices in order, some perhaps repeated; costs what a cohort costs."""
        return sorted(self.draw_below(self.population, round_num))


class Poisson(Sampler):
    """Each client takes part with chance size / population, whatever the others do.

    This is what the amplification by sampling of differential privacy supposes. The number of
    clients varies, and may be 0.
    """

    def indices(self, round_num: int) -> list[int]:
        """Returns distinct indices in order.

        What is drawn is how many clients are passed over before the next one, a geometric number,
        so that time and memory are those of a cohort.
        """
        if self.size == self.population:
            return list(range(self.population))
        log_absent = math.log1p(-self.size / self.population)
        stream = Stream(stream_key(self.seed, Purpose.COHORT, round_num=round_num))
        num_draws = self.size + 3 * math.isqrt(self.size) + 1  # seldom too few
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
    """A pass deals all clients in random order; the next pass begins where it ends, in a new order.

    So k passes train each client k times. A cohort in which a pass ends takes its other clients
    from the next, and may hold a client twice. (FedJAX UniformShuffledClientSampler.)
    """

    # The last pass that was dealt: a memo, as rounds that follow each other mostly share one.
    _order: dict[int, NDArray[np.int64]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def indices(self, round_num: int) -> list[int]:
        """Returns indices in order; holds the order of one pass, 8 bytes a client."""
        first = round_num * self.size
        dealt: list[int] = []
        while len(dealt) < self.size:
            pass_num, place = divmod(first + len(dealt), self.population)
            rest = self.size - len(dealt)
            dealt.extend(self._pass(pass_num)[place : place + rest].tolist())
        return sorted(dealt)

    def _pass(self, pass_num: int) -> NDArray[np.int64]:
        """The order of the clients in one pass."""
        if pass_num not in self._order:
            key = stream_key(self.seed, Purpose.COHORT, round_num=pass_num)
            order = Stream(key).permutation(self.population)
            self._order.clear()
            self._order[pass_num] = order
        return self._order[pass_num]


@dataclass(frozen=True)
class BySize(Sampler):
    """Each place in the cohort goes to client k with chance n_k / sum n, whoever has the others.

    The plain mean over the cohort then stands for the population's examples without bias; to weigh
    by examples as well would count them twice (Li et al. 2020, arXiv 1907.02189, scheme I).

    Attributes:
        last_examples: Sum of n_k up to and with each client, int64 [population]; the last is not 0.
    """

    last_examples: NDArray[np.int64]

    def indices(self, round_num: int) -> list[int]:
        """Returns indices in order, some perhaps repeated, none of a client without examples."""
        examples = self.draw_below(int(self.last_examples[-1]), round_num)
        found: list[int] = np.searchsorted(self.last_examples, examples, side="right").tolist()
        return sorted(found)


# The code behind each of tables.SAMPLERS but `fixed`, which draws nothing.
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
        num_examples: Tells the examples of the client at an index; asked by `by-size`, and of
            every client, or by a sampler of the user's.
        client_ids: The population, sorted; may be generated on demand. For a sampler of the user's.
        options: Of a sampler of the user's.

    Raises:
        ConfigError: It would have to list too many clients, or no client has examples.
        PartError: A file of the user's fails, or breaks the contract.
    """
    if name not in SAMPLERS:
        offered = {"client_ids": client_ids, "num_examples": num_examples}
        build_own = load("fedcli.federation.own_samplers:build")
        own: Sampler = build_own(name, population, size, seed, offered, options)
        return own
    sampler = SAMPLERS[name]
    if issubclass(sampler, _LISTING) and population > MAX_LISTED:
        raise ConfigError(
            f"--sampling {name} goes through the whole population, {population:,} clients; "
            f"it takes {MAX_LISTED:,} at most; choose uniform"
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
    """Returns `count` distinct indices below `population`, sorted; every subset equally likely.

    A partial Fisher-Yates shuffle that remembers only the places it has touched: O(count). Each
    choice is a 64-bit draw times the number left, shifted down, whose bias is below
    population / 2**64.
    """
    draws = native.random_u64(stream_key(seed, purpose, round_num=round_num), count).tolist()
    moved: dict[int, int] = {}
    chosen = []
    for place, draw in enumerate(draws):
        other = place + (draw * (population - place) >> 64)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return sorted(chosen)
