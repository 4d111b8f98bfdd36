"""Epsilons against those of other programs, a slow reference, and properties of any epsilon."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedcli.errors import ConfigError
from fedcli.privacy import gaussian, renyi, trees
from fedcli.privacy.accountant import PLD, RDP, Accountant, Spent, noise_for
from fedcli.privacy.loss_distribution import (
    STEP,
    ComposedLoss,
    GridLosses,
    SampledGaussianLoss,
    removed_and_added,
)
from fedcli.privacy.schemes import (
    REPLACE,
    FixedSize,
    PoissonSampled,
    Scheme,
    Unsampled,
    rounds_of_pass,
    scheme_of,
    tree_scheme,
)
from tests.privacy.golden import BY_DELTA, BY_ROUND, FIXED_SIZE, POISSON, FixedSizeRow, Row

# Half a unit of the last printed digit, and rounding in the Fourier transform.
PRINTED = 1e-6
# Each round multiplies by a spectrum that is rounded to 2^-53.
ROUNDED = 2.0**-52


def scheme(row: Row) -> Scheme:
    return PoissonSampled(row.rate) if row.rate < 1 else scheme_of("fixed", 10, 10)


@pytest.mark.parametrize("row", POISSON)
def test_epsilon_is_that_of_other_programs(row: Row) -> None:
    accountant = Accountant(scheme(row), row.noise_multiplier, row.delta)
    spent = accountant.spent(row.num_rounds)
    assert spent.epsilon == pytest.approx(row.pld, abs=PRINTED)
    assert spent.epsilon_rdp == pytest.approx(row.rdp, abs=PRINTED)
    assert accountant.method == PLD
    by_renyi = Accountant(scheme(row), row.noise_multiplier, row.delta, RDP)
    assert by_renyi.spent(row.num_rounds) == Spent(spent.epsilon_rdp, spent.epsilon_rdp)


def test_epsilon_by_round_and_by_delta() -> None:
    row = POISSON[3]
    accountant = Accountant(scheme(row), row.noise_multiplier, row.delta)
    for num_rounds, epsilon in BY_ROUND.items():
        assert accountant.spent(num_rounds).epsilon == pytest.approx(epsilon, abs=PRINTED)
    loss = SampledGaussianLoss(row.rate, row.noise_multiplier)
    for delta, epsilon in BY_DELTA.items():
        # Rounding errors of 1e-15 are a millionth of a delta of 1e-9.
        assert loss.epsilon(row.num_rounds, delta) == pytest.approx(epsilon, abs=2e-6)


@pytest.mark.parametrize("row", FIXED_SIZE)
def test_cohorts_of_a_fixed_size_count_half_the_noise(row: FixedSizeRow) -> None:
    scheme = scheme_of("uniform", row.population, row.cohort_size)
    assert scheme == scheme_of("tff", row.population, row.cohort_size)
    assert scheme.neighbours == REPLACE
    accountant = Accountant(scheme, row.noise_multiplier, row.delta)
    spent = accountant.spent(row.num_rounds)
    assert accountant.method == RDP
    assert spent.epsilon == spent.epsilon_rdp == pytest.approx(row.epsilon, abs=PRINTED)
    unhalved = renyi.fixed_size(row.cohort_size / row.population, row.noise_multiplier)
    epsilon = renyi.epsilon(row.num_rounds * unhalved, row.delta)
    assert epsilon == pytest.approx(row.unhalved, abs=PRINTED)


def slow_delta(rate: float, z: float, epsilon: float, direction: int) -> float:
    """Delta of one round by numerical integration of max(0, P - e^epsilon Q)."""
    x = np.arange(-14.0 * z, 1.0 + 14.0 * z, z / 4000)
    absent = np.exp(-(x**2) / (2 * z * z))
    mixed = (1 - rate) * absent + rate * np.exp(-((x - 1) ** 2) / (2 * z * z))
    upper, lower = (mixed, absent) if direction else (absent, mixed)
    excess = np.maximum(0.0, upper - math.exp(epsilon) * lower)
    return float(excess.sum()) * (z / 4000) / (z * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("rate", "z"), [(0.02, 0.7), (0.3, 1.5), (0.9, 1.0)])
def test_one_round_against_an_integral(rate: float, z: float) -> None:
    loss = SampledGaussianLoss(rate, z)
    for delta in (1e-2, 1e-4, 1e-6):
        epsilon = loss.epsilon(1, delta)
        largest = max(slow_delta(rate, z, epsilon, each) for each in (0, 1))
        # Losses are rounded up to a grid of 1e-4, which raises epsilon by less than 1e-6.
        assert largest <= delta * (1 + 1e-6)
        slightly_less = max(slow_delta(rate, z, epsilon - 2e-6, each) for each in (0, 1))
        assert slightly_less >= delta * (1 - 1e-6)


def precise_delta(loss: GridLosses, num_rounds: int, epsilon: float) -> float:
    """Delta of composed rounds by sums over all losses, in long double."""
    size, num = 1 << 14, 100  # at the other frequencies the spectrum is below 1e-20
    steps = np.arange(loss.first, loss.first + len(loss.masses))
    exponents = np.outer(np.arange(num), steps) % size
    angles = exponents.astype(np.longdouble) * (
        np.longdouble(8) * np.arctan(np.longdouble(1)) / size
    )
    masses = loss.masses / loss.masses.astype(np.longdouble).sum()
    # The spectrum minus 1, without cancellation: cos(a) - 1 is -2 sin(a / 2)^2.
    real, imaginary = -2 * np.sin(angles / 2) ** 2 @ masses, -np.sin(angles) @ masses
    power = np.exp(num_rounds * np.log(1 + (real + 1j * imaginary)))
    later = np.arange(math.ceil(epsilon / STEP), size // 2)
    weights = -np.expm1(epsilon - later * STEP)
    transform = np.exp(2j * np.pi / size * (np.outer(np.arange(num), later) % size)) @ weights
    parts = (power * transform).real
    return float((2 * parts.sum() - parts[0]) / size)


def test_many_rounds_against_sums_in_long_double() -> None:
    """An epsilon found with few frequencies has the right delta in an exact sum."""
    losses = removed_and_added(0.01, 2.0)[0]
    loss = SampledGaussianLoss(0.01, 2.0)
    for delta in (1e-5, 1e-8):
        # Losses outside the window add at most 1e-15 to delta; each of 300 rounds is rounded.
        found = precise_delta(losses, 300, loss.epsilon(300, delta))
        assert found == pytest.approx(delta, abs=1e-15 + 300 * ROUNDED)


def test_few_and_many_frequencies_give_the_same_epsilon() -> None:
    """Compares the two ways to find epsilon, for ten rounds of the same mechanism."""
    for losses in removed_and_added(0.3, 1.5):
        composed = ComposedLoss(*losses, 16)
        for delta in (1e-3, 1e-6):
            solved = composed.epsilon(10, delta)
            power = np.fft.rfft(np.fft.irfft(composed._spectrum)) ** 10
            assert composed._search(power, delta) == pytest.approx(solved, rel=1e-8)


def test_epsilon_does_not_depend_on_earlier_calls() -> None:
    rounds = [1, 2, 3, 40, 63, 64, 65, 128, 129, 130, 200, 64, 1]
    reused = SampledGaussianLoss(0.05, 1.3)
    for num_rounds in rounds:
        fresh = SampledGaussianLoss(0.05, 1.3)
        assert reused.epsilon(num_rounds, 1e-4) == fresh.epsilon(num_rounds, 1e-4)
    accountant = Accountant(PoissonSampled(0.05), 1.3, 1e-4)
    assert accountant.spent(8).epsilon == reused.epsilon(8, 1e-4)
    assert accountant.spent(7).epsilon == reused.epsilon(7, 1e-4)


def schemes_by_rate() -> list[Scheme]:
    return [scheme_of("poisson", 400, size) for size in (8, 100, 400)]


def test_epsilon_grows_with_rounds_and_rate_and_falls_with_noise_and_delta() -> None:
    for scheme in (*schemes_by_rate(), FixedSize(0.1), tree_scheme(400, 20, 10)):
        accountant = Accountant(scheme, 1.5, 1e-4)
        spent = [accountant.spent(n) for n in (0, 1, 2, 9, 30)]
        assert spent[0] == Spent(0.0, 0.0)
        deltas = [Accountant(scheme, 1.5, delta).spent(9) for delta in (1e-9, 1e-5, 1e-2)]
        for which in (0, 1):
            assert [each[which] for each in spent] == sorted(each[which] for each in spent)
            by_delta = [each[which] for each in deltas]
            assert by_delta == sorted(by_delta, reverse=True)
        noise = [Accountant(scheme, z, 1e-4).spent(9) for z in (0.0, 0.9, 2.0, 50.0)]
        assert noise[0] == Spent(math.inf, math.inf)
        for which in (0, 1):
            figures = [each[which] for each in noise]
            assert figures == sorted(figures, reverse=True)
        assert all(each.epsilon <= each.epsilon_rdp for each in noise)
    by_rate = [Accountant(each, 1.0, 1e-4).spent(5) for each in schemes_by_rate()]
    assert by_rate == sorted(by_rate)


def test_rounds_without_sampling_are_one_round_with_less_noise() -> None:
    everyone = scheme_of("poisson", 30, 30)
    for num_rounds in (1, 4, 100):
        one = Accountant(everyone, 3.0 / math.sqrt(num_rounds), 1e-5).spent(1)
        several = Accountant(everyone, 3.0, 1e-5).spent(num_rounds)
        assert several == pytest.approx(one, rel=1e-9)


def test_a_rate_near_one_is_almost_no_sampling() -> None:
    sampled = SampledGaussianLoss(1 - 1e-9, 2.0).epsilon(6, 1e-5)
    assert sampled == pytest.approx(gaussian.epsilon(math.sqrt(6) / 2, 1e-5), abs=1e-5)


def test_gaussian_epsilon_solves_its_equation() -> None:
    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for sensitivity, delta in itertools.product((0.05, 0.3, 1.0, 6.0), (1e-2, 1e-5, 1e-9)):
        epsilon = gaussian.epsilon(sensitivity, delta)
        found = phi(sensitivity / 2 - epsilon / sensitivity) - math.exp(epsilon) * phi(
            -sensitivity / 2 - epsilon / sensitivity
        )
        assert epsilon == 0.0 or found == pytest.approx(delta, rel=1e-6)
    assert gaussian.epsilon(0.0, 1e-5) == 0.0
    assert gaussian.epsilon(1e-9, 1e-5) == 0.0
    assert math.isfinite(gaussian.epsilon(1e4, 1e-10))


# ---- Trees


def slow_squared_sensitivity(num_rounds: int, participations: int, separation: int) -> int:
    """Returns the largest squared sensitivity of participations > `separation` rounds apart."""
    groups = [
        range(first, first + (1 << level))
        for level in range(num_rounds.bit_length())
        for first in range(0, num_rounds - (1 << level) + 1, 1 << level)
    ]
    best = 0
    for count in range(participations + 1):
        for places in itertools.combinations(range(num_rounds), count):
            if all(b - a > separation for a, b in itertools.pairwise(places)):
                best = max(best, sum(sum(p in group for p in places) ** 2 for group in groups))
    return best


def test_the_reference_of_trees_gives_the_published_figures() -> None:
    published = {(16, 1, 15): 5, (16, 2, 7): 12, (16, 4, 3): 36, (100, 2, 9): 20}
    for (rounds, participations, separation), value in published.items():
        assert slow_squared_sensitivity(rounds, participations, separation) == value


def test_sensitivity_of_trees_against_all_placements() -> None:
    for num_rounds in range(1, 18):
        for participations in range(4):
            expected = slow_squared_sensitivity(num_rounds, participations, 0)
            assert trees.squared_sensitivity(num_rounds, participations) == expected
    assert trees.squared_sensitivity(0, 3) == 0
    assert trees.squared_sensitivity(1024, 1) == trees.height(1024) == 11


@pytest.mark.parametrize(
    ("z", "rounds", "num_trees", "epsilon"),
    [(7, 1024, 1, 2.040444), (7, 1024, 3, 3.773467), (4, 128, 1, 3.188992), (4, 128, 3, 5.979008)],
)
def test_epsilon_of_trees(z: float, rounds: int, num_trees: int, epsilon: float) -> None:
    """Each pass has a tree of its own; epsilon is that of `num_trees` passes."""
    scheme = tree_scheme(rounds, 1, rounds)
    spent = Accountant(scheme, z, 1e-5).spent(num_trees * rounds)
    assert spent.epsilon_rdp == pytest.approx(epsilon, abs=PRINTED)
    assert spent.epsilon < spent.epsilon_rdp


def slow_tree_spending(num_rounds: int, a_pass: int, a_tree: int) -> int:
    """Returns the largest squared sensitivity of a client with one round in each pass."""
    passes = [range(first, first + a_pass) for first in range(0, num_rounds, a_pass)]
    best = 0
    for places in itertools.product(*passes):
        total = 0
        for first in range(0, num_rounds, a_tree):
            size = min(a_tree, num_rounds - first)
            for level in range(size.bit_length()):
                for start in range(0, size - (1 << level) + 1, 1 << level):
                    group = range(first + start, first + start + (1 << level))
                    total += sum(place in group for place in places) ** 2
        best = max(best, total)
    return best


@pytest.mark.parametrize(("a_pass", "a_tree"), [(4, 4), (6, 3), (6, 2), (5, 1), (3, 6), (2, 6)])
def test_no_client_spends_more_than_a_scheme_of_trees_says(a_pass: int, a_tree: int) -> None:
    scheme = tree_scheme(a_pass, 1, a_tree)
    assert isinstance(scheme, Unsampled)
    for num_rounds in range(13):
        found = scheme.squared_sensitivity(num_rounds)
        slow = slow_tree_spending(num_rounds, a_pass, a_tree)
        # For a tree of several passes, the scheme also counts participations that are closer
        # together than a client's can be.
        assert found == slow if a_tree <= a_pass else found >= slow


def test_passes() -> None:
    assert rounds_of_pass(12, 4) == 3
    cyclic = scheme_of("cyclic", 12, 4)
    assert isinstance(cyclic, Unsampled)
    assert [cyclic.squared_sensitivity(n) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    with pytest.raises(ConfigError, match="12 clients cannot be divided into rounds of 5"):
        scheme_of("cyclic", 12, 5)
    with pytest.raises(ConfigError, match=r"restart_every=4: a pass over all clients takes 6"):
        tree_scheme(12, 2, 4)


# ---- Noise for a target


@pytest.mark.parametrize("method", [PLD, RDP])
@pytest.mark.parametrize(
    "scheme",
    [PoissonSampled(0.1), FixedSize(0.05), scheme_of("fixed", 5, 5), tree_scheme(40, 4, 5)],
)
def test_noise_for_a_target_is_the_smallest_that_suffices(scheme: Scheme, method: str) -> None:
    for target in (0.5, 3.0):
        z = noise_for(scheme, target, 20, 1e-4, method)
        assert Accountant(scheme, z, 1e-4, method).spent(20).epsilon <= target
        assert Accountant(scheme, z - 0.001, 1e-4, method).spent(20).epsilon > target


def test_noise_for_a_target_at_the_ends() -> None:
    assert noise_for(scheme_of("fixed", 5, 5), 1e5, 1, 1e-4) == 0.1
    assert SampledGaussianLoss(0.001, 0.1).epsilon(1, 1e-4) < 1e5
    with pytest.raises(ConfigError, match="spend more even with noise_multiplier=1000"):
        noise_for(scheme_of("fixed", 5, 5), 0.001, 10_000_000, 1e-9)
