"""Robust rules, buckets, privacy and compression on secure sums, compared with plain sums."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.core.native import STATS
from fedcli.learning.aggregators import build, build_after
from fedcli.learning.aggregators.centers import CenteredClipping, GeometricMedian
from fedcli.learning.aggregators.mean import Mean
from fedcli.learning.aggregators.order_statistics import SignMajority
from fedcli.learning.aggregators.pre_aggregation import PreAggregated
from fedcli.learning.aggregators.private import PrivacyPlan, gaussian
from fedcli.learning.engines.deltas import DeltaBounds, Deltas, RoundContext
from fedcli.learning.masked_sums import SumOptions, setup_bytes
from fedcli.learning.secure_sums.buckets import SecureBuckets
from fedcli.learning.secure_sums.one_sum import Multiples, SecureSum, SomeCoordinates, SumCode
from fedcli.learning.secure_sums.steps import SecureSteps, SteppingRule
from fedcli.learning.updates import compression
from fedcli.learning.updates.compression import RandomCoordinates, SharedSteps
from fedcli.learning.updates.contract import RoundUpdates
from fedcli.models import zoo
from fedcli.privacy.accountant import Accountant
from fedcli.privacy.schemes import PoissonSampled
from fedcli.runs.ledger import ledger_of
from fedcli.runs.record import load_run
from tests.kit.training import figures, trained, trained_with_a_stop

pytestmark = pytest.mark.numeric

FINE = SumOptions(bits=32)  # changes the coordinates of EXAMPLE by less than 1e-8
EXAMPLE = np.array(
    [
        [1, 2, -1],
        [1.2, 1.8, -0.8],
        [0.9, 2.15, -1.1],
        [1.1, 1.9, -0.95],
        [0.75, 2.2, -1.3],
        [1.3, 1.7, -0.6],
        [-9, 8, 5],
    ],
    np.float32,
)
WEIGHTS = [10, 20, 30, 40, 50, 60, 70]


def deltas_of(
    rows: NDArray[np.float32], weights: Any = 1.0, num_absent: int = 0, **more: Any
) -> Deltas:
    stats = np.zeros(len(rows), STATS)
    stats["weight"] = weights
    stats["is_finite"] = 1
    stats["norm"] = np.linalg.norm(rows.astype(np.float64), axis=1)
    ids = tuple(f"c{each}" for each in range(len(rows)))
    context = RoundContext(5, 3, ids, (0,) * len(rows), num_absent)
    unused = np.full(rows.shape[1], np.nan)  # the plain sum must not be used
    return Deltas(unused, np.nan, stats, rows, round=context, **more)


def noise(shape: tuple[int, ...], seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- Rules in steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighted", "iterations", "expected"),
    [
        (True, 1, [0.033033906, 2.560757003, -0.355526304]),
        (True, 4, [0.920835275, 2.043463157, -0.934488061]),
        (False, 1, [0.756627247, 2.134247675, -0.808726849]),
    ],
)
def test_the_geometric_median_has_the_published_values(
    weighted: bool, iterations: int, expected: list[float]
) -> None:
    rule = GeometricMedian(iterations=iterations, weighted=weighted, start="mean")
    secure = SecureSteps(rule, FINE)
    found = secure.aggregate(secure.init_for(3), deltas_of(EXAMPLE, WEIGHTS))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    sums = found[2]["secure_sum"]
    # 3 coordinates of 35 bits are 14 bytes, a weight is 5. The first sum may have no weights.
    assert sums["payload_bytes"] == 14 + 5 * weighted + iterations * (14 + 5)
    assert sums["extra_bytes_down"] == iterations * 4 * 3


def test_centered_clipping_has_the_published_values() -> None:
    first = SecureSteps(CenteredClipping(radius=1.0), FINE)
    state = first.init_for(3)
    found, state, metrics = first.aggregate(state, deltas_of(EXAMPLE))
    np.testing.assert_allclose(found, [0.273399548, 0.775696652, -0.279090339], atol=1e-6)
    assert metrics["secure_sum"]["payload_bytes"] == 14
    again, state, _ = first.aggregate(state, deltas_of(EXAMPLE))
    np.testing.assert_allclose(again, [0.594550668, 1.487598299, -0.578266382], atol=1e-6)
    three = SecureSteps(CenteredClipping(radius=1.0, iterations=3), FINE)
    found, _, metrics = three.aggregate(three.init_for(3), deltas_of(EXAMPLE))
    np.testing.assert_allclose(found, [0.870714504, 1.960810294, -0.839501101], atol=1e-6)
    assert metrics["secure_sum"]["extra_bytes_down"] == 3 * 4 * 3


@pytest.mark.parametrize("num_absent", [0, 3])
def test_votes_are_exact_and_take_few_bits(num_absent: int) -> None:
    rows = noise((7, 300))
    rows[:, :9] = 0.0
    weights = [1, 1, 0, 1, 1, 1, 1]
    secure = SecureSteps(SignMajority())
    found, _, metrics = secure.aggregate(secure.init(), deltas_of(rows, weights, num_absent))
    expected = np.sign(np.sign(np.delete(rows, 2, axis=0)).sum(axis=0))
    np.testing.assert_array_equal(found, expected)
    width = (2 * (7 + num_absent)).bit_length()  # log2(2 n + 1), rounded up
    assert metrics["secure_sum"]["payload_bytes"] == math.ceil(300 * width / 8)
    assert metrics["secure_sum"]["num_dropped_out"] == 1 + num_absent


RULES: dict[str, SteppingRule] = {
    "median": GeometricMedian(start="mean"),
    "weighted": GeometricMedian(start="mean", weighted=True),
    "clipping": CenteredClipping(radius=3.0, iterations=2),
    "signs": SignMajority(),
}


@pytest.mark.parametrize("is_stochastic", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_rules_equal_their_plain_forms_when_clients_drop_out(
    name: str, is_stochastic: bool
) -> None:
    rows, weights = noise((9, 40)), [3, 1, 4, 1, 5, 9, 0, 6, 0]
    rows[4] *= 1e4
    rows[[6, 8]] = 0.0
    secure = SecureSteps(RULES[name], SumOptions(bits=30, is_stochastic=is_stochastic))
    deltas = deltas_of(rows, weights, num_absent=4)
    found, after, metrics = secure.aggregate(secure.init_for(40), deltas)
    plain = RULES[name]
    start = secure.init_for(40)
    expected, _, _ = plain.aggregate(start, deltas)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert metrics["secure_sum"]["num_dropped_out"] == 6
    short = secure.aggregate(start, deltas_of(rows, weights, num_absent=8))
    assert np.isnan(short[0]).all()
    assert short[1]["num_skipped"] == 1
    assert short[2]["secure_sum"]["is_skipped"] == 1
    assert after["num_skipped"] == 0


def test_a_far_client_does_not_make_the_levels_coarse() -> None:
    """Clients send clipped differences from the current result, so every update is bounded."""
    rows = EXAMPLE.copy()
    for scale in (1e2, 1e4, 1e6):
        rows[6] = EXAMPLE[6] * np.float32(scale)
        secure = SecureSteps(CenteredClipping(radius=1.0))
        found, _, _ = secure.aggregate(secure.init_for(3), deltas_of(rows))
        expected, _, _ = secure.inner.aggregate(secure.init_for(3), deltas_of(rows))
        np.testing.assert_allclose(found, expected, atol=1e-6)


# ---- Buckets -------------------------------------------------------------------------------------


def bucketed(rule: str = "median", size: int = 2) -> PreAggregated:
    made = build_after("bucketing", rule, {}, {"size": size})
    assert isinstance(made, PreAggregated)
    return made


@pytest.mark.parametrize("rule", ["mean", "median", "krum", "geometric-median"])
@pytest.mark.parametrize("size", [2, 4])
def test_buckets_equal_plain_ones_if_nobody_drops_out(rule: str, size: int) -> None:
    inner = bucketed(rule, size)
    rows = noise((16, 30))
    secure = SecureBuckets(inner, SumOptions(bits=30))
    found, _, metrics = secure.aggregate(secure.init_for(30), deltas_of(rows))
    expected, _, _ = inner.aggregate(inner.init_for(30), deltas_of(rows))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sums = metrics["secure_sum"]
    assert sums["num_buckets"] == 16 // size
    up, down = setup_bytes(size)
    assert (sums["all_setup_bytes_up"], sums["all_setup_bytes_down"]) == (16 * up, 16 * down)
    width = 30 + (size - 1).bit_length()
    assert sums["payload_bytes"] == math.ceil(30 * width / 8)


def test_no_bucket_has_one_client_or_shows_one() -> None:
    """A last client that is alone joins the bucket before; a bucket with one report is left out."""
    secure = SecureBuckets(bucketed("mean"))
    found = secure.aggregate(secure.init_for(4), deltas_of(noise((7, 4))))[2]["secure_sum"]
    assert found["num_buckets"] == 3
    assert found["num_selected"] == 7
    weights = [1, 0, 1, 1, 1, 1, 1, 1]
    rows = noise((8, 4))
    mean, _, metrics = secure.aggregate(secure.init_for(4), deltas_of(rows, weights))
    assert metrics["secure_sum"]["num_buckets"] == 3
    assert metrics["secure_sum"]["num_failed_buckets"] == 1
    partners = [  # who shared the bucket of client 1: the mean leaves out both
        each
        for each in range(8)
        if each != 1
        and np.allclose(np.delete(rows, [1, each], axis=0).mean(axis=0), mean, atol=1e-5)
    ]
    assert len(partners) == 1


def test_a_rule_whose_buckets_are_too_few_skips_the_round() -> None:
    secure = SecureBuckets(
        PreAggregated(bucketed().before, build("krum", {"num_byzantine": 1})), FINE
    )
    assert secure.problem(8) is not None  # krum needs 2 f + 3 buckets
    assert secure.problem(10) is None
    weights = [1] * 9 + [0]
    mean, after, metrics = secure.aggregate(secure.init_for(4), deltas_of(noise((10, 4)), weights))
    assert np.isnan(mean).all()
    assert after["num_skipped"] == 1
    assert metrics["secure_sum"]["num_failed_buckets"] == 1


# ---- Privacy -------------------------------------------------------------------------------------


def private(noise_multiplier: float = 1.0) -> Any:
    accountant = Accountant(PoissonSampled(0.1), noise_multiplier, 1e-3)
    return gaussian(5, PrivacyPlan(10, 0.1, accountant), clip=0.5)


def clipped(rows: NDArray[np.float32], **more: Any) -> Deltas:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    inside = (rows * np.minimum(1.0, 0.5 / np.maximum(norms, 1e-30))).astype(np.float32)
    return deltas_of(inside, bounds=DeltaBounds(math.inf, 0.5), **more)


def test_noise_covers_what_rounding_adds_to_an_update() -> None:
    """With few bits, rounding lengthens updates beyond the norm; the noise grows with them."""
    secure = SecureSum(private(), SumOptions(bits=4, sends_zeros=True))
    deltas = clipped(noise((10, 50)))
    mean, _, metrics = secure.aggregate(secure.init(), deltas)
    step = 1.0 / 15
    sensitivity = 0.5 + 0.5 * step * math.sqrt(50)
    assert metrics["sensitivity"] == pytest.approx(sensitivity, rel=1e-12)
    assert deltas.rows is not None
    levels = np.rint((deltas.rows.astype(np.float64) + 0.5) * 15)
    longest = np.linalg.norm(levels / 15 - 0.5, axis=1).max()
    assert 0.5 < longest <= sensitivity  # the bound is needed, and it holds
    silent = SecureSum(private(0.0), SumOptions(bits=4, sends_zeros=True))
    quiet, _, _ = silent.aggregate(silent.init(), deltas)
    noise_alone = private().noise.mean(0, sensitivity, np.zeros(50), 10)
    np.testing.assert_allclose(mean - quiet, noise_alone, atol=1e-6)


@pytest.mark.parametrize("num_clients", [0, 1, 3])
def test_a_private_round_is_never_skipped(num_clients: int) -> None:
    """This holds even without clients: a skipped round would reveal who took part."""
    rows = noise((num_clients, 8))
    secure = SecureSum(private(), SumOptions(sends_zeros=True))
    mean, after, metrics = secure.aggregate(secure.init(), clipped(rows))
    assert np.isfinite(mean).all()
    assert mean.any()
    assert after["num_rounds"] == 1
    assert metrics["secure_sum"]["is_skipped"] == 0


def test_a_client_without_valid_update_sends_zeros() -> None:
    rows = noise((4, 8))
    rows[2] = 0.0
    deltas = clipped(rows)
    deltas.stats["weight"][2] = 0.0
    secure = SecureSum(private(), SumOptions(bits=30, sends_zeros=True))
    found, _, metrics = secure.aggregate(secure.init(), deltas)
    assert metrics["secure_sum"]["num_dropped_out"] == 0
    total = deltas.rows.astype(np.float64).sum(axis=0)  # type: ignore[union-attr]
    expected = private().noise.mean(0, metrics["sensitivity"], total, 10)
    np.testing.assert_allclose(found, expected, atol=1e-7)


# ---- Compression ---------------------------------------------------------------------------------

LAYOUT = zoo.softmax_regression((6, 5), 4).layout
SIZE = LAYOUT.num_params
SEEN = [3.0, 1.0, 0.0, 5.0, 2.0, 8.0]
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed-step": {"step": 0.01},
    "random-k": {"fraction": 0.25},
    "powersgd": {"rank": 2},
    "sketch": {"width": 0.5, "fraction": 0.1},
}
CODES: dict[str, SumCode] = {
    "fixed-step": Multiples(SharedSteps(0.01, 12)),
    "random-k": SomeCoordinates(RandomCoordinates(0.25)),
}


def compressed(name: str, sums: SumOptions | None, num_absent: int = 2) -> tuple[Any, ...]:
    """Returns the mean, the metrics and the compressed updates of the second of two rounds."""
    stage = compression.build(name, OPTIONS[name], num_threads=1, sums=sums)
    state = stage.init(SIZE)
    for seed in (1, 2):
        rows = noise((6, SIZE), seed)
        rows[2] = 0.0
        deltas = deltas_of(rows, SEEN, num_absent)
        assert deltas.round is not None
        updates = RoundUpdates(deltas.round, LAYOUT, deltas.stats, rows)
        state, of_stage = stage.run(state, updates)
    weights = updates.stats["weight"]
    total = (weights[:, None] * updates.rows.astype(np.float64)).sum(axis=0)
    plain = Deltas(total, float(weights.sum()), updates.stats, updates.rows, round=updates.round)
    if sums is None or name not in CODES:
        return Mean().aggregate({}, plain)[0], of_stage, updates
    code = CODES[name]
    mean, _, metrics = SecureSum(Mean(), sums, code).aggregate({}, deltas_of_same(plain))
    return mean, {**of_stage, **metrics}, updates


def deltas_of_same(deltas: Deltas) -> Deltas:
    """Returns the same deltas without their sum, which a secure sum must not use."""
    return replace(deltas, delta_sum=np.full(SIZE, np.nan), weight_sum=math.nan)


@pytest.mark.parametrize("name", [each for each in OPTIONS if each != "random-k"])
def test_sums_of_payloads_decode_to_the_plain_mean(name: str) -> None:
    expected, plain, _ = compressed(name, None)
    found, secure, _ = compressed(name, FINE)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert secure["compression_error"] == pytest.approx(plain["compression_error"], rel=1e-5)
    assert "payload_bytes" in plain
    assert "payload_bytes" not in secure  # the secure sum reports them


def test_multiples_of_the_step_are_summed_exactly() -> None:
    found, _, updates = compressed("fixed-step", SumOptions(bits=4))
    codes = np.rint(updates.rows.astype(np.float64) / 0.01)
    expected = 0.01 * (np.array(SEEN)[:, None] * codes).sum(axis=0) / sum(SEEN)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_clients_send_the_same_random_coordinates_and_nothing_else() -> None:
    found, metrics, updates = compressed("random-k", FINE)
    count = math.ceil(0.25 * SIZE)
    sent = [np.flatnonzero(row) for row in np.delete(updates.rows, 2, axis=0)]
    assert all(len(each) == count for each in sent)
    assert all((each == sent[0]).all() for each in sent)
    np.testing.assert_array_equal(np.flatnonzero(found), sent[0])
    weights = np.array(SEEN)[:, None]
    expected = (weights * updates.rows.astype(np.float64)).sum(axis=0) / sum(SEEN)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    # A coordinate takes 32 + log2(8) bits, for 6 clients and 2 absent ones; a weight follows.
    assert metrics["secure_sum"]["payload_bytes"] == math.ceil(count * 35 / 8) + 5


@pytest.mark.parametrize(
    ("name", "exchanges"), [("powersgd", [2 * 30, 2 * 4 + 4]), ("sketch", [5 * 62])]
)
def test_the_bytes_are_those_of_the_values_that_are_summed(name: str, exchanges: list[int]) -> None:
    """PowerSGD sums the left factor of the weights, then the right one together with the bias."""
    sums = compressed(name, FINE)[1]["secure_sum"]
    assert sums["num_selected"] == 8
    assert sums["num_dropped_out"] == 3
    assert sums["payload_bytes"] == sum(math.ceil(each * 35 / 8) + 5 for each in exchanges)


def test_each_payload_is_counted_once() -> None:
    """PowerSGD's clients send the left factor, then the right one together with the bias."""
    for sums in (None, FINE):
        *_, updates = compressed("powersgd", sums)
        counted = {place: 4 * (2 * 30 + 2 * 4 + 4) for place in range(6) if place != 2}
        assert updates.sent_bytes == counted


@pytest.mark.parametrize("name", ["powersgd", "sketch"])
def test_the_server_has_only_the_common_update(name: str) -> None:
    *_, updates = compressed(name, FINE)
    counted = np.delete(updates.rows, 2, axis=0)
    assert (counted == counted[0]).all()
    assert counted.any()


@pytest.mark.parametrize("name", ["powersgd", "sketch"])
def test_a_sum_of_too_few_payloads_rejects_the_round(name: str) -> None:
    mean, metrics, updates = compressed(name, FINE, num_absent=9)
    assert metrics["secure_sum"]["is_skipped"] == 1
    assert not updates.stats["weight"].any()
    assert np.isnan(mean).all()


# ---- Whole runs ----------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "median": {"aggregator": "geometric-median", "aggregator_options": {"start": "mean"}},
    "buckets": {"pre_aggregator": "bucketing", "aggregator": "median"},
    "powersgd": {"compress": "powersgd"},
    "random-k": {"compress": "random-k", "aggregator": "norm-bound"},
    "private": {
        "dp": "gaussian-adaptive",
        "dp_options": {"noise_multiplier": 0.5, "delta": 1e-3},
        "secure_sum_options": {"threshold": 0.0, "rounding": "stochastic"},
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_same_for_any_threads_and_when_resumed(tmp_path: Path, name: str) -> None:
    values = {
        **{"secure_sum": True, "sampling": "uniform", "clients": "8", "client_dropout": 0.2},
        **RUNS[name],
    }
    expected = figures(trained(tmp_path / "1", **values, threads=1))
    found = figures(trained(tmp_path / "7", **values, threads=7))
    assert found["metrics.jsonl"] == expected["metrics.jsonl"]
    stopped = figures(trained_with_a_stop(tmp_path / "stopped", 2, **values, threads=1))
    assert stopped == expected
    run = load_run(tmp_path / "1")
    ledger = ledger_of(run)
    assert ledger is not None
    for line, each in zip(run.metrics, ledger.rounds, strict=True):
        where = line["updates"]["compress"] if name == "powersgd" else line["aggregator"]
        sums = where["secure_sum"]
        num_reports = line["participation"]["num_reports"]
        extra = sums.get("extra_bytes_down", 0) + where.get("extra_bytes_down", 0)
        assert each.num_up == num_reports
        assert each.bytes_up == sums["all_setup_bytes_up"] + num_reports * sums["payload_bytes"]
        assert each.bytes_down == 8 * (4 * 7850 + extra) + sums["all_setup_bytes_down"]
