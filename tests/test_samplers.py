from __future__ import annotations

import numpy as np
import pytest

from fedcli import samplers, tff_sampling
from fedcli.config import SAMPLINGS
from fedcli.errors import ConfigError
from fedcli.seeds import Purpose


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
    assert chi_square < 31.3  # 99.9 % of chi-square with 11 degrees of freedom
    pairs = (drawn.T @ drawn)[np.triu_indices(population, 1)]
    expected = rounds * count * (count - 1) / population / (population - 1)
    # Five standard deviations of a binomial; 66 pairs exceed them once in 25,000 seeds.
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected)


# From TFF's and FedJAX's generator, run with NumPy 2.4.6.
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


@pytest.mark.parametrize("name", ["tff"])
def test_what_orders_the_population_has_a_bound(name: str) -> None:
    samplers.build(name, samplers.MAX_ORDERED, 10, 0)
    with pytest.raises(ConfigError, match=f"--sampling {name} .* 10,000,001 clients; it takes 10"):
        samplers.build(name, samplers.MAX_ORDERED + 1, 10, 0)
    samplers.build("uniform", 10**9, 10, 0)
