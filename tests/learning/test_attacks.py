"""The updates that attackers send, against numbers computed by hand and slow float64 references."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.learning import aggregators
from fedcli.learning.engines.deltas import Deltas, RoundContext
from fedcli.learning.updates.attacks import stage
from fedcli.learning.updates.attacks.against_krum import FangKrum, is_chosen_by_krum
from fedcli.learning.updates.attacks.deviations import (
    MinMax,
    MinSum,
    Optimal,
    greatest_factor,
    line_maximum,
)
from fedcli.learning.updates.attacks.malicious import (
    FangTrimmed,
    InnerProduct,
    LittleIsEnough,
    hiding_deviations,
)
from fedcli.learning.updates.attacks.mimic import Mimic
from fedcli.learning.updates.attacks.single import Boost, Gaussian, NotFinite, SignFlip, Zero
from fedcli.learning.updates.attacks.stage import AttackedRounds, AttackStage, UpdateAttack
from fedcli.learning.updates.contract import RoundUpdates
from fedcli.models.zoo import softmax_regression

pytestmark = pytest.mark.numeric

# The updates of seven clients. In most tests the last is the attacker and knows the other six.
ROWS = np.array(
    [
        *([1, 2, -1], [1.2, 1.8, -0.8], [0.9, 2.15, -1.1], [1.1, 1.9, -0.95]),
        *([0.75, 2.2, -1.3], [1.3, 1.7, -0.6], [-9, 8, 5]),
    ],
    np.float32,
)
IDS = tuple(f"c{index}" for index in range(7))
WEIGHTS = np.arange(10.0, 80.0, 10.0)
LAYOUT = softmax_regression((1, 1), 2).layout
STATS = np.dtype([("weight", np.float64), ("is_finite", np.uint8)])
# ROWS and the result of each formula are rounded to float32 once.
CLOSE: Any = {"rtol": 3e-7, "atol": 1e-8}


def _updates(
    rows: NDArray[np.float32] = ROWS,
    ids: Sequence[str] = IDS,
    weights: NDArray[np.float64] = WEIGHTS,
    round_num: int = 0,
    occurrences: Sequence[int] | None = None,
) -> RoundUpdates:
    stats = np.zeros(len(rows), STATS)
    stats["weight"] = weights
    stats["is_finite"] = 1
    around = RoundContext(3, round_num, tuple(ids), tuple(occurrences or [0] * len(ids)))
    return RoundUpdates(around, LAYOUT, stats, rows.copy())


def _stage(
    attack: UpdateAttack,
    attackers: Sequence[str] = ("c6",),
    rounds: AttackedRounds = AttackedRounds(1, 0, 1),  # noqa: B008 - frozen
    knowledge: str = "omniscient",
) -> AttackStage:
    return AttackStage(attack, frozenset(attackers), rounds, knowledge)


def _sent(
    attack: UpdateAttack, updates: RoundUpdates | None = None, **options: Any
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Returns the row of c6 after the attack, and the metrics; no other row may change."""
    updates = _updates() if updates is None else updates
    before = updates.rows.copy()
    made = _stage(attack, **options)
    metrics = made.run(made.init(updates.rows.shape[1]), updates)[1]
    honest = [place for place, each in enumerate(updates.round.client_ids) if each != "c6"]
    assert updates.rows[honest].tobytes() == before[honest].tobytes()
    return updates.rows[-1], metrics


@pytest.mark.parametrize(
    ("n", "a", "z"),
    [
        *((10, 1, 0.0), (10, 2, 0.0), (10, 3, 0.180012), (10, 4, 0.430727), (20, 4, 0.157311)),
        *((20, 5, 0.253347), (50, 5, 0.083652), (50, 10, 0.253347), (50, 12, 0.336038)),
        *((50, 24, 1.426077), (100, 10, 0.111637), (100, 20, 0.285841), (100, 30, 0.524401)),
    ],
)
def test_the_z_of_alie(n: int, a: int, z: float) -> None:
    assert hiding_deviations(n, a) == pytest.approx(z, abs=6e-7)


def test_alie() -> None:
    z = NormalDist().inv_cdf(0.6)  # the z for 20 clients, 5 of them attackers
    row, metrics = _sent(LittleIsEnough(z))
    np.testing.assert_allclose(row, [0.990734026, 1.908676870, -1.019566163], **CLOSE)
    assert metrics == {"is_made": 1, "z": z}


def test_alie_computes_z_from_the_updates_that_count() -> None:
    rows = np.repeat(ROWS[:6], 2, axis=0)[:10]
    ids = [f"c{index}" for index in range(10)]
    weights = np.ones(10)
    weights[0] = 0.0
    attackers = ("c7", "c8", "c9")
    made = _stage(LittleIsEnough("auto"), attackers)
    metrics = made.run({}, _updates(rows, ids, weights))[1]
    assert metrics["z"] == hiding_deviations(9, 3)


def test_alie_is_not_made_by_half_of_the_cohort() -> None:
    updates = _updates()
    made = _stage(LittleIsEnough("auto"), IDS[:4])
    assert made.run({}, updates)[1] == {"is_made": 0}
    assert updates.rows.tobytes() == ROWS.tobytes()


def test_ipm() -> None:
    row, _ = _sent(InnerProduct(0.5))
    np.testing.assert_allclose(row, [-0.520833333, -0.979166667, 0.479166667], **CLOSE)


@pytest.mark.parametrize(
    ("attack", "gamma"),
    [
        (MinMax("std"), 1.8288803),
        (MinMax("sign"), 0.4225922),
        (MinMax("unit"), 0.7024193),
        (MinSum("std", "max"), 1.3813019),
        (MinSum("std", "min"), 0.1947975),
        (MinSum("sign", "max"), 0.2954483),
        (MinSum("sign", "min"), 0.0416565),
        (MinSum("unit", "max"), 0.5117226),
        (MinSum("unit", "min"), 0.0721550),
    ],
)
def test_the_gamma_of_min_max_and_min_sum(attack: UpdateAttack, gamma: float) -> None:
    assert _sent(attack)[1]["gamma"] == pytest.approx(gamma, abs=6e-8)


def test_what_min_max_and_min_sum_send() -> None:
    expected = [0.673990456, 1.599869682, -1.400365293]
    np.testing.assert_allclose(_sent(MinMax("std"))[0], expected, **CLOSE)
    expected = [0.763971162, 1.687595816, -1.292187645]
    np.testing.assert_allclose(_sent(MinSum("std", "max"))[0], expected, **CLOSE)


def test_the_search_finds_the_greatest_allowed_factor() -> None:
    for limit in (0.0, 1e-3, 3.7, 15.0):
        assert greatest_factor(limit.__ge__) == pytest.approx(limit, abs=2e-5)
    assert greatest_factor(lambda _: True) == pytest.approx(20.0, abs=1e-4)


def test_fang_trimmed_draws_beyond_the_extremes() -> None:
    drawn = np.array([_sent(FangTrimmed(2.0), _updates(round_num=each))[0] for each in range(300)])
    lows, highs = np.array([0.375, 0.85, -0.6]), np.array([0.75, 1.7, -0.3])
    assert (drawn >= lows - 1e-6).all()
    assert (drawn <= highs + 1e-6).all()
    # The extremes of 300 uniform draws are within a tenth of the interval from its ends.
    np.testing.assert_allclose(drawn.min(axis=0), lows, atol=0.1 * 0.85)
    np.testing.assert_allclose(drawn.max(axis=0), highs, atol=0.1 * 0.85)


def test_fang_trimmed_sends_zero_where_all_updates_are_zero() -> None:
    rows = np.array([[-1, 1, 0], [3, -3, 0], [0, 0, 0]], np.float32)
    row, _ = _sent(FangTrimmed(2.0), _updates(rows, ("a", "b", "c6"), np.ones(3)))
    assert -2.0 <= row[0] <= -1.0  # the mean is 1, the smallest value -1
    assert 1.0 <= row[1] <= 2.0
    assert row[2] == 0.0


def _krum_choice(rows: NDArray[np.float64], f: int) -> int:
    """Krum by its definition."""
    n = len(rows)
    scores = []
    for i in range(n):
        distances = sorted(float(np.sum((rows[i] - rows[j]) ** 2)) for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    return int(np.argmin(scores))


@pytest.mark.parametrize("seed", range(8))
def test_fang_krum_sends_what_krum_chooses(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = (0.3 + random.normal(size=(10, 6))).astype(np.float32)
    ids = [f"c{index}" for index in range(10)]
    attackers = ("c0", "c4", "c9")
    updates = _updates(rows, ids, np.ones(10))
    metrics = _stage(FangKrum(), attackers).run({}, updates)[1]
    assert metrics["is_chosen_by_krum"] == 1
    assert ids[_krum_choice(updates.rows.astype(np.float64), 3)] in attackers
    known = np.delete(rows.astype(np.float64), [0, 4, 9], axis=0)
    signs = np.sign(known.mean(axis=0))
    np.testing.assert_allclose(updates.rows[0], -metrics["lambda"] * signs, rtol=1e-6)
    # lambda is the paper's bound, halved until Krum chooses the attackers.
    distances = np.sqrt(((known[:, None] - known) ** 2).sum(axis=2))
    nearest = np.sort(distances, axis=1)[:, 1:6].sum(axis=1).min()
    bound = nearest / (3 * np.sqrt(6)) + np.sqrt((known**2).sum(axis=1)).max() / np.sqrt(6)
    halvings = np.log2(bound / metrics["lambda"])
    assert halvings == pytest.approx(round(halvings), abs=1e-9)
    if round(halvings):
        twice = np.concatenate([known, np.repeat([-2 * metrics["lambda"] * signs], 3, axis=0)])
        assert _krum_choice(twice, 3) < 7


def test_fang_krum_fails_against_updates_that_lie_close_together() -> None:
    assert _sent(FangKrum())[1]["is_chosen_by_krum"] == 0


def test_fang_krum_needs_a_majority_and_three_known_updates() -> None:
    updates = _updates()
    assert _stage(FangKrum(), IDS[:3]).run({}, updates)[1] == {"is_made": 0}
    assert updates.rows.tobytes() == ROWS.tobytes()


def test_krum_chooses_by_the_nearest_others() -> None:
    between = np.array([[0, 1, 4], [1, 0, 1], [4, 1, 0]], float)
    assert is_chosen_by_krum(between, np.array([0.5, 2.0, 3.0]), 1) is False  # a tie at 0.5
    assert is_chosen_by_krum(between, np.array([0.9, 2.0, 3.0]), 2) is True  # its copy is nearest


def test_mimic_copies_a_known_update() -> None:
    row, metrics = _sent(Mimic(10))
    assert row.tobytes() == ROWS[metrics["copied"]].tobytes()


def test_mimic_finds_the_direction_of_the_greatest_variance_and_keeps_it() -> None:
    random = np.random.default_rng(1)
    long = np.array([3.0, 0.0, 4.0]) / 5.0
    made = _stage(Mimic(4))
    state = made.init(3)
    for round_num in range(6):
        along = random.normal(size=(7, 1)) * 10.0
        rows = (along * long + 0.1 * random.normal(size=(7, 3))).astype(np.float32)
        before = state
        state, metrics = made.run(state, _updates(rows, round_num=round_num))
        honest = rows[:6].astype(np.float64)
        scores = (honest - honest.mean(axis=0)) @ state["direction"]
        assert metrics["copied"] == int(np.argmax(scores))
    assert state["num_steps"] == 4
    assert state["direction"] is before["direction"]
    assert abs(state["direction"] @ long) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_optimal_moves_the_rule_farther_than_other_factors(rule: str) -> None:
    aggregator = aggregators.build(rule)

    def rule_result(deltas: Deltas) -> NDArray[np.float32]:
        return aggregator.aggregate(aggregator.init(), deltas)[0]

    attackers = ("c5", "c6")
    updates = _updates()
    made = _stage(Optimal("std", 16, rule_result), attackers)
    metrics = made.run({}, updates)[1]
    known = ROWS[:5].astype(np.float64)
    mean, std = known.mean(axis=0), known.std(axis=0, ddof=1)
    expected = np.repeat([mean - metrics["gamma"] * std], 2, axis=0)
    np.testing.assert_allclose(updates.rows[5:], expected, rtol=1e-6)

    def distance(gamma: float) -> float:
        rows = np.concatenate([known, np.repeat([mean - gamma * std], 2, axis=0)])
        mean_of_all = WEIGHTS @ rows / WEIGHTS.sum()
        result = np.median(rows, axis=0) if rule == "median" else mean_of_all
        return float(np.linalg.norm(result - mean))

    assert metrics["distance"] == pytest.approx(distance(metrics["gamma"]), rel=1e-5)
    others = [distance(gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert metrics["distance"] >= max(others) * (1.0 - 1e-6)


def test_the_line_search_makes_all_its_trials_and_keeps_the_best() -> None:
    points: list[float] = []

    def hill(x: float) -> float:
        points.append(x)
        return -((x - 5.0) ** 2)

    best, value = line_maximum(hill, 20)
    assert len(points) == 20
    assert min(points) >= 0.0
    assert value == max(-((x - 5.0) ** 2) for x in points) == -((best - 5.0) ** 2)
    assert best == pytest.approx(5.0, abs=0.2)
    assert line_maximum(lambda x: -x, 1) == (0.0, 0.0)


def test_single_attacks() -> None:
    own = ROWS[6].astype(np.float64)
    assert _sent(SignFlip(2.0))[0].tolist() == (-2.0 * own).tolist()
    assert _sent(Zero())[0].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(_sent(NotFinite())[0]).all()


def test_the_boost_replaces_the_model() -> None:
    weights = np.array([10.0, 30.0, 20.0, 15.0, 5.0, 10.0, 10.0])
    rows = np.zeros_like(ROWS)
    rows[6] = ROWS[6]
    updates = _updates(rows, weights=weights)
    row, metrics = _sent(Boost("auto", 0.0), updates)
    assert metrics == {"boost": 10.0}
    assert (10.0 / 100.0 * row).tolist() == pytest.approx(ROWS[6].tolist(), rel=1e-6)
    assert _sent(Boost(3.0, 0.0))[0].tolist() == (3 * ROWS[6]).tolist()


def test_the_boosted_update_is_projected() -> None:
    row, _ = _sent(Boost("auto", 2.0))
    assert np.linalg.norm(row.astype(np.float64)) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(row / row[0], ROWS[6] / ROWS[6][0], rtol=1e-6)
    assert _sent(Boost(1.0, 100.0))[0].tolist() == ROWS[6].tolist()


def test_noise_is_as_long_as_the_update_and_new_for_each_round_and_client() -> None:
    rows = np.ones((3, 20_000), np.float32) * np.array([[1.0], [2.0], [3.0]], np.float32)
    ids, ones = ("c6", "c6", "c5"), np.ones(3)
    sent = []
    for round_num in (0, 1, 0):
        updates = _updates(rows, ids, ones, round_num, occurrences=(0, 1, 0))
        _stage(Gaussian(1.0), ("c5", "c6")).run({}, updates)
        sent.append(updates.rows)
    np.testing.assert_allclose(sent[0].std(axis=1), [1.0, 2.0, 3.0], rtol=0.02)
    np.testing.assert_allclose(sent[0].mean(axis=1), 0.0, atol=0.1)
    assert sent[0].tobytes() == sent[2].tobytes()
    unit = (sent[0] / [[1.0], [2.0], [3.0]]).round(4)
    assert not np.array_equal(unit[0], unit[1])
    assert not np.array_equal(unit[0], unit[2])
    assert not np.array_equal(sent[0], sent[1])


ALL = (
    *(SignFlip(1.0), Gaussian(1.0), Zero(), NotFinite(), Boost("auto", 0.0)),
    *(LittleIsEnough("auto"), InnerProduct(0.5), MinMax("std"), MinSum("unit", "max")),
    *(FangTrimmed(2.0), FangKrum(), Mimic(3)),
)


@pytest.mark.parametrize("attack", ALL, ids=lambda each: type(each).__name__)
def test_rounds_without_attackers_or_outside_the_schedule_stay_as_they_are(
    attack: UpdateAttack,
) -> None:
    for made, round_num in (
        (_stage(attack, ("elsewhere",)), 0),
        (_stage(attack, rounds=AttackedRounds(3, 0, 1)), 1),
        (_stage(attack, rounds=AttackedRounds(3, 5, 2)), 3),
    ):
        updates = _updates(round_num=round_num)
        state = made.init(3)
        after, metrics = made.run(state, updates)
        assert updates.rows.tobytes() == ROWS.tobytes()
        assert metrics == {}
        assert after == state


def test_a_schedule() -> None:
    rounds = AttackedRounds(start=3, stop=9, every=3)
    assert [num + 1 for num in range(20) if rounds.has(num)] == [3, 6, 9]
    assert [num for num in range(5) if AttackedRounds(1, 0, 1).has(num)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("attack", ALL, ids=lambda each: type(each).__name__)
def test_an_attacker_whose_update_does_not_count_sends_nothing_else(attack: UpdateAttack) -> None:
    weights = WEIGHTS.copy()
    weights[6] = 0.0
    rows = ROWS.copy()
    rows[6] = 0.0
    updates = _updates(rows, weights=weights)
    made = _stage(attack)
    assert made.run(made.init(3), updates)[1] == {}
    assert updates.rows.tobytes() == rows.tobytes()


def test_an_honest_update_that_does_not_count_is_not_known() -> None:
    weights = WEIGHTS.copy()
    weights[4] = 0.0
    row, _ = _sent(InnerProduct(1.0), _updates(weights=weights))
    expected = -np.delete(ROWS[:6].astype(np.float64), 4, axis=0).mean(axis=0)
    np.testing.assert_allclose(row, expected, **CLOSE)


def test_colluders_know_only_their_own_updates() -> None:
    made = _stage(InnerProduct(1.0), ("c5", "c6"), knowledge="colluders")
    updates = _updates()
    made.run({}, updates)
    expected = -ROWS[5:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(updates.rows[5:], [expected, expected], **CLOSE)


def test_a_lone_known_update_has_no_deviation() -> None:
    made = _stage(LittleIsEnough(1.5), knowledge="colluders")
    updates = _updates()
    made.run({}, updates)
    assert updates.rows.tobytes() == ROWS.tobytes()  # it knows only its own update


def test_without_known_updates_the_attack_is_not_made() -> None:
    for attack in (InnerProduct(1.0), MinMax("std"), MinSum("std", "max"), FangTrimmed(2.0)):
        updates = _updates()
        assert _stage(attack, IDS).run({}, updates)[1] == {"is_made": 0}
        assert updates.rows.tobytes() == ROWS.tobytes()


@pytest.mark.parametrize(
    "attack",
    [each for each in ALL if not isinstance(each, Boost | SignFlip | Gaussian | NotFinite)],
    ids=lambda each: type(each).__name__,
)
def test_slices_do_not_change_what_is_sent(
    attack: UpdateAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slices, sums over the coordinates are added in parts: only their rounding differs."""
    random = np.random.default_rng(2)
    rows = random.normal(size=(7, 101)).astype(np.float32)
    made = _stage(attack)
    whole, cut = _updates(rows), _updates(rows)
    made.run(made.init(101), whole)
    monkeypatch.setattr(stage, "SLICE_BYTES", 8 * 6 * 10)
    made.run(made.init(101), cut)
    np.testing.assert_allclose(cut.rows, whole.rows, rtol=1e-6)


def test_the_search_survives_a_client_a_million_times_as_large() -> None:
    """Distances are sums of squared differences, so distances between other updates stay exact."""
    rows = ROWS.copy()
    rows[0] *= 1e6
    row, metrics = _sent(MinMax("unit"), _updates(rows))
    known = rows[:6].astype(np.float64)
    limit = ((known[:, None] - known) ** 2).sum(axis=2).max()
    mean = known.mean(axis=0)
    sent = mean - metrics["gamma"] * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(row, sent, rtol=1e-6)
    assert ((known - sent) ** 2).sum(axis=1).max() <= limit * (1.0 + 1e-12)
