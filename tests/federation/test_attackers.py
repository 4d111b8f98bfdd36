"""Who attacks, and how many attackers a cohort will have."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest

from fedcli.errors import ConfigError
from fedcli.federation import samplers
from fedcli.federation.attackers import (
    binomial_tail,
    chance_of_more,
    choose_attackers,
    cyclic_tail,
    hypergeometric_tail,
    parse_attackers,
)
from fedcli.federation.cohorts import ClientSelection, Cohorts

IDS = tuple(f"w{index:03}" for index in range(200))
EVERYONE = Cohorts(IDS, None, samplers.Uniform(200, 10, 0))


def _chosen(attackers: str, cohorts: Cohorts = EVERYONE, seed: int = 0) -> frozenset[str]:
    return choose_attackers(parse_attackers(attackers), cohorts, "the data", seed)


@pytest.mark.parametrize(
    ("population", "attackers", "size", "tolerated", "chance"),
    [
        *((200, 20, 10, 1, 0.262829), (200, 20, 10, 2, 0.065285), (200, 20, 10, 3, 0.010476)),
        *((200, 20, 10, 4, 0.001105), (200, 40, 10, 4, 0.029142), (539, 54, 10, 2, 0.068729)),
        (3383, 338, 50, 12, 0.000902),
    ],
)
def test_the_chance_of_more_attackers_than_a_rule_tolerates(
    population: int, attackers: int, size: int, tolerated: int, chance: float
) -> None:
    found = hypergeometric_tail(population, attackers, size, tolerated)
    assert found == pytest.approx(chance, abs=6e-7)


def test_the_tails_are_those_of_all_cohorts() -> None:
    for attackers in range(7):
        cohorts = list(combinations(range(6), 3))
        for tolerated in range(-1, 4):
            more = sum(sum(each < attackers for each in cohort) > tolerated for cohort in cohorts)
            found = hypergeometric_tail(6, attackers, 3, tolerated)
            assert found == pytest.approx(more / len(cohorts), abs=1e-12)
    assert binomial_tail(3, 0.25, 1) == pytest.approx(3 * 0.25**2 * 0.75 + 0.25**3)
    assert binomial_tail(3, 0.25, 3) == 0.0
    assert (binomial_tail(3, 1.0, 2), binomial_tail(3, 1.0, 3)) == (1.0, 0.0)
    assert binomial_tail(3, 0.0, 0) == 0.0


def test_a_cohort_of_two_passes_is_drawn_from_each_separately() -> None:
    assert cyclic_tail(6, 2, 3, 1) == hypergeometric_tail(6, 2, 3, 1)  # no cohort has two passes
    pairs = list(combinations(range(6), 2))
    for attackers, tolerated in product(range(7), range(-1, 5)):
        # Of three cohorts of 4 among 6 clients, two are in one pass, and one has half of each pass.
        inside = hypergeometric_tail(6, attackers, 4, tolerated)
        counts = [sum(each < attackers for each in pair) for pair in pairs]
        more = sum(a + b > tolerated for a, b in product(counts, counts)) / len(pairs) ** 2
        found = cyclic_tail(6, attackers, 4, tolerated)
        assert found == pytest.approx((2 * inside + more) / 3, abs=1e-12)


def test_the_chance_of_a_large_cyclic_cohort_is_computed_at_once() -> None:
    # The population is prime, so 999 of its cohorts are divided between two passes, each at another
    # place.
    population, attackers, size, tolerated = 10_007, 1000, 1000, 130
    found = cyclic_tail(population, attackers, size, tolerated)
    alone = hypergeometric_tail(population, attackers, size, tolerated)
    independent = binomial_tail(size, attackers / population, tolerated)
    assert alone < found < independent


def test_cyclic_rounds_see_as_many_attackers_as_the_chance_says() -> None:
    cohorts = Cohorts(IDS[:15], None, samplers.Cyclic(15, 10, 0))
    attackers = frozenset(IDS[:5])
    rounds = [cohorts.for_round(round_num) for round_num in range(3000)]
    more = sum(sum(each in attackers for each in cohort) > 4 for cohort in rounds) / 3000
    chance = chance_of_more(cohorts, attackers, 4)
    # Four standard deviations of a share of 0.13 in 3,000 rounds.
    assert chance == pytest.approx(more, abs=0.025)
    assert chance != pytest.approx(hypergeometric_tail(15, 5, 10, 4), abs=0.025)


def test_the_chance_follows_from_how_cohorts_are_drawn() -> None:
    attackers = _chosen("20")
    counted = {
        name: Cohorts(IDS, None, sampler(200, 10, 0))
        for name, sampler in samplers.SAMPLERS.items()
        if name != "by-size"
    }
    chances = {name: chance_of_more(each, attackers, 2) for name, each in counted.items()}
    without_replacement = hypergeometric_tail(200, 20, 10, 2)
    assert chances == {
        "uniform": without_replacement,
        "tff": without_replacement,
        "cyclic": without_replacement,
        "with-replacement": binomial_tail(10, 0.1, 2),
        "poisson": binomial_tail(20, 0.05, 2),
    }
    fixed = Cohorts(IDS, IDS[:10], None)
    chosen = choose_attackers(ClientSelection(count=3), fixed, "the data", 0)
    assert [chance_of_more(fixed, chosen, each) for each in (2, 3)] == [1.0, 0.0]


def test_rounds_see_as_many_attackers_as_the_chance_says() -> None:
    attackers = _chosen("0.1")
    cohorts = [EVERYONE.for_round(round_num) for round_num in range(2000)]
    more = sum(sum(each in attackers for each in cohort) > 1 for cohort in cohorts) / 2000
    # Four standard deviations of a share of 0.26 in 2,000 rounds.
    assert more == pytest.approx(hypergeometric_tail(200, 20, 10, 1), abs=0.04)


def test_the_attackers_are_one_set_that_the_seed_draws() -> None:
    assert len(_chosen("20")) == 20
    assert _chosen("20") == _chosen("0.1") == _chosen("20")
    assert _chosen("20") != _chosen("20", seed=1)
    assert len(_chosen("0.29")) == 58  # floor(0.29 * 200), though 0.29 * 200 < 58 in binary
    assert len(_chosen("0.001")) == 0
    assert _chosen("0") == frozenset()


def test_attackers_of_a_fixed_cohort_are_in_it() -> None:
    cohorts = Cohorts(IDS, IDS[50:60], None)
    assert _chosen("3", cohorts) < set(IDS[50:60])
    assert len(_chosen("0.25", cohorts)) == 2
    with pytest.raises(ConfigError, match="--attackers w001: no such client in the cohort"):
        _chosen("w001,w051", cohorts)


def test_attackers_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "attackers.txt"
    file.write_text("w005\nw007\n")
    assert _chosen(f"@{file}") == _chosen("w005,w007") == {"w005", "w007"}


@pytest.mark.parametrize(
    ("attackers", "words"),
    [
        ("all", "--attackers all would leave no honest client"),
        ("200", "--attackers 200: only 200 clients may take part; choose 0 to 199"),
        ("-3", "--attackers -3: choose at least 0 clients"),
        ("1.5", "--attackers 1.5: choose a share"),
        ("w001,nobody", "--attackers nobody: no such client"),
        ("@nowhere", "--attackers @nowhere: cannot read the file"),
    ],
)
def test_messages_about_bad_attackers_have_one_line(attackers: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _chosen(attackers)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
