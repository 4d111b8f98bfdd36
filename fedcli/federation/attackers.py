"""The clients that attack, and how many of them a cohort will hold.

The attackers are one fixed set, drawn once from the clients that may take part. If cohorts are
sampled, the number of attackers in a cohort is therefore random. A robust aggregator that tolerates
f attackers can fail in rounds with more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcli.core.seeds import Purpose
from fedcli.errors import ConfigError, plural
from fedcli.federation import cohorts as cohort
from fedcli.federation.cohorts import ClientSelection, Cohorts, contains
from fedcli.federation.samplers import (
    Cyclic,
    Poisson,
    Tff,
    Uniform,
    WithReplacement,
    sample_indices,
)
from fedcli.settings.shares import rounded_down

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPTION = "--attackers"


def parse_attackers(attackers: str | Sequence[str]) -> ClientSelection:
    """Parses `--attackers`: a number, 0 included, a share, ids, or `@file`.

    Raises:
        ConfigError: See `cohorts.parse_clients`; or the value is `all`.
    """
    selection = cohort.parse_clients(attackers, OPTION, least=0)
    if selection == ClientSelection():
        raise ConfigError(
            f"{OPTION} all would leave no honest client; give a number, a share such as 0.1, ids, "
            "or @file"
        )
    return selection


def choose_attackers(
    selection: ClientSelection, cohorts: Cohorts, source: str, seed: int
) -> frozenset[str]:
    """Returns the ids of the attackers.

    Args:
        selection: The value of `--attackers`. A share of N clients means floor(share * N)
            attackers.
        cohorts: The cohorts of the run. Attackers are drawn from the fixed cohort if there is one,
            else from all clients.
        source: The name of the data, for messages.
        seed: The run's seed.

    Raises:
        ConfigError: An id does not exist, or no honest client would be left.
    """
    population: Sequence[str] = cohorts.population
    if cohorts.fixed is not None:
        population = sorted(set(cohorts.fixed))
    if selection.ids is not None:
        for client_id in selection.ids:
            if not contains(population, client_id):
                of_cohort = " in the cohort" if cohorts.fixed is not None else ""
                raise ConfigError(
                    f"{OPTION} {client_id}: no such client{of_cohort}; choose among "
                    f"the {len(population):,} clients of {source} that may take part"
                )
        chosen = frozenset(selection.ids)
    else:
        chosen = _drawn(selection, population, seed)
    if len(chosen) >= len(population):
        raise ConfigError(
            f"{OPTION} {len(chosen)}: only {plural(len(population), 'client')} may take part; "
            f"choose 0 to {len(population) - 1:,}"
        )
    return chosen


def _drawn(selection: ClientSelection, population: Sequence[str], seed: int) -> frozenset[str]:
    if selection.share is not None:
        count = rounded_down(selection.share, len(population))
    else:
        count = selection.count or 0
    if count >= len(population):
        raise ConfigError(
            f"{OPTION} {count:,}: only {plural(len(population), 'client')} may take part; choose 0 "
            f"to {len(population) - 1:,}"
        )
    indices = sample_indices(len(population), count, seed, Purpose.ATTACKERS, 0)
    return frozenset(population[index] for index in indices)


def chance_of_more(cohorts: Cohorts, attackers: frozenset[str], tolerated: int) -> float | None:
    """Returns the probability that a cohort has more attackers than a rule tolerates.

    For a fixed cohort it is 0 or 1. Otherwise the number of attackers in a cohort has a binomial
    distribution if clients are drawn independently, and a hypergeometric one if they are drawn
    without replacement. For `Cyclic` the probability is the mean over rounds, because a cohort that
    extends over two passes is drawn from each pass separately.

    Args:
        cohorts: The cohorts of the run.
        attackers: The attackers.
        tolerated: The number f that the rule tolerates.

    Returns:
        The probability, or None if it is unknown because clients are not equally likely.
    """
    if cohorts.fixed is not None:
        return float(sum(each in attackers for each in cohorts.fixed) > tolerated)
    sampler = cohorts.sampler
    assert sampler is not None
    population, size, count = sampler.population, sampler.size, len(attackers)
    if isinstance(sampler, Poisson):
        return binomial_tail(count, size / population, tolerated)
    if isinstance(sampler, WithReplacement):
        return binomial_tail(size, count / population, tolerated)
    if isinstance(sampler, Cyclic):
        return cyclic_tail(population, count, size, tolerated)
    if isinstance(sampler, Uniform | Tff):
        return hypergeometric_tail(population, count, size, tolerated)
    return None


def cyclic_tail(population: int, attackers: int, size: int, tolerated: int) -> float:
    """Returns the mean probability of more than `tolerated` attackers over the rounds of `Cyclic`.

    Cohorts begin equally often at each multiple of the greatest common divisor of `population` and
    `size` within a pass, so the mean is over these places.
    """
    step = math.gcd(population, size)
    inside = hypergeometric_tail(population, attackers, size, tolerated)
    split = _tails_of_two(population, attackers, size, tolerated, range(step, size, step))
    num_starts = population // step
    return min(1.0, math.fsum([*split, inside * (num_starts - len(split))]) / num_starts)


def _tails_of_two(
    population: int, attackers: int, size: int, tolerated: int, firsts: Sequence[int]
) -> list[float]:
    """The probabilities of more than `tolerated` attackers in cohorts drawn from two passes.

    Args:
        population: The number of all clients.
        attackers: The number of attackers among them.
        size: The number of clients in a cohort.
        tolerated: The number of attackers.
        firsts: By cohort, its number of clients from the first pass.
    """
    most = min(attackers, size)
    ways = _log_ways(attackers, most)
    others, all_ways = _log_ways(population - attackers, size), _log_ways(population, size)

    def chances(drawn: int) -> NDArray[np.float64]:
        """The probabilities of 0, 1, ... attackers among `drawn` clients of one pass."""
        counts = np.arange(min(most, drawn) + 1)
        found: NDArray[np.float64] = np.exp(ways[counts] + others[drawn - counts] - all_ways[drawn])
        return found

    tails = []
    for first in firsts:
        of_first, of_second = chances(first), chances(size - first)
        at_least = np.append(of_second[::-1].cumsum()[::-1], 0.0)  # at_least[n]: n or more
        needed = np.clip(tolerated + 1 - np.arange(len(of_first)), 0, len(of_second))
        tails.append(float(of_first @ at_least[needed]))
    return tails


def _log_ways(number: int, most: int) -> NDArray[np.float64]:
    """The logarithms of the ways to choose 0, 1, ..., `most` of `number`; -inf if there is none."""
    chosen = np.arange(1.0, most + 1.0)
    with np.errstate(divide="ignore"):
        factors = np.log(np.maximum(number + 1 - chosen, 0.0) / chosen)
    return np.append(0.0, factors.cumsum())


def hypergeometric_tail(population: int, attackers: int, size: int, tolerated: int) -> float:
    """Returns the probability of more than `tolerated` attackers in a cohort of `size` clients."""
    counts = range(max(0, tolerated + 1), min(attackers, size) + 1)
    return min(1.0, math.fsum(_chance(population, attackers, size, each) for each in counts))


def _chance(population: int, attackers: int, size: int, count: int) -> float:
    """Returns the hypergeometric probability of `count` attackers in a cohort of `size` clients."""
    if size - count > population - attackers:
        return 0.0
    return math.exp(
        _log_choose(attackers, count)
        + _log_choose(population - attackers, size - count)
        - _log_choose(population, size)
    )


def binomial_tail(trials: int, probability: float, tolerated: int) -> float:
    """Returns the probability of more than `tolerated` successes in independent trials."""
    if probability >= 1.0:
        return float(trials > tolerated)
    if probability <= 0.0:
        return float(tolerated < 0)
    log_yes, log_no = math.log(probability), math.log1p(-probability)
    terms = (
        math.exp(_log_choose(trials, count) + count * log_yes + (trials - count) * log_no)
        for count in range(tolerated + 1, trials + 1)
    )
    return min(1.0, math.fsum(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
