from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.errors import ConfigError
from fedcli.federation import samplers, tff_sampling
from fedcli.settings.vocabulary import SAMPLINGS


def test_each_way_of_sampling_has_its_code() -> None:
    assert ("fixed", *samplers.SAMPLERS) == SAMPLINGS


def test_every_client_and_every_pair_is_equally_likely() -> None:
    population, count, rounds = 12, 4, 6000
    drawn = np.zeros((rounds, population))
    for round_num in range(rounds):
        chosen = samplers.sample_indices(population, count, 1, Purpose.COHORT, round_num)
        drawn[round_num, chosen] = 1
    singles = drawn.sum(axis=0)
    expected = rounds * count / population
    chi_square = float(((singles - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # the 99.9 % quantile of chi-square, 11 degrees of freedom
    pairs = (drawn.T @ drawn)[np.triu_indices(population, 1)]
    expected = rounds * count * (count - 1) / population / (population - 1)
    # Five standard deviations of a binomial count. One of the 66 pairs exceeds them for one seed
    # in 25,000.
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected)


# The 99.9 % quantile of chi-square, by degrees of freedom.
CHI_SQUARE = {2: 13.8, 3: 16.3, 5: 20.5, 7: 24.3, 9: 27.9}


def build(name: str, population: int, size: int, seed: int) -> samplers.Sampler:
    """A sampler of clients with ten examples each."""
    return samplers.build(name, population, size, seed, lambda _: 10)


def check_chances(
    outcomes: Iterable[tuple[int, ...]], chances: Mapping[tuple[int, ...], float]
) -> None:
    """Compares how often each outcome occurs with the chances of all possible outcomes."""
    seen = Counter(outcomes)
    assert seen.keys() <= chances.keys()
    assert sum(chances.values()) == pytest.approx(1)
    total = sum(seen.values())
    # With smaller expected counts, the distance would not be distributed as chi-square.
    assert total * min(chances.values()) > 50
    distance = sum(
        (seen[outcome] - total * chance) ** 2 / (total * chance)
        for outcome, chance in chances.items()
    )
    assert distance < CHI_SQUARE[len(chances) - 1]


def multiset_chances(chances: list[float], size: int) -> dict[tuple[int, ...], float]:
    """Returns the chance of each sorted cohort of independent draws, by enumeration."""
    totals: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for drawn in itertools.product(range(len(chances)), repeat=size):
        totals[tuple(sorted(drawn))] += math.prod(chances[each] for each in drawn)
    return {cohort: chance for cohort, chance in totals.items() if chance}


def test_with_replacement_draws_each_place_alike(seed: int) -> None:
    sampler = samplers.WithReplacement(3, 2, seed)
    drawn = (tuple(sampler.indices(round_num)) for round_num in range(5000))
    check_chances(drawn, multiset_chances([1 / 3] * 3, 2))


@pytest.mark.parametrize("size", [1, 2])
def test_poisson_clients_come_independently(seed: int, size: int) -> None:
    sampler = samplers.Poisson(3, size, seed)
    chance = size / 3
    chances = {
        cohort: chance ** len(cohort) * (1 - chance) ** (3 - len(cohort))
        for num_clients in range(4)
        for cohort in itertools.combinations(range(3), num_clients)
    }
    check_chances((tuple(sampler.indices(round_num)) for round_num in range(5000)), chances)


def test_poisson_cohorts_of_a_large_population(seed: int) -> None:
    population, size, rounds = 1000, 30, 2000
    sampler = samplers.Poisson(population, size, seed)
    drawn = [sampler.indices(round_num) for round_num in range(rounds)]
    for cohort in drawn:
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(range(population))
    sizes = np.array([len(cohort) for cohort in drawn])
    variance = size * (1 - size / population)
    # Five standard errors of the mean, and of the variance of sizes that are nearly normal.
    assert abs(sizes.mean() - size) < 5 * math.sqrt(variance / rounds)
    assert abs(sizes.var() - variance) < 5 * variance * math.sqrt(2 / rounds)
    counts = np.bincount(np.concatenate(drawn), minlength=population)
    expected = rounds * size / population
    # The first and the last 100 clients are as likely as others, so no draw is lost at the ends.
    for tenth in (counts[:100], counts[-100:]):
        assert abs(tenth.mean() - expected) < 5 * math.sqrt(expected / 100)


@pytest.mark.parametrize("size", [1, 30])
def test_poisson_draws_more_if_its_first_draws_do_not_suffice(seed: int, size: int) -> None:
    sampler = samplers.Poisson(1000, size, seed)
    for round_num in range(1000):
        stream = Stream(stream_key(seed, Purpose.COHORT, round_num=round_num))
        one_by_one: list[int] = []
        place = -1
        while True:
            place += 1 + math.floor(np.log1p(-stream.uniform(1))[0] / math.log1p(-size / 1000))
            if place >= 1000:
                break
            one_by_one.append(place)
        assert sampler.indices(round_num) == one_by_one


def test_poisson_takes_everyone_for_certain(seed: int) -> None:
    assert samplers.Poisson(5, 5, seed).indices(3) == [0, 1, 2, 3, 4]
    assert samplers.Poisson(1, 1, seed).indices(0) == [0]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10])
def test_cyclic_passes_train_each_client_as_often(seed: int, size: int) -> None:
    population = 10
    sampler = samplers.Cyclic(population, size, seed)
    cohorts = [sampler.indices(round_num) for round_num in range(population)]
    assert all(len(cohort) == size for cohort in cohorts)
    assert all(cohort == sorted(cohort) for cohort in cohorts)
    counts = Counter(itertools.chain.from_iterable(cohorts))
    assert counts == dict.fromkeys(range(population), size)  # ten rounds are `size` passes
    # A new sampler draws the same cohorts, in any order of the rounds.
    for round_num in (9, 0, 5):
        assert samplers.Cyclic(population, size, seed).indices(round_num) == cohorts[round_num]
        assert sampler.indices(round_num) == cohorts[round_num]


def test_cyclic_orders_are_equally_likely_and_new_in_each_pass(seed: int) -> None:
    sampler = samplers.Cyclic(3, 1, seed)
    drawn = [sampler.indices(round_num)[0] for round_num in range(3 * 4000)]
    passes = [tuple(drawn[first : first + 3]) for first in range(0, len(drawn), 3)]
    check_chances(passes, dict.fromkeys(itertools.permutations(range(3)), 1 / 6))
    is_same = Counter((int(before == after),) for before, after in itertools.pairwise(passes))
    assert is_same[1,] == pytest.approx(4000 / 6, abs=5 * math.sqrt(4000 * 5 / 36))


def test_by_size_draws_in_proportion_to_examples(seed: int) -> None:
    sizes = [0, 1, 0, 2, 3, 0]
    sampler = samplers.build("by-size", 6, 2, seed, sizes.__getitem__)
    drawn = (tuple(sampler.indices(round_num)) for round_num in range(5000))
    check_chances(drawn, multiset_chances([size / 6 for size in sizes], 2))


def test_by_size_needs_examples() -> None:
    with pytest.raises(ConfigError, match="--sampling by-size: no client has examples"):
        samplers.build("by-size", 3, 2, 0, lambda _: 0)


def test_cyclic_stores_the_order_of_only_one_pass(seed: int) -> None:
    sampler = samplers.Cyclic(20_000, 19_999, seed)
    tracemalloc.start()
    for round_num in range(10):
        sampler.indices(round_num)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 2 * 8 * 20_000


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_draws_depend_only_on_round_and_seed(name: str) -> None:
    sampler = build(name, 100, 20, 3)
    drawn = [tuple(sampler.indices(round_num)) for round_num in range(20)]
    assert len(set(drawn)) == 20
    assert tuple(build(name, 100, 20, 3).indices(7)) == drawn[7]
    assert tuple(build(name, 100, 20, 4).indices(7)) != drawn[7]


# The cohorts come from the generator of TFF and FedJAX, run with NumPy 2.4.6.
@pytest.mark.parametrize(
    ("population", "seed", "t", "cohort"),
    [
        (100, 0, 0, [53, 67, 0, 89, 68]),
        (100, 0, 1, [52, 7, 78, 3, 93]),
        (100, 0, 2, [4, 78, 2, 9, 12]),
        (100, 1, 0, [19, 78, 96, 16, 57]),
        (100, 1, 1, [34, 4, 96, 50, 13]),
        (100, 1, 2, [17, 22, 15, 7, 87]),
        (3383, 1, 1, [2637, 88, 1774, 1171, 3025, 1887, 1049, 644, 2010, 1325]),
        (3383, 1, 2, [155, 3117, 2755, 1929, 103, 3281, 1848, 2270, 1926, 2225]),
        (3383, 42, 1, [663, 1844, 3371, 2597, 688, 2482, 758, 806, 821, 2236]),
    ],
)
def test_tff_cohorts(population: int, seed: int, t: int, cohort: list[int]) -> None:
    assert tff_sampling.choose(population, len(cohort), seed, t) == cohort
    if t:
        assert samplers.Tff(population, len(cohort), seed).indices(t - 1) == cohort


@pytest.mark.parametrize("t", [0, 1, 10**6, 2**31 - 1])
def test_tff_draws_any_round_of_any_seed_at_once(t: int) -> None:
    assert sorted(tff_sampling.choose(7, 7, 2**32 - 1, t)) == list(range(7))


@pytest.mark.parametrize("name", ["tff", "cyclic", "by-size"])
def test_what_lists_the_population_has_a_bound(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"--sampling {name} stores .* at most 10,000,000 clients, not 10,000,001"
    ):
        build(name, 10_000_001, 10, 0)
    if name != "by-size":  # by-size would read the sizes of ten million clients
        build(name, 10_000_000, 10, 0)


@pytest.mark.parametrize("name", ["uniform", "with-replacement", "poisson"])
def test_samplers_that_draw_only_a_cohort_take_any_population(name: str) -> None:
    assert max(build(name, 10**9, 30, 0).indices(0)) < 10**9
