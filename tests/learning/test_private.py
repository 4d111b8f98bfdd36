"""The private mean against its formula, its noise against its distribution, and an attack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, stream_key
from fedcli.errors import ConfigError
from fedcli.learning import algorithms, optimizers
from fedcli.learning.aggregators import private
from fedcli.learning.aggregators.mean import Mean
from fedcli.learning.aggregators.noise import FreshNoise, NoiseSource, TreeNoise
from fedcli.learning.aggregators.private import AdaptiveClip, PrivacyPlan, PrivateMean
from fedcli.learning.engines.deltas import Deltas
from fedcli.models.zoo import softmax_regression
from fedcli.privacy.accountant import Accountant
from fedcli.privacy.schemes import PoissonSampled, scheme_of
from tests.kit.clients import draw

pytestmark = pytest.mark.numeric

P = 100_000  # coordinates of the noise that is measured
STATS = np.dtype([("weight", "f8"), ("norm", "f8")])


def plan(z: float, expected: int = 4, population: int = 40, delta: float = 1e-3) -> PrivacyPlan:
    scheme = scheme_of("poisson", population, expected)
    return PrivacyPlan(expected, expected / population, Accountant(scheme, z, delta))


def deltas(vectors: list[list[float]], clip: float) -> Deltas:
    """Returns what an engine returns for clients with these updates, each clipped."""
    rows = np.array(vectors, np.float64).reshape(len(vectors), -1)
    norms = np.linalg.norm(rows, axis=1)
    stats = np.zeros(len(rows), STATS)
    stats["weight"], stats["norm"] = 1.0, norms
    factors = np.minimum(1.0, clip / np.maximum(norms, 1e-300))
    return Deltas((factors[:, np.newaxis] * rows).sum(axis=0), float(len(rows)), stats)


def slow_normal(key: StreamKey, n: int) -> NDArray[np.float64]:
    """Computes the core's normal numbers from its random words, by the formulas in csrc/fed.h."""
    words = native.random_u64(key, -(-n // 256) * 256).reshape(-1, 2, 128)
    uniform = 1.0 - (words[:, 0] >> np.uint64(12)) * 2.0**-52
    within = ((words[:, 1] << np.uint64(2)) >> np.uint64(12)) * 2.0**-52 - 0.5
    quarter = (words[:, 1] >> np.uint64(62)).astype(np.int64)
    angle = np.pi / 2 * (within + np.array([0, -1, 2, 1])[quarter])
    radius = np.sqrt(-2.0 * np.log(uniform))
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.ravel()[:n]


def drawn(source: NoiseSource, round_num: int, n: int = P) -> NDArray[np.float32]:
    return source.mean(round_num, 1.0, np.zeros(n), 1.0)


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 5000])
def test_noise_is_box_muller_on_the_stream_of_its_purpose(n: int) -> None:
    key = stream_key(9, Purpose.DP_NOISE, round_num=4)
    expected = slow_normal(key, n)
    assert_rounded(drawn(FreshNoise(9), 4, n), expected)
    mean = native.noised_mean(np.arange(float(n)), native.Noise([key], np.array([3.0])), 7.0)
    assert_rounded(mean, (np.arange(n) + 3 * expected) / 7)


def assert_rounded(found: NDArray[np.float32], exact: NDArray[np.float64]) -> None:
    """Checks float32 values against float64 ones; they may differ by one unit in the last place."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=2.0**-23, atol=1e-14)


def test_noise_takes_float64_vectors_and_groups_that_fit() -> None:
    keys = [stream_key(9, Purpose.DP_NOISE)] * 2
    one, two = (native.Noise(keys[:n], np.ones(n)) for n in (1, 2))
    for wrong in (np.zeros(3, np.float32), np.zeros((3, 3)), np.zeros(6)[::2], None):
        with pytest.raises((ValueError, TypeError)):
            native.noised_mean(wrong, one, 1.0)  # type: ignore[arg-type]
    frozen = np.zeros((2, 3))
    frozen.flags.writeable = False
    short, wide = np.zeros((1, 3)), np.zeros((2, 4))
    groups: tuple[Any, ...] = (None, short, wide, np.zeros((2, 3), np.float32), frozen)
    for each in groups:
        with pytest.raises(ValueError, match=r"2 keys|groups|read-only"):
            native.noised_mean(np.zeros(3), two._replace(groups=each), 1.0)
    with pytest.raises(ValueError, match="0 keys"):
        native.noised_mean(np.zeros(3), native.Noise([], np.ones(0)), 1.0)


@pytest.mark.parametrize("source", [FreshNoise(4), TreeNoise(4, 8, efficient=True)])
def test_threads_change_no_noise(source: NoiseSource) -> None:
    total = np.linspace(-3.0, 3.0, 40_000)  # threads share more than two parts of these
    for round_num in range(4):
        means = [source.mean(round_num, 0.5, total, 3.0, threads) for threads in (1, 2, 7)]
        assert (means[0] == means[1]).all()
        assert (means[0] == means[2]).all()


def test_noise_has_the_moments_of_a_standard_normal(seed: int) -> None:
    """Moments are means of P independent values; the bounds are five standard errors."""
    noise = drawn(FreshNoise(seed), 0).astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(noise**power) - moment) < 5 * math.sqrt(variance / P)
    # Kolmogorov and Smirnov's distance exceeds 2.2 / sqrt(P) for one seed in 8,000.
    phi = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in np.sort(noise)])
    assert np.abs(phi - (np.arange(P) + 0.5) / P).max() < 2.2 / math.sqrt(P)


def test_noise_of_rounds_seeds_and_neighbours_is_uncorrelated(seed: int) -> None:
    one = drawn(FreshNoise(seed), 3)
    assert (drawn(FreshNoise(seed), 3) == one).all()
    others = [drawn(FreshNoise(seed), 4), drawn(FreshNoise(seed + 1), 3)]
    others += [np.roll(one, by) for by in (1, 2, 64, 128, 256)]
    for other in others:
        assert abs(np.mean(one * other)) < 5 / math.sqrt(P)


PLAIN = (1, 1, 1.414214, 1, 1.414214, 1.414214, 1.732051, 1)
HONAKER = (1, 0.816497, 1.290994, 0.755929, 1.253566, 1.112697, 1.496026, 0.730297)


@pytest.mark.parametrize(("efficient", "deviations"), [(False, PLAIN), (True, HONAKER)])
def test_sums_of_tree_noise_have_the_published_deviations(
    seed: int, efficient: bool, deviations: tuple[float, ...]
) -> None:
    source = TreeNoise(seed, 8, efficient)
    total = np.zeros(P)
    for round_num, deviation in enumerate(deviations):
        total += drawn(source, round_num)
        # The relative standard error of a standard deviation is 1 / sqrt(2 P).
        assert np.std(total) == pytest.approx(deviation, rel=5 / math.sqrt(2 * P))
    after = drawn(source, 8)  # the first noise of the next tree
    assert np.std(after) == pytest.approx(1, rel=5 / math.sqrt(2 * P))
    assert abs(np.mean(after * total)) < 5 / math.sqrt(P)


def slow_tree_sum(seed: int, num_rounds: int, n: int, efficient: bool) -> NDArray[np.float64]:
    """Returns N_t by the definition of the tree, computing each node from its two halves."""

    def own(first: int, level: int) -> NDArray[np.float64]:
        last = first + (1 << level) - 1
        key = stream_key(seed, Purpose.DP_NOISE, round_num=last, occurrence=level)
        return slow_normal(key, n)

    def value(first: int, level: int) -> NDArray[np.float64]:
        if level == 0 or not efficient:
            return own(first, level)
        half = 1 << (level - 1)
        below = value(first, level - 1) + value(first + half, level - 1)
        return own(first, level) + 0.5 * below

    total, first = np.zeros(n), 0
    for level in reversed(range(num_rounds.bit_length())):
        if num_rounds >> level & 1:
            total += value(first, level) / ((2 - 0.5**level) if efficient else 1)
            first += 1 << level
    return total


@pytest.mark.parametrize("efficient", [False, True])
def test_tree_noise_against_its_definition(efficient: bool) -> None:
    source, total = TreeNoise(5, 100, efficient), np.zeros(300)
    for num_rounds in range(1, 21):
        before, total = total, slow_tree_sum(5, num_rounds, 300, efficient)
        assert_rounded(drawn(source, num_rounds - 1, 300), total - before)


@pytest.mark.parametrize("efficient", [False, True])
def test_tree_noise_after_a_jump_has_the_same_bytes(efficient: bool) -> None:
    straight = TreeNoise(3, 6, efficient)
    for round_num in range(20):
        expected = drawn(straight, round_num, 700)
        fresh = TreeNoise(3, 6, efficient)
        assert (drawn(fresh, round_num, 700) == expected).all()


# ---- The mean


def test_the_sum_is_noised_and_divided_by_the_expected_number_of_clients() -> None:
    vectors = [[3.0, 4.0], [0.3, 0.0], [-6.0, 8.0]]
    aggregator = private.gaussian(7, plan(1.5), clip=2.0)
    state = aggregator.init()
    for round_num in range(3):
        assert aggregator.request(state).bounds == (math.inf, 2.0)
        mean, state, metrics = aggregator.aggregate(state, deltas(vectors, 2.0))
        key = stream_key(7, Purpose.DP_NOISE, round_num=round_num)
        clipped = np.array([1.2 + 0.3 - 1.2, 1.6 + 0.0 + 1.6])
        expected = (clipped + 1.5 * 2.0 * slow_normal(key, 2)) / 4
        np.testing.assert_allclose(mean, expected, rtol=1e-6)
        assert mean.dtype == np.float32
        assert (metrics["clip_norm"], metrics["clipped_count"]) == (2.0, 2)
        assert (metrics["noise_multiplier"], metrics["delta"]) == (1.5, 1e-3)
        spent = Accountant(PoissonSampled(0.1), 1.5, 1e-3).spent(round_num + 1)
        assert (metrics["epsilon"], metrics["epsilon_rdp"]) == spent
        assert metrics["private"] is True
    assert state["num_rounds"] == 3


def test_a_round_without_clients_releases_noise_and_counts() -> None:
    aggregator = private.gaussian(7, plan(1.0), clip=2.0)
    nobody = Deltas(np.zeros(1000), 0.0, np.zeros(0, STATS))
    mean, state, metrics = aggregator.aggregate(aggregator.init(), nobody)
    assert np.std(mean) == pytest.approx(2.0 / 4, rel=5 / math.sqrt(2 * 1000))
    assert state["num_rounds"] == 1
    assert metrics["epsilon"] > 0


def test_without_noise_nothing_is_private_and_the_sum_is_exact() -> None:
    for make in (private.gaussian, _adaptive, _tree):
        aggregator = make(7, plan(0.0), clip=1.0)
        mean, _, metrics = aggregator.aggregate(aggregator.init(), deltas([[0.5, 0.25]], 1.0))
        assert mean.tolist() == [0.125, 0.0625]
        assert metrics["epsilon"] == metrics["epsilon_rdp"] == math.inf
        assert metrics["private"] is False


def _adaptive(seed: int, plan: PrivacyPlan, clip: float, **more: Any) -> PrivateMean:
    options = {"target_quantile": 0.5, "clip_lr": 0.2, **more}
    return private.gaussian_adaptive(seed, plan, clip=clip, **options)


def _tree(seed: int, plan: PrivacyPlan, clip: float) -> PrivateMean:
    return private.tree(seed, plan, clip=clip, restart_every=4, efficient=True)


def test_the_adaptive_norm_without_noise_has_the_published_trajectory() -> None:
    aggregator = _adaptive(7, plan(0.0), clip=0.1)
    state, trajectory = aggregator.init(), []
    vectors = [[0.05], [0.2], [0.3], [0.4]]
    for _ in range(4):
        used = state["clip"]
        _, state, metrics = aggregator.aggregate(state, deltas(vectors, used))
        assert metrics["clip_norm"] == used
        trajectory.append(state["clip"])
    published = [0.105127110, 0.110517092, 0.116183424, 0.122140276]
    assert trajectory == pytest.approx(published, abs=1e-9)


def test_noise_on_counts_moves_the_norm() -> None:
    clip = AdaptiveClip(quantile=0.5, rate=0.2, count_stddev=1.0)
    assert clip.after(0.1, 1 + 0.7, 3 - 0.7, 4) == pytest.approx(0.101511306, abs=1e-9)
    # The share of unclipped deltas is limited to the range from 0 to 1.
    assert clip.after(0.1, 100.0, -100.0, 4) == pytest.approx(0.1 * math.exp(-0.1))
    assert clip.after(0.1, -100.0, 100.0, 4) == pytest.approx(0.1 * math.exp(0.1))
    aggregator = _adaptive(7, plan(0.5, expected=40), clip=1.0, count_stddev=3.0)
    state, noises = aggregator.init(), []
    for round_num in range(300):
        before = state["clip"]
        nobody = Deltas(np.zeros(1), 0.0, np.zeros(0, STATS))
        _, state, _ = aggregator.aggregate(state, nobody)
        share = 0.5 - math.log(state["clip"] / before) / 0.2
        noises.append((share - 0.5) * 40)
        key = stream_key(7, Purpose.DP_COUNT_NOISE, round_num=round_num)
        assert noises[-1] == pytest.approx(3.0 * _first_normal(key), abs=1e-6)
    assert np.std(noises) == pytest.approx(3.0, rel=5 / math.sqrt(600))


def _first_normal(key: StreamKey) -> float:
    """Returns the first number of `core.draws.Stream.normal`."""
    first, second = ((native.random_u64(key, 2) >> np.uint64(11)) * 2.0**-53).tolist()
    return math.sqrt(-2 * math.log1p(-first)) * math.cos(2 * math.pi * second)


@pytest.mark.parametrize(
    ("z", "expected", "on_deltas"), [(1.0, 50, 1.02062), (1.2, 120, 1.20605), (0.5, 50, 0.502519)]
)
def test_counts_get_their_share_of_the_noise(z: float, expected: int, on_deltas: float) -> None:
    aggregator = _adaptive(1, plan(z, expected, 10 * expected), clip=1.0)
    assert aggregator.adaptive is not None
    split = aggregator.adaptive.noise_on_deltas(z)
    assert split == pytest.approx(on_deltas, rel=1e-5)
    # Divided by their noise, the two sensitivities are 1 / split and 0.5 / count_stddev.
    both = math.hypot(1 / split, 0.5 / aggregator.adaptive.count_stddev)
    assert both == pytest.approx(1 / z, rel=1e-12)


def test_counts_that_spend_everything_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"choose more than 10 --clients, or a count_stddev"):
        _adaptive(1, plan(1.0, 10, 100), clip=1.0)


def test_other_weights_and_changed_deltas_are_refused() -> None:
    aggregator = private.gaussian(7, plan(1.0), clip=2.0)
    heavy = deltas([[1.0]], 2.0)
    heavy.stats["weight"] = 20.0
    shifted = deltas([[1.0]], 2.0).shifted(np.ones(1))
    for wrong in (heavy, shifted, deltas([[1.0]], 2.0).scaled(2.0)):
        with pytest.raises(ConfigError, match="weighting='uniform'"):
            aggregator.aggregate(aggregator.init(), wrong)


def test_rounds_that_spend_at_another_rate_are_refused() -> None:
    state = private.gaussian(7, plan(1.0), clip=2.0).init()
    _, state, _ = private.gaussian(7, plan(1.0), clip=2.0).aggregate(state, deltas([[1.0]], 2.0))
    private.gaussian(7, plan(1.0), clip=2.0).request(state)
    for other, what in ((plan(1.1), "noise multiplier 1,"), (plan(1.0, 5), "sampling rate 0.1,")):
        with pytest.raises(ConfigError, match=what):
            private.gaussian(7, other, clip=2.0).request(state)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedsgd"])
def test_what_one_client_adds_to_a_round_is_at_most_the_norm(name: str) -> None:
    """The sums of a cohort with and without any of its clients differ by at most C."""
    clip = 0.02
    cohort = [draw(size, size, (4, 4), 3) for size in (30, 1, 50)]

    def moved(clients: list[Any]) -> NDArray[np.float64]:
        algorithm = algorithms.build(
            name,
            None if name == "fedsgd" else optimizers.sgd(0.5),
            optimizers.sgd(1.0),
            weighting="uniform",
            aggregator=private.gaussian(7, plan(0.0, expected=1, population=1), clip=clip),
        )
        process = learning.build_process(algorithm, softmax_regression((4, 4), 3))
        state = process.initialize()
        after = process.next(state, clients).state.global_model_weights.astype(np.float64)
        difference: NDArray[np.float64] = after - state.global_model_weights
        return difference

    whole = moved(cohort)
    for place in range(3):
        rest = moved(cohort[:place] + cohort[place + 1 :])
        # float32 rounding of parameters near 1
        assert np.linalg.norm(whole - rest) == pytest.approx(clip, rel=1e-3)


# ---- An attack


def lower_bound(hits: int, false_alarms: int, trials: int, delta: float) -> float:
    """Returns a lower bound on epsilon from the hits and false alarms of an attack.

    Each rate is within its Clopper-Pearson bound with a probability of 97.5 %.
    """
    detected = _first(lambda p: _at_least(trials, hits, p) > 0.025)
    alarmed = _first(lambda p: 1 - _at_least(trials, false_alarms + 1, p) < 0.025)
    if false_alarms == trials:
        alarmed = 1.0
    return math.log(max(detected - delta, 1e-300) / alarmed) if hits else -math.inf


def _at_least(trials: int, hits: int, p: float) -> float:
    """Returns the probability of at least `hits` hits."""
    if hits <= 0:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(p)
        + (trials - k) * math.log1p(-p)
        for k in range(hits, trials + 1)
    ]
    return sum(map(math.exp, logs))


def _first(holds: Callable[[float], bool]) -> float:
    low, high = 1e-12, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def test_the_bound_has_the_published_figures() -> None:
    assert lower_bound(60, 5, 100, 1e-5) == pytest.approx(1.483065, abs=1e-5)
    assert lower_bound(100, 0, 100, 1e-5) == pytest.approx(3.281336, abs=1e-5)


def canary_bound(noise_over_claim: float, trials: int = 1500) -> tuple[float, float]:
    """Attacks a client, the canary, which takes part in all of three rounds or in none.

    Its delta has the clipping norm and a direction that the other clients do not use. The attacker
    sees all means, adds up their parts in this direction and compares the sum with a threshold.

    Args:
        noise_over_claim: The added noise divided by the noise that epsilon is computed from.
        trials: The number of runs with the canary; as many are without it.

    Returns:
        A lower bound of epsilon, and the epsilon that was reported.
    """
    clip, delta, size = 0.5, 0.02, 8
    claimed = plan(2.0, size, size, delta)
    sent = [deltas([[0.0, 1.0]] * 7 + [[there, 0.0]], clip) for there in (0.0, 1.0)]
    scores = np.zeros((2, trials))
    for takes_part, trial in itertools.product((0, 1), range(trials)):
        noise = ScaledNoise(FreshNoise(2 * trial + takes_part), noise_over_claim)
        aggregator = PrivateMean(clip, 0, noise, claimed)
        state = aggregator.init()
        for _ in range(3):
            mean, state, metrics = aggregator.aggregate(state, sent[takes_part])
            scores[takes_part, trial] += mean[0]
    # Half of the trials choose the threshold; the other half count its hits and false alarms.
    choosing, measuring = scores[:, ::2], scores[:, 1::2]
    rates = [(np.mean(choosing >= each, axis=1), each) for each in choosing.ravel()]
    _, threshold = max(((hit - delta) / max(alarm, 0.03), each) for (alarm, hit), each in rates)
    alarms, hits = np.count_nonzero(measuring >= threshold, axis=1).tolist()
    return lower_bound(hits, alarms, measuring.shape[1], delta), metrics["epsilon"]


class ScaledNoise(NamedTuple):
    """A noise source that adds its noise times a factor."""

    source: NoiseSource
    factor: float

    def mean(
        self,
        round_num: int,
        scale: float,
        total: NDArray[np.float64],
        divisor: float,
        num_threads: int = 1,
    ) -> NDArray[np.float32]:
        return self.source.mean(round_num, self.factor * scale, total, divisor, num_threads)


def test_a_canary_refutes_halved_noise_but_not_the_noise_that_is_claimed() -> None:
    bound, epsilon = canary_bound(1.0)
    assert 0 < bound < epsilon
    bound, epsilon = canary_bound(0.5)
    assert bound > epsilon, "the attack is too weak to notice that half of the noise is missing"


def test_the_plain_mean_is_not_private() -> None:
    """The plain mean has neither noise nor a fixed denominator."""
    vectors = [[0.5, 0.0], [0.0, 0.5]]
    exact, _, _ = Mean().aggregate({}, deltas(vectors, 1.0))
    aggregator = private.gaussian(7, plan(0.0), clip=1.0)
    noised, _, _ = aggregator.aggregate(aggregator.init(), deltas(vectors, 1.0))
    np.testing.assert_allclose(noised * 4, exact * 2, rtol=1e-6)
