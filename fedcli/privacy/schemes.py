"""Which clients take part in which rounds, and what a round then reveals about one client.

Each scheme names the accountants that fit it. `exact` returns the tightest accountant, or None if
only a bound by Renyi divergences is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.privacy import gaussian, renyi, trees
from fedcli.privacy.loss_distribution import SampledGaussianLoss
from fedcli.privacy.renyi import Floats

ADD_OR_REMOVE = "add or remove one client"
REPLACE = "replace one client"

# Returns epsilon after a number of rounds for a delta.
Epsilon = Callable[[int, float], float]


class Scheme(Protocol):
    """A way of choosing the clients of each round.

    A noise multiplier z means noise with a standard deviation of z times the clipping norm.

    Attributes:
        neighbours: The difference between two neighbouring data sets, for which the guarantee
            holds.
    """

    @property
    def neighbours(self) -> str:
        """The difference between two neighbouring data sets, for which the guarantee holds."""
        ...

    def exact(self, noise_multiplier: float) -> Epsilon | None:
        """Returns the tightest accountant; None if there is none."""
        ...

    def renyi(self, noise_multiplier: float) -> Callable[[int], Floats]:
        """Returns the divergence at each of `renyi.ORDERS` after a number of rounds."""
        ...

    def __hash__(self) -> int:
        """Returns a hash of the scheme, which is part of the cache key of `noise_for`."""
        ...


@dataclass(frozen=True)
class PoissonSampled:
    """Each client takes part in each round with probability `rate`, independently.

    Attributes:
        rate: The probability, above 0 and below 1.
    """

    rate: float
    neighbours: str = ADD_OR_REMOVE

    def exact(self, noise_multiplier: float) -> Epsilon:
        """See `Scheme`."""
        return SampledGaussianLoss(self.rate, noise_multiplier).epsilon

    def renyi(self, noise_multiplier: float) -> Callable[[int], Floats]:
        """See `Scheme`."""
        one = renyi.poisson(self.rate, noise_multiplier)
        return lambda num_rounds: num_rounds * one


@dataclass(frozen=True)
class FixedSize:
    """A cohort of a fixed size is drawn without replacement in each round.

    Neighbouring data sets then differ by one client that replaces another. That changes a sum by up
    to twice the clipping norm, so the noise multiplier counts as z / 2.

    Attributes:
        rate: Cohort size divided by population, below 1.
    """

    rate: float
    neighbours: str = REPLACE

    def exact(self, noise_multiplier: float) -> None:
        """See `Scheme`."""
        return

    def renyi(self, noise_multiplier: float) -> Callable[[int], Floats]:
        """See `Scheme`."""
        one = renyi.fixed_size(self.rate, noise_multiplier / 2.0)
        return lambda num_rounds: num_rounds * one


@dataclass(frozen=True)
class Unsampled:
    """A client takes part in a number of rounds that is known beforehand.

    Attributes:
        squared_sensitivity: Returns the squared sensitivity after a number of rounds. It is the sum
            over all releases of n^2, where n is the number of times that the client counts in the
            release.
    """

    squared_sensitivity: Callable[[int], int]
    neighbours: str = ADD_OR_REMOVE

    def exact(self, noise_multiplier: float) -> Epsilon:
        """See `Scheme`."""

        def epsilon(num_rounds: int, delta: float) -> float:
            sensitivity = math.sqrt(self.squared_sensitivity(num_rounds)) / noise_multiplier
            return gaussian.epsilon(sensitivity, delta)

        return epsilon

    def renyi(self, noise_multiplier: float) -> Callable[[int], Floats]:
        """See `Scheme`."""
        one = renyi.gaussian(noise_multiplier)
        return lambda num_rounds: self.squared_sensitivity(num_rounds) * one


def scheme_of(sampling: str, population: int, cohort_size: int) -> Scheme:
    """Returns the scheme of a way of sampling, for noise that is drawn anew in each round.

    Args:
        sampling: A key of `tables.SAMPLERS` for which `settings.privacy_rules` knows an accountant.
        population: Number of clients that may take part.
        cohort_size: Expected number of clients of a round.

    Raises:
        ConfigError: The sampling is cyclic and its passes do not consist of whole rounds.
    """
    if cohort_size == population:  # everyone takes part in every round
        return Unsampled(lambda num_rounds: num_rounds)
    if sampling == "poisson":
        return PoissonSampled(cohort_size / population)
    if sampling == "cyclic":
        rounds = rounds_of_pass(population, cohort_size)
        return Unsampled(lambda num_rounds: -(-num_rounds // rounds))
    return FixedSize(cohort_size / population)


def tree_scheme(population: int, cohort_size: int, restart_every: int) -> Scheme:
    """Returns the scheme of tree noise, where each pass visits every client once.

    Args:
        population: See `scheme_of`.
        cohort_size: See `scheme_of`.
        restart_every: Number of rounds of a tree: a divisor or a multiple of the rounds of a pass.

    Raises:
        ConfigError: `restart_every` is neither a divisor nor a multiple; or see `rounds_of_pass`.
    """
    pass_rounds = rounds_of_pass(population, cohort_size)
    if restart_every % pass_rounds and pass_rounds % restart_every:
        raise ConfigError(
            f"--dp-option restart_every={restart_every}: a pass over all clients takes "
            f"{pass_rounds} rounds; choose a divisor or a multiple of {pass_rounds}, or leave "
            "restart_every out for one tree per pass"
        )
    return Unsampled(lambda num_rounds: _of_trees(num_rounds, pass_rounds, restart_every))


def rounds_of_pass(population: int, cohort_size: int) -> int:
    """Returns the number of rounds of a pass, in which every client takes part once.

    Raises:
        ConfigError: A round would hold the end of one pass and the beginning of the next, so that a
            client could take part twice in it.
    """
    if population % cohort_size:
        raise ConfigError(
            f"--sampling cyclic with --dp: {population:,} clients cannot be divided into rounds of "
            f"{cohort_size:,}, so a client could take part twice in one round; choose a --clients "
            f"that divides {population:,}"
        )
    return population // cohort_size


def _of_trees(num_rounds: int, pass_rounds: int, tree_rounds: int) -> int:
    """The squared sensitivity of trees, if a client takes part in any one round of each pass."""
    if tree_rounds >= pass_rounds:
        num_trees, rest = divmod(num_rounds, tree_rounds)
        whole = trees.squared_sensitivity(tree_rounds, tree_rounds // pass_rounds)
        return num_trees * whole + trees.squared_sensitivity(rest, -(-rest // pass_rounds))
    num_passes, rest = divmod(num_rounds, pass_rounds)
    # In each pass a client is in one tree; in the last pass the largest tree is the worst case.
    return num_passes * trees.height(tree_rounds) + trees.height(min(rest, tree_rounds))
