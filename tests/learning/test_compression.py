"""The codecs against float64 references, and the stages that compress updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcli.core import _core, native
from fedcli.core.seeds import Purpose, client_key, stream_key
from fedcli.errors import ConfigError
from fedcli.learning.client_states import ClientStates
from fedcli.learning.engines.deltas import RoundContext
from fedcli.learning.masked_sums import SumOptions
from fedcli.learning.updates import compression, low_rank
from fedcli.learning.updates.contract import RoundUpdates, UpdateStage
from fedcli.models import zoo
from fedcli.models.layout import ParamLayout
from fedcli.settings import tables
from tests.kit import codec_oracle as oracle

pytestmark = pytest.mark.numeric

KEY = stream_key(3, Purpose.QUANTISATION, round_num=5, client=client_key("c1"))
SHAPES = [(20, 13), (13,), (13, 3), (3,)]
SIZE = 20 * 13 + 13 + 13 * 3 + 3
NAMES = list(tables.COMPRESSORS)
STOCHASTIC: dict[str, dict[str, Any]] = {
    "uniform": {"bits": 2},
    "fixed-step": {"bits": 12, "step": 0.01},
    "qsgd": {"levels": 4},
    "random-k": {"count": 60, "is_unbiased": True},
}


def _x(seed: int = 1, size: int = SIZE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def _passed(codec: native.Codec, x: NDArray[np.float32], key: Any = KEY) -> NDArray[np.float32]:
    return codec.decode(np.frombuffer(codec.encode(x, key), np.uint8), key)


# ---- Codecs --------------------------------------------------------------------------------------


def _eden(bits: int) -> Callable[[Any, Any], Any]:
    return lambda x, w: oracle.eden(x, w, 128, bits)


REFERENCES: dict[str, tuple[str, dict[str, Any], Callable[[Any, Any], Any]]] = {
    "uniform 8": ("uniform", {"bits": 8}, lambda x, w: oracle.uniform(x, w, SHAPES, 8)),
    "uniform 3": ("uniform", {"bits": 3}, lambda x, w: oracle.uniform(x, w, SHAPES, 3)),
    "fixed-step": (
        "fixed-step",
        {"bits": 8, "step": 0.02},
        lambda x, w: oracle.fixed_step(x, w, 0.02, 8),
    ),
    "qsgd": ("qsgd", {"levels": 40}, lambda x, w: oracle.qsgd(x, w, 40)),
    "qsgd gamma": ("qsgd", {"levels": 5, "is_short": True}, lambda x, w: oracle.qsgd(x, w, 5)),
    "terngrad": ("terngrad", {"clip": 2.5}, lambda x, w: oracle.terngrad(x, w, SHAPES, 2.5)),
    "terngrad base 3": (
        "terngrad",
        {"is_short": True},
        lambda x, w: oracle.terngrad(x, w, SHAPES, 0.0),
    ),
    "sign": ("sign", {}, lambda x, w: oracle.sign(x, SHAPES)),
    "top-k": ("top-k", {"count": 7}, lambda x, w: oracle.top_k(x, 7)),
    "top-k bitmap": ("top-k", {"count": 200}, lambda x, w: oracle.top_k(x, 200)),
    "drive": (
        "drive",
        {"block": 64, "is_unbiased": True},
        lambda x, w: oracle.drive(x, w, 64, is_unbiased=True),
    ),
    "drive least error": (
        "drive",
        {"block": 512},
        lambda x, w: oracle.drive(x, w, 512, is_unbiased=False),
    ),
    **{
        f"eden {bits}": ("eden", {"block": 128, "bits": bits}, _eden(bits)) for bits in (1, 2, 3, 4)
    },
    "sketch": (
        "sketch",
        {"depth": 5, "width": 63},
        lambda x, w: oracle.sketch(x, w, 5, 63),
    ),
    "sketch of even depth": (
        "sketch",
        {"depth": 4, "width": 100},
        lambda x, w: oracle.sketch(x, w, 4, 100),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_codec_equals_its_reference(name: str) -> None:
    kind, fields, reference = REFERENCES[name]
    x = _x()
    decoded = _passed(native.Codec(kind, SHAPES, **fields), x)
    expected = reference(x.astype(np.float64), oracle.words_of(KEY, 5 * SIZE))
    # Payloads and results are rounded to float32; values are up to about 4 standard deviations, and
    # a rotation and its inverse have log2(block) additions each.
    np.testing.assert_allclose(decoded, expected, rtol=2e-6, atol=5e-6)


# Bytes of one upload of softmax regression, the 2NN, and the CNN with 1,663,370 parameters.
UPLOADS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "uniform 8": ("uniform", {"bits": 8}, (7_866, 199_258, 1_663_434)),
    "uniform 4": ("uniform", {"bits": 4}, (3_941, 99_653, 831_749)),
    "uniform 1": ("uniform", {"bits": 1}, (998, 24_950, 207_986)),
    "terngrad two bits": ("terngrad", {}, (1_971, 49_827, 415_875)),
    "terngrad base 3": ("terngrad", {"is_short": True}, (1_578, 39_866, 332_708)),
    "sign": ("sign", {}, (990, 24_926, 207_954)),
    "drive whole": ("drive", {"block": 1 << 24}, (1_028, 32_772, 262_148)),
    "eden whole": ("eden", {"block": 1 << 24, "bits": 2}, (2_052, 65_540, 524_292)),
    "top-k": ("top-k", {"fraction": 0.01}, (445, 12_457, 110_201)),
    "random-k": ("random-k", {"fraction": 0.01}, (316, 7_972, 66_536)),
    "fixed-step 20 bits": ("fixed-step", {"bits": 16, "step": 1.0}, (15_700, 398_420, 3_326_740)),
}
LAYOUTS = [
    zoo.softmax_regression((28, 28), 10).layout,
    zoo.mlp_2nn((28, 28), 10).layout,
    zoo.build("cnn-mcmahan", input_shape=(28, 28), num_classes=10).layout,
]


@pytest.mark.parametrize("name", UPLOADS)
def test_the_bytes_of_an_upload(name: str) -> None:
    kind, options, expected = UPLOADS[name]
    fields = dict(options)
    fraction, block = fields.pop("fraction", None), fields.pop("block", None)
    stage = compression.Compression(
        kind, Purpose.QUANTISATION, 1, fields, fraction=fraction, block=block
    )
    for layout, num_bytes in zip(LAYOUTS, expected, strict=True):
        codec = stage.codec(layout)
        assert codec.capacity == num_bytes
        assert len(codec.encode(_x(1, layout.num_params), KEY)) == num_bytes


@pytest.mark.parametrize(("model", "num_bytes"), [(0, 6_392), (1, 14_392), (2, 43_200)])
def test_the_bytes_of_both_exchanges_of_powersgd(model: int, num_bytes: int) -> None:
    layout = LAYOUTS[model]
    updates = _updates(layout, [1])
    _, metrics = _stage("powersgd").run(_stage("powersgd").init(layout.num_params), updates)
    assert metrics["payload_bytes"] == num_bytes


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_random_rounding_is_unbiased(kind: str) -> None:
    """In each coordinate, the mean of the decoded values over 4,000 keys is near x.

    The bound is Maurer and Pontil's empirical Bernstein bound (2009), which an unbiased codec
    exceeds with probability 1e-9 at most. It also holds if a level is drawn rarely.
    """
    codec = native.Codec(kind, SHAPES, **STOCHASTIC[kind])
    x = _x().clip(-3, 3)
    num = 4000
    errors = np.stack([_passed(codec, x, KEY._replace(round_num=r)) - x for r in range(num)])
    # The largest spread serves for all: by chance a coordinate may have had only one level.
    spread = (errors.max(axis=0) - errors.min(axis=0)).max()
    log = math.log(2 / 1e-9)
    bound = np.sqrt(2 * errors.var(axis=0) * log / num) + 7 * spread * log / (3 * (num - 1))
    assert (np.abs(errors.mean(axis=0)) <= bound + 1e-6).all()
    assert bound.mean() < 0.1 * spread  # a bias of a tenth of a level would be seen


def test_terngrad_is_unbiased_of_clipped_values() -> None:
    codec = native.Codec("terngrad", [(SIZE,)], clip=1.5)
    x = _x()
    bound = 1.5 * x.std()
    num = 4000
    total = np.zeros(SIZE)
    for r in range(num):
        total += _passed(codec, x, KEY._replace(round_num=r))
    clipped = np.clip(x, -bound, bound).astype(np.float64)
    variance = bound * np.abs(clipped) - clipped**2
    assert (np.abs(total / num - clipped) <= 6 * np.sqrt(variance / num) + 1e-6).all()


def _variance(codec: native.Codec, x: NDArray[np.float32], num: int) -> tuple[float, float]:
    """Returns the mean of |decoded - x|^2 over keys, and its standard error."""
    errors = [
        float(np.sum((_passed(codec, x, KEY._replace(round_num=r)).astype(float) - x) ** 2))
        for r in range(num)
    ]
    return float(np.mean(errors)), float(np.std(errors) / math.sqrt(num))


GOLDEN = np.array([0.3, -1.2, 0.05, 2, -0.7, 0, 1.1, -0.4], np.float32)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("uniform", {"bits": 2}, 1.2075),
        ("qsgd", {"levels": 4}, 0.487769),
        ("terngrad", {}, 4.1075),
        ("random-k", {"count": 2, "is_unbiased": True}, 22.1775),
    ],
)
def test_variances_are_those_of_the_formulas(
    kind: str, fields: dict[str, Any], expected: float
) -> None:
    mean, error = _variance(native.Codec(kind, [(8,)], **fields), GOLDEN, 20_000)
    assert abs(mean - expected) <= 5 * error
    assert error < 0.02 * expected


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("drive", {"is_unbiased": True}, math.pi / 2 - 1),
        ("drive", {}, 1 - 2 / math.pi),
        ("eden", {"bits": 1}, 0.571),
        ("eden", {"bits": 2}, 0.133),
        ("eden", {"bits": 3}, 0.0358),
        ("eden", {"bits": 4}, 0.0096),
    ],
)
def test_relative_errors_after_a_rotation(
    kind: str, fields: dict[str, Any], expected: float
) -> None:
    x = _x(2, 8192)
    decoded = _passed(native.Codec(kind, [(8192,)], block=8192, **fields), x)
    error = np.sum((decoded - x).astype(float) ** 2) / np.sum(x.astype(float) ** 2)
    assert error == pytest.approx(expected, rel=0.05)  # one block of 8,192 values


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 32, 128]))
def test_the_inner_product_after_a_rotation_is_the_square_norm(
    size: int, seed: int, block: int
) -> None:
    x = _x(seed, size)
    square = float(np.sum(x.astype(np.float64) ** 2))
    for kind, fields in (("drive", {"is_unbiased": True}), ("eden", {"bits": 2})):
        decoded = _passed(native.Codec(kind, [(size,)], block=block, **fields), x)
        product = float(np.sum(x.astype(np.float64) * decoded))
        assert product == pytest.approx(square, rel=1e-5)


@given(
    st.sampled_from(
        ["uniform", "qsgd", "terngrad", "sign", "top-k", "random-k", "drive", "eden", "sketch"]
    ),
    st.binary(max_size=80),
)
def test_any_bytes_are_refused_or_decoded(kind: str, payload: bytes) -> None:
    fields: dict[str, Any] = {"bits": 2, "levels": 3, "is_short": True, "count": 3, "block": 16}
    codec = native.Codec(kind, [(5, 3), (4,)], depth=2, width=3, **fields)
    with suppress(native.PayloadFault):
        assert codec.decode(np.frombuffer(payload, np.uint8), KEY).shape == (19,)


def test_top_k_is_contraction_and_random_k_the_same_for_both_sides() -> None:
    x = _x()
    decoded = _passed(native.Codec("top-k", SHAPES, count=30), x)
    assert np.sum((x - decoded) ** 2) <= (1 - 30 / SIZE) * np.sum(x**2)
    decoded = _passed(native.Codec("random-k", SHAPES, count=30), x)
    assert np.count_nonzero(decoded) == 30
    assert (decoded[decoded != 0] == x[decoded != 0]).all()


# ---- Stages --------------------------------------------------------------------------------------


def _stage(name: str, threads: int = 1, **options: Any) -> UpdateStage:
    return compression.build(name, options, num_threads=threads)


LAYOUT = zoo.softmax_regression((6, 5), 4).layout


def _updates(
    layout: ParamLayout,
    seeds: list[int],
    round_num: int = 0,
    ids: tuple[str, ...] | None = None,
) -> RoundUpdates:
    """Returns updates of clients c0, c1, ...; a client of seed 0 has no examples and a row of 0."""
    ids = ids or tuple(f"c{index}" for index in range(len(seeds)))
    rows = np.stack([_x(seed, layout.num_params) for seed in seeds])
    stats = np.zeros(len(seeds), _core.STATS)
    stats["weight"] = [10.0 * seed for seed in seeds]
    stats["is_finite"] = 1
    rows[stats["weight"] == 0] = 0.0
    occurrences = tuple(ids[:place].count(each) for place, each in enumerate(ids))
    return RoundUpdates(RoundContext(7, round_num, ids, occurrences), layout, stats, rows)


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_groups_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for threads, group_bytes in ((1, 1 << 20), (2, 1 << 20), (7, 3 * 4 * LAYOUT.num_params)):
        monkeypatch.setattr(compression, "GROUP_BYTES", group_bytes)
        stage = _stage(name, threads)
        state, results = stage.init(LAYOUT.num_params), []
        for round_num in range(3):
            updates = _updates(LAYOUT, [3, 1, 0, 5, 2, 8, 4, 9], round_num)
            state, metrics = stage.run(state, updates)
            results.append((updates.rows.tobytes(), metrics))
        made.append(results)
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_zeros_stays_zeros(name: str) -> None:
    updates = _updates(LAYOUT, [2, 3])
    updates.rows[:] = 0.0
    _, metrics = _stage(name).run(_stage(name).init(LAYOUT.num_params), updates)
    assert not updates.rows.any()
    assert metrics["num_sent"] == 2
    assert math.isnan(metrics["compression_error"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_sent_is_rejected_and_changes_no_residual(name: str, value: float) -> None:
    stage = _stage(name)
    state = stage.init(LAYOUT.num_params)
    state, _ = stage.run(state, _updates(LAYOUT, [1, 2, 3]))
    before = _residual(state, "c1")
    updates = _updates(LAYOUT, [4, 5, 6], 1)
    updates.rows[1, :5] = value
    state, metrics = stage.run(state, updates)
    assert np.isfinite(updates.rows).all()
    if value == 3e38 and metrics["num_rejected"] == 0:
        return  # some codecs can send 3e38
    assert updates.stats["weight"].tolist() == [40.0, 0.0, 60.0]
    assert updates.stats["is_finite"].tolist() == [1, 0, 1]
    assert not updates.rows[1].any()
    assert metrics["num_rejected"] == 1
    assert metrics["num_sent"] == 2
    after = _residual(state, "c1")
    assert (before is None) == (after is None)
    assert before is None or (before == after).all()


def _residual(state: Mapping[str, Any], client: str) -> NDArray[np.float32] | None:
    states = state.get("residuals")
    if not isinstance(states, ClientStates):
        return None
    return states.read(client, LAYOUT.num_params).copy()


FEEDBACK: list[tuple[str, dict[str, Any]]] = [
    ("sign", {}),
    ("top-k", {"fraction": 0.1}),
    ("random-k", {"fraction": 0.1, "error_feedback": True}),
    ("powersgd", {"rank": 1}),
    ("drive", {"unbiased": False, "error_feedback": True}),
]


@pytest.mark.parametrize(("name", "options"), FEEDBACK)
def test_what_was_sent_and_what_is_left_add_up(name: str, options: dict[str, Any]) -> None:
    stage = _stage(name, **options)
    state = stage.init(LAYOUT.num_params)
    wanted: dict[str, Any] = {f"c{index}": np.zeros(LAYOUT.num_params) for index in range(4)}
    sent = {name: np.zeros(LAYOUT.num_params) for name in wanted}
    for round_num in range(6):
        seeds = [round_num + 1, round_num + 2, 0 if round_num == 2 else round_num + 3, 9]
        ids = ("c0", "c1", "c2", "c0") if round_num % 2 else ("c3", "c1", "c2", "c0")
        updates = _updates(LAYOUT, seeds, round_num, ids)
        for row, each, weight in zip(updates.rows, ids, updates.stats["weight"], strict=True):
            wanted[each] += row * (weight > 0)
        state, _ = stage.run(state, updates)
        for row, each in zip(updates.rows, ids, strict=True):
            sent[each] += row
    for each, total in wanted.items():
        left = state["residuals"].read(each, LAYOUT.num_params)
        # Each round rounds D + e and the new residual e' to float32; residuals stay below 30.
        np.testing.assert_allclose(sent[each] + left, total, atol=2e-5)


def test_decay_shrinks_what_was_not_sent() -> None:
    stage = _stage("top-k", fraction=0.01, decay=0.5)
    state = stage.init(LAYOUT.num_params)
    for round_num in range(2):
        updates = _updates(LAYOUT, [1], round_num)
        before = updates.rows[0].copy()
        left = _residual(state, "c0")
        assert left is not None
        state, _ = stage.run(state, updates)
        np.testing.assert_allclose(
            updates.rows[0] + _residual(state, "c0"), before + 0.5 * left, atol=1e-6
        )


def test_clients_that_are_not_in_the_cohort_keep_their_residual() -> None:
    stage = _stage("top-k")
    state = stage.init(LAYOUT.num_params)
    state, _ = stage.run(state, _updates(LAYOUT, [1, 2]))
    before = _residual(state, "c1")
    state, _ = stage.run(state, _updates(LAYOUT, [3], 1))
    after = _residual(state, "c1")
    assert before is not None
    assert (before == after).all()


def test_powersgd_equals_its_formula() -> None:
    """Two rounds of two clients, with weights, in float64."""
    stage = _stage("powersgd", rank=2)
    state = stage.init(LAYOUT.num_params)
    a, b = LAYOUT.shapes[0]
    right, left_over = None, np.zeros((2, LAYOUT.num_params))
    for round_num in range(2):
        updates = _updates(LAYOUT, [2, 6], round_num)
        total = updates.rows + left_over
        matrices = total[:, : a * b].reshape(2, a, b)
        if right is None:
            start = low_rank._without_zeros(
                state["right"], list(low_rank._matrices(LAYOUT, 2)), updates
            )
            right = start[: b * 2].reshape(b, 2).astype(np.float64)
        mean = (20 * matrices[0] + 60 * matrices[1]) / 80
        basis = np.linalg.qr(mean @ right)[0]  # spans the same space as Gram and Schmidt's
        expected = total.copy()
        expected[:, : a * b] = (basis @ (basis.T @ matrices)).reshape(2, -1)
        state, _ = stage.run(state, updates)
        np.testing.assert_allclose(updates.rows, expected, atol=2e-5)
        left_over = total - expected
        signed = state["right"][: b * 2].reshape(b, 2).astype(np.float64)
        projected = basis.T @ mean
        np.testing.assert_allclose(np.abs(signed), np.abs(projected.T), atol=2e-5)
        right = signed


def test_columns_without_direction_become_zeros() -> None:
    columns = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    basis, is_nonzero = low_rank.orthonormal(columns)
    assert is_nonzero.tolist() == [True, False, False]
    np.testing.assert_allclose(basis[:, 0], [0.5**0.5, 0.5**0.5, 0], rtol=1e-6)
    assert not basis[:, 1:].any()


def test_sketches_add_up_and_the_server_keeps_the_rest() -> None:
    """Three rounds of FetchSGD by its formulas, with the sketch as a matrix in float64."""
    depth, width, momentum, k = 3, 0.4, 0.5, 5
    stage = _stage("sketch", depth=depth, width=width, momentum=momentum, fraction=k / 124)
    num_params = LAYOUT.num_params
    state = stage.init(num_params)
    num_cells = compression.num_chosen(width, num_params)
    key = stream_key(7, Purpose.SKETCH_HASHES)
    table = oracle.words_of(key, depth * num_params).reshape(num_params, depth)
    cells = (table.astype(np.uint64) * np.uint64(num_cells) >> np.uint64(32)).astype(np.int64)
    matrix = np.zeros((depth, num_cells, num_params))
    for row in range(depth):
        matrix[row, cells[:, row], np.arange(num_params)] = 1.0 - 2.0 * (table[:, row] & 1)
    moving, error = np.zeros((depth, num_cells)), np.zeros((depth, num_cells))
    for round_num in range(3):
        updates = _updates(LAYOUT, [round_num + 1, 4, 0], round_num)
        weights = updates.stats["weight"]
        mean = weights @ updates.rows / weights.sum()
        moving = momentum * moving + matrix @ mean
        error = error + moving
        estimates = np.median([matrix[row].T @ error[row] for row in range(depth)], axis=0)
        expected = oracle.top_k(estimates, k)
        touched = matrix @ expected != 0
        moving[touched] = error[touched] = 0.0
        state, metrics = stage.run(state, updates)
        np.testing.assert_allclose(updates.rows[0], expected, atol=1e-5)
        assert (updates.rows[1] == updates.rows[0]).all()
        assert not updates.rows[2].any()
        np.testing.assert_allclose(state["error"].reshape(depth, -1), error, atol=2e-5)
        np.testing.assert_allclose(state["momentum"].reshape(depth, -1), moving, atol=2e-5)
        relative = np.sum((mean - expected) ** 2) / np.sum(mean**2)
        assert metrics["compression_error"] == pytest.approx(relative, rel=1e-4)
        assert metrics["payload_bytes"] == 2 * 4 * depth * num_cells


def test_metrics_of_a_round() -> None:
    updates = _updates(LAYOUT, [1, 2, 0])
    before = updates.rows.astype(np.float64)
    _, metrics = _stage("uniform", bits=3).run({}, updates)
    error = np.sum((before - updates.rows) ** 2) / np.sum(before**2)
    codec = native.Codec("uniform", LAYOUT.shapes, bits=3)
    assert metrics == {
        "payload_bytes": 2 * codec.capacity,
        "num_sent": 2,
        "num_rejected": 0,
        "share_of_dense": codec.capacity / (4 * LAYOUT.num_params),
        "compression_error": pytest.approx(error, rel=1e-6),
    }


@pytest.mark.parametrize("name", ["random-k", "drive", "eden"])
def test_an_explicit_seed_is_eight_bytes_and_decides_all_random_words(name: str) -> None:
    options: dict[str, Any] = {"fraction": 0.1} if name == "random-k" else {}
    derived, own = _updates(LAYOUTS[0], [1, 2]), _updates(LAYOUTS[0], [1, 2])
    plain = _stage(name, **options).run({}, derived)[1]
    seeded = _stage(name, **options, explicit_seed=True)
    metrics = seeded.run({}, own)[1]
    assert metrics["payload_bytes"] == plain["payload_bytes"] + 2 * 8
    assert sum(own.sent_bytes.values()) == metrics["payload_bytes"]
    assert own.rows.tobytes() != derived.rows.tobytes()
    assert isinstance(seeded, compression.Compression)
    codec, around = seeded.codec(LAYOUTS[0]), own.round
    for index, client_id in enumerate(around.client_ids):
        words = stream_key(
            around.seed, seeded.purpose, round_num=around.round_num, client=client_key(client_id)
        )
        seed = int(native.random_u64(words, 1)[0])
        x = _updates(LAYOUTS[0], [1, 2]).rows[index]
        expected = _passed(codec, x, stream_key(seed, seeded.purpose))
        assert own.rows[index].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("fraction", "size", "expected"),
    [(0.01, 7850, 79), (0.07, 100, 7), (1e-7, 10, 1), (1.0, 3, 3), (0.1, 1_000_000, 100_000)],
)
def test_the_number_of_values_sent(fraction: float, size: int, expected: int) -> None:
    assert compression.num_chosen(fraction, size) == expected


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("zip", {}, "unknown compressor 'zip'; choose one of drive, eden"),
        ("uniform", {"bits": 17}, "uniform option bits 17: choose a whole number from 1 to 16"),
        ("uniform", {"levels": 4}, "uniform has no option 'levels'; its options are bits"),
        ("eden", {"block": 100}, "eden: block 100 is not a power of two; choose 64 or 128"),
        ("drive", {"error_feedback": True}, "drive: the scale of unbiased=true"),
        ("top-k", {"fraction": 0.0}, "top-k option fraction 0.0: choose a finite number from"),
        ("qsgd", {"coding": "zip"}, "qsgd option coding 'zip': choose gamma or fixed"),
    ],
)
def test_options_that_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compression.build(name, options, num_threads=1)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_seed_of_each_client_is_refused_with_secure_sums() -> None:
    with pytest.raises(ConfigError, match="explicit_seed=true with --secure-sum: clients"):
        compression.build("random-k", {"explicit_seed": True}, num_threads=1, sums=SumOptions())


def test_residuals_survive_in_their_file(tmp_path: Path) -> None:
    stage = _stage("top-k")
    state = stage.init(LAYOUT.num_params)
    opened = {"residuals": state["residuals"].open_in(tmp_path, [])}
    state, _ = stage.run(opened, _updates(LAYOUT, [1, 2]))
    state["residuals"].save([])
    assert (tmp_path / "residuals.sqlite").is_file()
    kept = _residual(state, "c1")
    state["residuals"].close()
    again = state["residuals"].open_in(tmp_path, [1], state["residuals"].digest)
    assert (again.read("c1", LAYOUT.num_params) == kept).all()
