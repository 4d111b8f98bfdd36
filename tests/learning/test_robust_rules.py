"""Robust rules: golden values, the float64 references, and the properties that define each rule."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.learning import aggregators
from fedcli.learning.aggregators.contract import first_state, problem_of
from fedcli.learning.aggregators.counted import CountedDeltas
from fedcli.learning.aggregators.foolsgold import factors_of
from fedcli.learning.aggregators.pre_aggregation import Bucketing, _mixed
from fedcli.learning.aggregators.selections import krum_scores
from fedcli.learning.engines.deltas import Deltas, RoundContext
from tests.kit import robust_rules as plain

pytestmark = pytest.mark.numeric

Matrix = NDArray[np.float64]

D = np.array(
    [
        [1, 2, -1],
        [1.2, 1.8, -0.8],
        [0.9, 2.15, -1.1],
        [1.1, 1.9, -0.95],
        [0.75, 2.2, -1.3],
        [1.3, 1.7, -0.6],
        [-9, 8, 5],
    ]
)
WEIGHTS = np.arange(10.0, 80.0, 10.0)
ROOT = np.array([0.5, 1, -0.5])
HONEST_MEAN = [1.041666667, 1.958333333, -0.958333333]
HISTORIES = np.array(
    [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2.1, 0, 0]], float
)


def _deltas(
    matrix: NDArray[np.floating], weights: NDArray[np.float64] | None = None, **more: Any
) -> Deltas:
    """Returns deltas as an engine returns them: rounded to float32, by about 6e-8."""
    rows = np.ascontiguousarray(matrix, np.float32)
    stats = np.zeros(len(rows), native.STATS)
    stats["weight"] = 1.0 if weights is None else weights
    stats["is_finite"] = 1
    total = stats["weight"] @ rows.astype(np.float64)
    context = RoundContext(7, 3, tuple(f"c{i}" for i in range(len(rows))), (0,) * len(rows))
    return Deltas(total, float(stats["weight"].sum()), stats, rows, **{"round": context, **more})


def _aggregated(name: str, deltas: Deltas, **options: Any) -> tuple[NDArray[np.float32], Any]:
    aggregator = aggregators.build(name, options)
    state = first_state(aggregator, len(deltas.delta_sum))
    mean_delta, _, metrics = aggregator.aggregate(state, deltas)
    return mean_delta, metrics


def _factors(histories: Matrix) -> Matrix:
    factors = plain.foolsgold_factors(histories)
    assert factors is not None
    return factors


# ---- Golden values -------------------------------------------------------------------------------

GOLDEN: list[tuple[str, Callable[[], Any], list[float]]] = [
    ("median", lambda: plain.median(D), [1, 2, -0.95]),
    ("median of six", lambda: plain.median(D[:6]), [1.05, 1.95, -0.975]),
    ("signs", lambda: plain.sign_majority(D), [1, 1, -1]),
    ("trimmed 1", lambda: plain.trimmed_mean(D, 1), [0.99, 2.01, -0.89]),
    ("trimmed 2", lambda: plain.trimmed_mean(D, 2), [1, 2.016666667, -0.916666667]),
    (
        "scores f=1",
        lambda: plain.scores(D, 1),
        [0.3775, 0.525, 0.535, 0.3925, 1.205, 1.215, 684.4575],
    ),
    (
        "scores f=2",
        lambda: plain.scores(D, 2),
        [0.185, 0.2225, 0.2325, 0.19, 0.5925, 0.6025, 509.835],
    ),
    ("multi-krum 4", lambda: plain.multi_krum(D, 1, 4), [1.05, 1.9625, -0.9625]),
    ("weighted 4", lambda: plain.multi_krum(D, 1, 4, list(WEIGHTS)), [1.05, 1.965, -0.97]),
    ("multi-krum 6", lambda: plain.multi_krum(D, 1, 6), HONEST_MEAN),
    ("bulyan picks", lambda: plain.bulyan_picks(D, 1), [0, 3, 1, 2, 4]),
    ("bulyan", lambda: plain.bulyan(D, 1), [1, 2.016666667, -1.016666667]),
    ("meamed", lambda: plain.meamed(D, 1), HONEST_MEAN),
    ("mda", lambda: plain.mda(D, 1), HONEST_MEAN),
    ("dnc", lambda: plain.dnc(D, 1), HONEST_MEAN),
    (
        "RFA 1",
        lambda: plain.weiszfeld(D, 1, weights=list(WEIGHTS)),
        [0.033033906, 2.560757003, -0.355526304],
    ),
    (
        "RFA 4",
        lambda: plain.weiszfeld(D, 4, weights=list(WEIGHTS)),
        [0.920835275, 2.043463157, -0.934488061],
    ),
    (
        "RFA limit",
        lambda: plain.weiszfeld(D, 2000, weights=list(WEIGHTS)),
        [0.965378775, 2.008172113, -0.930738572],
    ),
    ("RFA uniform", lambda: plain.weiszfeld(D, 1), [0.756627247, 2.134247675, -0.808726849]),
    (
        "RFA of byzfl",
        lambda: plain.weiszfeld(D, 3, smoothing=0.1, start=np.zeros(3)),
        [0.992891619, 2.000496488, -0.969499737],
    ),
    (
        "clipping",
        lambda: plain.centered_clipping(D, 1.0, np.zeros(3)),
        [0.273399548, 0.775696652, -0.279090339],
    ),
    (
        "clipping 3",
        lambda: plain.centered_clipping(D, 1.0, np.zeros(3), 3),
        [0.870714504, 1.960810294, -0.839501101],
    ),
    (
        "clipping again",
        lambda: plain.centered_clipping(D, 1.0, plain.centered_clipping(D, 1.0, np.zeros(3))),
        [0.594550668, 1.487598299, -0.578266382],
    ),
    (
        "trust",
        lambda: plain.trust_scores(D, ROOT),
        [1, 0.991189256, 0.997927849, 0.998360386, 0.988745266, 0.973501825, 0.062622429],
    ),
    ("fltrust", lambda: plain.fltrust(D, ROOT), [0.516618026, 0.980891561, -0.467678389]),
    ("foolsgold", lambda: _factors(HISTORIES), [1, 1, 1, 0, 0]),
    (
        "buckets",
        lambda: plain.median(plain.bucketing(D, 2, [3, 0, 6, 1, 5, 2, 4])),
        [0.9, 2.075, -0.9125],
    ),
    ("arc", lambda: plain.arc(D, 1)[6], [-1.838305646, 1.634049463, 1.021280914]),
    ("arc norm", lambda: [np.linalg.norm(plain.arc(D, 1)[6])], [2.663174797]),
    ("nnm", lambda: plain.nnm(D, 1)[6], [-0.675, 3.008333333, -0.025]),
    ("nnm, mean", lambda: plain.nnm(D, 1).mean(axis=0), [0.796428571, 2.108333333, -0.825]),
    ("nnm, median", lambda: plain.median(plain.nnm(D, 1)), HONEST_MEAN),
]


@pytest.mark.parametrize(
    ("compute", "expected"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN]
)
def test_the_references_give_the_golden_values(compute: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(compute(), expected, rtol=0, atol=6e-10)


def test_the_references_choose_the_golden_rows() -> None:
    assert plain.ranked(D, 1)[:4] == [0, 3, 1, 2]
    assert plain.ranked(D, 2)[0] == 0


# For each case: the rule, its options, and the function that computes the expected result.
CASES: dict[str, tuple[str, dict[str, Any], Callable[[Matrix], Any]]] = {
    "median": ("median", {}, plain.median),
    "signs": ("sign-majority", {}, plain.sign_majority),
    "trimmed 0": ("trimmed-mean", {"trim": 0}, lambda d: plain.trimmed_mean(d, 0)),
    "trimmed 1": ("trimmed-mean", {"trim": 1}, lambda d: plain.trimmed_mean(d, 1)),
    "trimmed share": (
        "trimmed-mean",
        {"trim": 0.3},
        lambda d: plain.trimmed_mean(d, math.floor(0.3 * len(d))),
    ),
    "krum": ("krum", {"num_byzantine": 1}, lambda d: plain.krum(d, 1)),
    "krum 2": ("krum", {"num_byzantine": 2}, lambda d: plain.krum(d, 2)),
    "multi-krum": ("multi-krum", {"num_byzantine": 1}, lambda d: plain.multi_krum(d, 1)),
    "multi-krum 4": (
        "multi-krum",
        {"num_byzantine": 1, "select": 4},
        lambda d: plain.multi_krum(d, 1, 4),
    ),
    "bulyan": ("bulyan", {"num_byzantine": 1}, lambda d: plain.bulyan(d, 1)),
    "meamed": ("meamed", {"num_byzantine": 1}, lambda d: plain.meamed(d, 1)),
    "meamed 3": ("meamed", {"num_byzantine": 3}, lambda d: plain.meamed(d, 3)),
    "mda": ("mda", {"num_byzantine": 2}, lambda d: plain.mda(d, 2)),
    "dnc": ("dnc", {"num_byzantine": 1}, lambda d: plain.dnc(d, 1)),
    "geometric median": (
        "geometric-median",
        {},
        lambda d: plain.weiszfeld(d, 4, start=plain.median(d)),
    ),
    "geometric median from the mean": (
        "geometric-median",
        {"start": "mean", "iterations": 2},
        lambda d: plain.weiszfeld(d, 2),
    ),
    "clipping": (
        "centered-clipping",
        {"radius": 1.0},
        lambda d: plain.centered_clipping(d, 1.0, np.zeros(d.shape[1])),
    ),
    "clipping 3": (
        "centered-clipping",
        {"radius": 0.5, "iterations": 3},
        lambda d: plain.centered_clipping(d, 0.5, np.zeros(d.shape[1]), 3),
    ),
    "foolsgold": ("foolsgold", {}, lambda d: plain.foolsgold(d, d)),
}
# Cases whose result does not scale and shift with all deltas.
NOT_EQUIVARIANT = {"signs", "clipping", "clipping 3", "foolsgold"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(7, 3), (8, 1), (11, 31), (7, 33), (16, 4103)])
def test_rules_equal_their_references(case: str, shape: tuple[int, int]) -> None:
    name, options, reference = CASES[case]
    random = np.random.default_rng(shape[0] * 100 + shape[1])
    matrix = random.standard_normal(shape).astype(np.float32)
    matrix[-1] *= 30.0
    found = _aggregated(name, _deltas(matrix), **options)[0]
    assert found.dtype == np.float32
    # one rounding to float32, and the rounding errors of square roots
    np.testing.assert_allclose(found, reference(matrix.astype(float)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_rules_equal_their_references_on_the_golden_deltas(case: str) -> None:
    name, options, reference = CASES[case]
    found = _aggregated(name, _deltas(D), **options)[0]
    rounded = D.astype(np.float32).astype(float)
    np.testing.assert_allclose(found, reference(rounded), rtol=1e-7, atol=1e-7)
    if case != "mda":  # MDA has two subsets of equal diameter: rounding decides
        np.testing.assert_allclose(found, reference(D), rtol=2e-6, atol=1e-6)


def test_krum_scores_and_choices_are_the_golden_ones() -> None:
    deltas = _deltas(D)
    counted = CountedDeltas.of(deltas)
    assert counted is not None
    scores = krum_scores(counted.rows.square_distances(), 1)
    np.testing.assert_allclose(
        scores, [0.3775, 0.525, 0.535, 0.3925, 1.205, 1.215, 684.4575], rtol=1e-6
    )
    found = _aggregated("multi-krum", deltas, num_byzantine=1, select=4)[1]
    assert found["kept"] == ["c0", "c1", "c2", "c3"]
    assert _aggregated("krum", deltas, num_byzantine=2)[1]["kept"] == ["c0"]
    kept = _aggregated("bulyan", deltas, num_byzantine=1)[1]["kept"]
    assert kept == ["c0", "c1", "c2", "c3", "c4"]
    for name in ("mda", "dnc"):
        kept = _aggregated(name, deltas, num_byzantine=1)[1]["kept"]
        assert kept == [f"c{i}" for i in range(6)]


def test_weights_count_if_the_option_is_set() -> None:
    deltas = _deltas(D, WEIGHTS)
    found = _aggregated("multi-krum", deltas, num_byzantine=1, select=4, weighted=True)[0]
    np.testing.assert_allclose(found, [1.05, 1.965, -0.97], atol=1e-6)
    options = {"weighted": True, "start": "mean"}
    for steps, expected in (
        (1, [0.033033906, 2.560757003, -0.355526304]),
        (4, [0.920835275, 2.043463157, -0.934488061]),
        (2000, [0.965378775, 2.008172113, -0.930738572]),
    ):
        found = _aggregated("geometric-median", deltas, iterations=steps, **options)[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for name in ("median", "trimmed-mean", "krum", "meamed", "geometric-median"):
        np.testing.assert_array_equal(
            _aggregated(name, deltas)[0], _aggregated(name, _deltas(D))[0]
        )


# ---- Properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_equal_deltas_are_their_own_result(case: str) -> None:
    name, options, _ = CASES[case]
    delta = np.array([0.25, -0.5, 0.125, 0.0], np.float32)
    found = _aggregated(name, _deltas(np.tile(delta, (8, 1))), **options)[0]
    expected = np.sign(delta) if case == "signs" else delta
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_EQUIVARIANT])
def test_rules_commute_with_scale_and_shift(case: str) -> None:
    name, options, reference = CASES[case]
    random = np.random.default_rng(4)
    matrix = random.standard_normal((9, 40)).astype(np.float32)
    vector = random.standard_normal(40)
    found = _aggregated(name, _deltas(matrix).scaled(3.0).shifted(vector), **options)[0]
    expected = 3.0 * reference(matrix.astype(float)) + vector
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("case", sorted(NOT_EQUIVARIANT))
def test_rules_see_scaled_and_shifted_deltas(case: str) -> None:
    name, options, reference = CASES[case]
    random = np.random.default_rng(4)
    matrix = random.standard_normal((9, 40)).astype(np.float32)
    vector = random.standard_normal(40)
    found = _aggregated(name, _deltas(matrix).scaled(3.0).shifted(vector), **options)[0]
    expected = reference(3.0 * matrix.astype(float) + vector)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_clients_does_not_matter_without_ties(case: str) -> None:
    """With f < 3, bulyan's last choice is between two deltas, each the nearest to the other.

    Their scores are equal, so their order would decide; here bulyan has f = 3.
    """
    name, options, _ = CASES[case]
    random = np.random.default_rng(9)
    num, options = (15, {"num_byzantine": 3}) if name == "bulyan" else (9, options)
    matrix = random.standard_normal((num, 65)).astype(np.float32)
    found = [
        _aggregated(name, _deltas(matrix[random.permutation(num)]), **options)[0] for _ in range(3)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=3e-7, atol=1e-8)
    np.testing.assert_allclose(found[2], found[0], rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case not in ("foolsgold", "trimmed 0", "geometric median from the mean")
    ],
)
def test_one_wrong_delta_has_bounded_influence(case: str, scale: float) -> None:
    """The result stays near the other deltas, whatever the distance of the wrong one."""
    name, options, _ = CASES[case]
    matrix = D.copy()
    matrix[6] *= scale
    found = _aggregated(name, _deltas(matrix), **options)[0]
    center = np.array([1.05, 1.95, -0.975])
    # centered clipping starts at 0, and signs are whole numbers
    most = 1.6 if "clipping" in case else 1.0 if case == "signs" else 0.25
    assert np.linalg.norm(found - center) < most


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_from_the_mean_the_geometric_median_follows_a_far_delta(scale: float) -> None:
    """The published four steps are enough from the median, but not if they begin at the mean."""
    matrix = D.copy()
    matrix[6] *= scale
    start = _aggregated("geometric-median", _deltas(D))[0]
    found = _aggregated("geometric-median", _deltas(matrix))[0]
    assert np.linalg.norm(found - start) < 0.05
    followed = _aggregated("geometric-median", _deltas(matrix), start="mean")[0]
    assert np.linalg.norm(followed - start) > 0.1


ROBUST: dict[str, tuple[str, Callable[[float], float]]] = {
    "trimmed-mean": ("trim", lambda ratio: 6 * ratio * (1 + ratio)),
    "krum": ("num_byzantine", lambda ratio: 6 * (1 + ratio)),
    "geometric-median": ("", lambda ratio: 4 * (1 + ratio) ** 2),
    "median": ("", lambda ratio: 4 * (1 + ratio) ** 2),
}


def _hard_cases(num: int, f: int) -> list[Matrix]:
    random = np.random.default_rng(num + f)
    cases = [random.standard_normal((num, 3)) for _ in range(8)]
    for distance in (0.5, 3.0, 1e3):
        for _ in range(4):
            case = random.standard_normal((num, 3))
            case[num - f :] = distance * random.standard_normal(3)
            cases.append(case)
    return cases


def _worst(found: NDArray[np.float32], matrix: Matrix, f: int) -> float:
    """Returns the largest squared distance to a mean of n - f deltas, divided by their variance."""
    worst = 0.0
    for subset in itertools.combinations(range(len(matrix)), len(matrix) - f):
        chosen = matrix[list(subset)]
        mean = chosen.mean(axis=0)
        spread = ((chosen - mean) ** 2).sum(axis=1).mean()
        worst = max(worst, float(((found - mean) ** 2).sum() / spread))
    return worst


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize(("num", "f"), [(7, 1), (7, 2), (9, 3)])
def test_rules_are_within_their_robustness_coefficients(name: str, num: int, f: int) -> None:
    """The bound holds for every choice of n - f correct deltas (Allouah et al. 2023)."""
    option, bound = ROBUST[name]
    options = {option: f} if option else {"iterations": 50} if name == "geometric-median" else {}
    for matrix in _hard_cases(num, f):
        found = _aggregated(name, _deltas(matrix), **options)[0]
        assert _worst(found, matrix, f) <= bound(f / (num - 2 * f)) * (1 + 1e-6)


def test_the_mean_has_no_robustness_coefficient() -> None:
    matrix = _hard_cases(7, 1)[-1]
    assert _worst(matrix.mean(axis=0).astype(np.float32), matrix, 1) > 100


def test_median_and_trimmed_mean_stay_in_the_honest_range() -> None:
    random = np.random.default_rng(2)
    honest = random.standard_normal((7, 200)).astype(np.float32)
    wrong = random.choice([-1e5, 1e5, 0.1], (3, 200)).astype(np.float32)
    deltas = _deltas(np.concatenate([wrong, honest]))
    for name, options in (("median", {}), ("trimmed-mean", {"trim": 3})):
        found = _aggregated(name, deltas, **options)[0]
        assert ((honest.min(axis=0) <= found) & (found <= honest.max(axis=0))).all()


def test_krum_returns_a_row_and_multi_krum_lies_between_it_and_the_mean() -> None:
    matrix = np.random.default_rng(3).standard_normal((9, 50)).astype(np.float32)
    deltas = _deltas(matrix)
    found = _aggregated("krum", deltas, num_byzantine=2)[0]
    assert any((found == row).all() for row in matrix)
    one = _aggregated("multi-krum", deltas, num_byzantine=2, select=1)[0]
    np.testing.assert_array_equal(one, found)
    every = _aggregated("multi-krum", deltas, num_byzantine=0, select=9)[0]
    np.testing.assert_allclose(every, matrix.astype(float).mean(axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_at_the_geometric_median_the_unit_vectors_to_deltas_sum_to_zero(weighted: bool) -> None:
    matrix = np.random.default_rng(8).standard_normal((9, 20)).astype(np.float32)
    weights = np.arange(1.0, 10.0)
    options = {"iterations": 3000, "weighted": weighted}
    found = _aggregated("geometric-median", _deltas(matrix, weights), **options)[0]
    shares = (weights if weighted else np.ones(9)) / (weights.sum() if weighted else 9)
    differences = matrix.astype(float) - found
    unit = differences / np.linalg.norm(differences, axis=1)[:, np.newaxis]
    assert np.linalg.norm(shares @ unit) < 1e-6


def test_the_geometric_median_can_be_a_delta() -> None:
    found = _aggregated("geometric-median", _deltas(D), iterations=3000)[0]
    np.testing.assert_allclose(found, D[0], atol=1e-5)


def test_steps_never_raise_the_sum_of_distances() -> None:
    for start in ("median", "mean"):
        deltas = _deltas(np.random.default_rng(5).standard_normal((12, 30)))
        sums = [
            _aggregated("geometric-median", deltas, iterations=steps, start=start)[1][
                "mean_distance"
            ]
            for steps in range(1, 30)
        ]
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(sums))


def test_centered_clipping_moves_at_most_its_radius_and_is_the_mean_for_a_large_one() -> None:
    matrix = 100 * np.random.default_rng(6).standard_normal((6, 40))
    for iterations in (1, 3):
        options = {"radius": 0.5, "iterations": iterations}
        found = _aggregated("centered-clipping", _deltas(matrix), **options)[0]
        assert np.linalg.norm(found) <= 0.5 * iterations * (1 + 1e-6)
    found = _aggregated("centered-clipping", _deltas(matrix), radius=1e30)[0]
    np.testing.assert_allclose(found, matrix.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_centered_clipping_starts_where_the_last_round_ended() -> None:
    aggregator = aggregators.build("centered-clipping", {"radius": 1.0})
    state = first_state(aggregator, 3)
    first, state, _ = aggregator.aggregate(state, _deltas(D))
    np.testing.assert_allclose(first, [0.273399548, 0.775696652, -0.279090339], atol=1e-6)
    second, _, metrics = aggregator.aggregate(state, _deltas(D))
    np.testing.assert_allclose(second, [0.594550668, 1.487598299, -0.578266382], atol=1e-6)
    assert metrics["clipped_count"] == 7


@pytest.mark.parametrize("name", ["dnc", "meamed", "mda"])
def test_rules_for_no_wrong_delta_are_the_mean(name: str) -> None:
    matrix = np.random.default_rng(7).standard_normal((6, 40))
    found = _aggregated(name, _deltas(matrix), num_byzantine=0)[0]
    np.testing.assert_allclose(found, matrix.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_ties_take_the_first_of_the_cohort() -> None:
    matrix = np.array([[0, 0], [2, 2], [0, 2], [2, 0], [1, 1]], float)
    for order in itertools.permutations(range(5)):
        deltas = _deltas(matrix[list(order)])
        for name, reference in (("krum", plain.krum), ("meamed", plain.meamed), ("mda", plain.mda)):
            found = _aggregated(name, deltas, num_byzantine=1)[0]
            np.testing.assert_allclose(found, reference(matrix[list(order)], 1), rtol=1e-6)


# ---- FLTrust and FoolsGold -----------------------------------------------------------------------


def test_fltrust_gives_the_golden_value_and_names_trusted_clients() -> None:
    found, metrics = _aggregated("fltrust", _deltas(D, root=ROOT))
    np.testing.assert_allclose(found, [0.516618026, 0.980891561, -0.467678389], atol=1e-6)
    np.testing.assert_allclose(metrics["trust"], plain.trust_scores(D, ROOT), atol=1e-6)
    assert metrics["num_kept"] == 7


def test_fltrust_is_bounded_by_the_root_s_norm_and_scales_and_shifts_the_root_too() -> None:
    random = np.random.default_rng(10)
    matrix, root, vector = (
        random.standard_normal((9, 40)),
        random.standard_normal(40),
        random.standard_normal(40),
    )
    deltas = _deltas(matrix, root=root)
    assert np.linalg.norm(_aggregated("fltrust", deltas)[0]) <= np.linalg.norm(root)
    found = _aggregated("fltrust", deltas.scaled(2.0).shifted(vector))[0]
    expected = plain.fltrust(2.0 * matrix + vector, 2.0 * root + vector)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("root", [np.array([-1.0, 0.0, 0.0]), np.zeros(3), None])
def test_a_round_without_a_trusted_client_is_skipped(root: Any) -> None:
    found, metrics = _aggregated("fltrust", _deltas(np.eye(3)[:1].repeat(4, 0), root=root))
    assert np.isnan(found).all()
    assert metrics == {"skipped": 1, "num_skipped": 1, "num_counted": 4}


def test_foolsgold_gives_the_golden_factors() -> None:
    factors = factors_of(HISTORIES @ HISTORIES.T)
    assert factors is not None
    np.testing.assert_allclose(factors, [1, 1, 1, 0, 0], atol=1e-12)


def test_foolsgold_remembers_clients_by_their_ids() -> None:
    aggregator = aggregators.build("foolsgold")
    state = first_state(aggregator, 12)
    random = np.random.default_rng(11)
    sums: dict[str, NDArray[np.float64]] = {}
    for round_num in range(4):
        ids = tuple(f"c{index}" for index in random.choice(8, 5, replace=False))
        matrix = random.standard_normal((5, 12)).astype(np.float32)
        matrix[:2] = matrix[0] * 1.01
        for name, row in zip(ids, matrix, strict=True):
            sums[name] = sums.get(name, np.zeros(12)) + row
        deltas = _deltas(matrix, round=RoundContext(0, round_num, ids, (0,) * 5))
        found, state, metrics = aggregator.aggregate(state, deltas)
        histories = np.array([sums[name] for name in ids])
        np.testing.assert_allclose(
            found, plain.foolsgold(matrix.astype(float), histories), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(metrics["factors"], _factors(histories), atol=1e-4)


def test_foolsgold_counts_all_the_same_if_all_are_alike_or_orthogonal() -> None:
    alike = np.outer([1.0, 2.0, 3.0, 0.5], [1.0, 2.0, -1.0])
    found, metrics = _aggregated("foolsgold", _deltas(alike))
    np.testing.assert_allclose(found, alike.mean(axis=0), rtol=1e-6)
    assert metrics["num_alike"] == 1
    orthogonal = np.eye(4)
    found, metrics = _aggregated("foolsgold", _deltas(orthogonal))
    np.testing.assert_allclose(found, orthogonal.mean(axis=0), rtol=1e-6)
    assert metrics["num_alike"] == 0
    nothing = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    np.testing.assert_allclose(_aggregated("foolsgold", _deltas(nothing))[0], 0.2, rtol=1e-6)


# ---- Pre-aggregators -----------------------------------------------------------------------------


def _after(
    pre: str, deltas: Deltas, name: str = "median", options: Any = None, **pre_options: Any
) -> tuple[NDArray[np.float32], Any]:
    aggregator = aggregators.build_after(pre, name, options, pre_options)
    state = first_state(aggregator, len(deltas.delta_sum))
    mean_delta, _, metrics = aggregator.aggregate(state, deltas)
    return mean_delta, metrics


def test_buckets_are_the_golden_ones() -> None:
    counted = CountedDeltas.of(_deltas(D))
    assert counted is not None
    mixing = Bucketing(2).in_order(counted, np.array([3, 0, 6, 1, 5, 2, 4]))
    assert mixing.clients == ("c3+c0", "c6+c1", "c5+c2", "c4")
    found = _aggregated("median", _mixed(counted, mixing))[0]
    np.testing.assert_allclose(found, [0.9, 2.075, -0.9125], atol=1e-6)


def test_mixing_gives_the_golden_values() -> None:
    deltas = _deltas(D)
    found = _after("nnm", deltas, "mean", num_byzantine=1)[0]
    np.testing.assert_allclose(found, [0.796428571, 2.108333333, -0.825], atol=1e-6)
    found = _after("nnm", deltas, "median", num_byzantine=1)[0]
    np.testing.assert_allclose(found, HONEST_MEAN, atol=1e-6)
    found, metrics = _after("arc", deltas, "mean", num_byzantine=1)
    np.testing.assert_allclose(found, plain.arc(D, 1).mean(axis=0), atol=1e-6)
    assert metrics["clipping_norm"] == pytest.approx(2.663174797, rel=1e-6)
    assert metrics["clipped_count"] == 1


@pytest.mark.parametrize("shape", [(7, 3), (9, 65), (12, 5000)])
def test_mixing_equals_its_references(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(shape[1])
    matrix = random.standard_normal(shape)
    vector = random.standard_normal(shape[1])
    deltas = _deltas(matrix).scaled(2.0).shifted(vector)
    mapped = 2.0 * matrix.astype(np.float32).astype(float) + vector
    for pre, reference in (("nnm", plain.nnm), ("arc", plain.arc)):
        found = _after(pre, deltas, num_byzantine=2)[0]
        np.testing.assert_allclose(found, plain.median(reference(mapped, 2)), rtol=1e-5, atol=1e-6)


def test_mixing_that_changes_nothing_leaves_the_mean() -> None:
    matrix = np.random.default_rng(12).standard_normal((7, 40))
    mean = matrix.mean(axis=0)
    for pre, options in (
        ("nnm", {"num_byzantine": 0}),
        ("arc", {"num_byzantine": 0}),
        ("bucketing", {"size": 1}),
        ("bucketing", {"size": 7}),
    ):
        found = _after(pre, _deltas(matrix), "mean", **options)[0]
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_buckets_change_from_round_to_round_and_not_with_the_call() -> None:
    deltas = _deltas(np.random.default_rng(13).standard_normal((8, 3)))
    again = replace(deltas, round=RoundContext(7, 4, (), (0,) * 8))
    found = [_after("bucketing", each)[0] for each in (deltas, deltas, again)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_wrong_deltas_do_not_become_fewer_in_buckets() -> None:
    """A share of 0.3 of 10 clients is 3 wrong deltas, even if the 10 deltas become 5."""
    aggregator = aggregators.build_after("bucketing", "krum", {"num_byzantine": 0.3}, {"size": 2})
    assert problem_of(aggregator, 10) == (
        "the 10 deltas of a round become 5; with 3 wrong deltas "
        "it needs at least 9 deltas in a round, not 5; "
        "choose more clients or a smaller num_byzantine"
    )
    fewer = aggregators.build_after("bucketing", "krum", {"num_byzantine": 0.1}, {"size": 2})
    assert problem_of(fewer, 40) is None
    assert problem_of(aggregators.build_after("nnm", "mean", {}, {"num_byzantine": 2}), 4) == (
        "fewer than half of the deltas may be wrong, not 2 of 4; choose more clients or a "
        "smaller num_byzantine"
    )


# ---- Small differences ---------------------------------------------------------------------------


def test_krum_sees_differences_far_below_the_weights() -> None:
    """Weights have std 0.05, differences 1e-5: |a|^2 + |b|^2 - 2 a b would lose all digits."""
    random = np.random.default_rng(14)
    weights = (0.05 * random.standard_normal(20_000)).astype(np.float32)
    matrix = weights + (1e-5 * random.standard_normal((9, 20_000))).astype(np.float32)
    matrix[:3] = weights + (3e-5 * random.standard_normal((3, 20_000))).astype(np.float32)
    counted = CountedDeltas.of(_deltas(matrix))
    assert counted is not None
    exact = plain.square_distances(matrix.astype(float))
    np.testing.assert_allclose(counted.rows.square_distances(), exact, rtol=1e-13)
    kept = _aggregated("multi-krum", _deltas(matrix), num_byzantine=3)[1]["kept"]
    assert kept == [f"c{index}" for index in range(3, 9)]
    norms = np.sum(matrix * matrix, axis=1)
    products = norms[:, np.newaxis] + norms - 2 * matrix @ matrix.T  # as in Flower, in float32
    off = ~np.eye(9, dtype=bool)
    assert np.median(np.abs(products - exact)[off] / exact[off]) > 0.1


def test_distances_beside_a_far_client_are_exact() -> None:
    matrix = np.random.default_rng(15).standard_normal((6, 5000)).astype(np.float32)
    matrix[5] *= 1e6
    counted = CountedDeltas.of(_deltas(matrix))
    assert counted is not None
    exact = plain.square_distances(matrix.astype(float))
    np.testing.assert_allclose(counted.rows.square_distances(), exact, rtol=2e-15 * 20)


# ---- Who counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_deltas_without_weight_never_reach_a_rule(case: str) -> None:
    name, options, _ = CASES[case]
    random = np.random.default_rng(16)
    matrix = random.standard_normal((9, 40)).astype(np.float32)
    among = np.insert(matrix, [0, 4, 9], [[np.nan], [np.inf], [1e30]], axis=0)
    weights = np.insert(np.ones(9), [0, 4, 9], 0.0)
    alone = _deltas(matrix)
    ids = tuple(np.insert(np.array(alone.round.client_ids), [0, 4, 9], ["x", "y", "z"]))  # type: ignore[union-attr]
    with np.errstate(invalid="ignore"):
        mixed = _deltas(among, weights, round=RoundContext(7, 3, ids, (0,) * 12))
    np.testing.assert_array_equal(
        _aggregated(name, mixed, **options)[0], _aggregated(name, alone, **options)[0]
    )


@pytest.mark.parametrize(
    ("name", "options", "num"),
    [
        ("krum", {"num_byzantine": 2}, 6),
        ("multi-krum", {"num_byzantine": 2}, 6),
        ("multi-krum", {"num_byzantine": 1, "select": 6}, 6),
        ("bulyan", {"num_byzantine": 1}, 6),
        ("meamed", {"num_byzantine": 2}, 4),
        ("mda", {"num_byzantine": 2}, 4),
        ("mda", {"num_byzantine": 10}, 40),
        ("dnc", {"num_byzantine": 2}, 4),
        ("trimmed-mean", {"trim": 2}, 4),
        ("foolsgold", {}, 1),
    ],
)
def test_a_round_with_too_few_deltas_is_skipped_and_counted(
    name: str, options: dict[str, Any], num: int
) -> None:
    aggregator = aggregators.build(name, options)
    state = first_state(aggregator, 5)
    deltas = _deltas(np.random.default_rng(17).standard_normal((num, 5)))
    for count in (1, 2):
        found, state, metrics = aggregator.aggregate(state, deltas)
        assert np.isnan(found).all()
        assert metrics == {"skipped": 1, "num_skipped": count, "num_counted": num}
        assert state["num_skipped"] == count


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_params", [0, 1])
def test_models_of_hardly_any_parameter_are_combined(case: str, num_params: int) -> None:
    name, options, reference = CASES[case]
    matrix = np.random.default_rng(18).standard_normal((9, num_params)).astype(np.float32)
    found = _aggregated(name, _deltas(matrix), **options)[0]
    assert found.shape == (num_params,)
    if num_params:
        np.testing.assert_allclose(found, reference(matrix.astype(float)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        "median",
        "trimmed-mean",
        "geometric-median",
        "centered-clipping",
        "meamed",
        "mda",
        "dnc",
        "sign-majority",
    ],
)
def test_one_delta_is_its_own_result(name: str) -> None:
    delta = np.array([[0.5, -0.25, 0.0]])
    found = _aggregated(name, _deltas(delta))[0]
    np.testing.assert_array_equal(found, np.sign(delta[0]) if name == "sign-majority" else delta[0])


@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_byte(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcli.core.native._SHARED_BYTES", 0)  # else one thread reads all
    name, options, _ = CASES[case]
    matrix = np.random.default_rng(19).standard_normal((13, 20_011)).astype(np.float32)
    found = {
        _aggregated(name, _deltas(matrix, num_threads=threads), **options)[0].tobytes()
        for threads in (1, 2, 7)
    }
    assert len(found) == 1


FORKED = """
import os, signal
import numpy as np
from fedcli.core import native
from fedcli.core.native import MatrixRows

native._SHARED_BYTES = 0  # else one thread reads all
matrix = np.linspace(-1.0, 1.0, 9 * 50_000, dtype=np.float32).reshape(9, -1)
before = MatrixRows(matrix, np.arange(9), 2).trimmed_mean(4)
child = os.fork()
if child == 0:
    signal.alarm(120)
    after = MatrixRows(matrix, np.arange(9), 2).trimmed_mean(4)
    os._exit(0 if (after == before).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes_on_threads_as_well() -> None:
    """A fork has no copy of the helper threads; a call that waited for them would never return."""
    done = subprocess.run([sys.executable, "-c", FORKED], check=False)
    assert done.returncode == 0


def test_dnc_draws_coordinates_by_round() -> None:
    matrix = np.random.default_rng(20).standard_normal((9, 500))
    matrix[7:] += 2.0
    deltas = _deltas(matrix)
    options = {"num_byzantine": 2, "coordinates": 50, "iterations": 2}
    found, metrics = _aggregated("dnc", deltas, **options)
    assert metrics["kept"] == [f"c{index}" for index in range(7)]
    np.testing.assert_allclose(found, matrix[:7].mean(axis=0), rtol=1e-5, atol=1e-6)
