"""Secure sums: against a slow implementation in NumPy, with drop-outs, and in whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import settings
from fedcli.core import _core, native
from fedcli.core.native import STATS
from fedcli.core.seeds import Purpose, stream_key
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.bounded import NormBound
from fedcli.learning.aggregators.mean import Mean
from fedcli.learning.engines.deltas import DeltaBounds, Deltas, RoundContext
from fedcli.learning.masked_sums import SumOptions, mask_bits, setup_bytes
from fedcli.learning.secure_sums.one_sum import SecureSum
from fedcli.reports.verdict import verdict
from fedcli.runs.ledger import ledger_of
from fedcli.runs.record import load_run
from tests.kit.training import figures, make_config, train, trained, trained_with_a_stop

MASKS = stream_key(5, Purpose.MASKS, round_num=3)
ROUNDING_KEYS = [
    stream_key(5, Purpose.SECURE_ROUNDING, round_num=3, client=client) for client in range(1, 40)
]


class SlowSum(NamedTuple):
    """A secure sum with Python's integers, client by client and pair by pair."""

    bits: int
    mask_bits: int
    bound: float
    weight_unit: int

    def levels(
        self, row: NDArray[np.float32], weight: int, draws: NDArray[np.uint64] | None
    ) -> list[int]:
        scale = (2**self.bits - 1) / (2 * self.bound)
        result = []
        for place, x in enumerate(row.astype(np.float64).tolist()):
            clipped = min(max(x, -self.bound), self.bound)
            level = (weight / self.weight_unit * clipped + self.bound) * scale
            level = min(level, 2**self.bits - 1)
            if draws is None:
                result.append(round(level))  # a half goes to the even level
            else:
                uniform = (int(draws[place]) >> 11) * 2.0**-53
                result.append(int(level) + (uniform < level - int(level)))
        return [*result, weight]

    def sent(
        self, levels: dict[int, list[int]], masks: dict[tuple[int, int], list[int]]
    ) -> dict[int, list[int]]:
        """Returns what each client sends: its levels plus its masks with all others."""
        rows = {}
        for client, row in levels.items():
            masked = list(row)
            for (i, j), mask in masks.items():
                sign = (client == i) - (client == j)
                masked = [value + sign * each for value, each in zip(masked, mask, strict=True)]
            rows[client] = [value % 2**self.mask_bits for value in masked]
        return rows

    def received(
        self, sent: dict[int, list[int]], masks: dict[tuple[int, int], list[int]]
    ) -> list[int]:
        """Returns the server's sum: it removes the masks with clients that dropped out."""
        total = [sum(values) for values in zip(*sent.values(), strict=True)]
        for (i, j), mask in masks.items():
            sign = (j in sent) - (i in sent)
            total = [value + sign * each for value, each in zip(total, mask, strict=True)]
        return [value % 2**self.mask_bits for value in total]


def draw_masks(num_clients: int, num_values: int) -> dict[tuple[int, int], list[int]]:
    return {
        (i, j): [
            int(each)
            for each in native.random_u64(MASKS._replace(client=i, occurrence=j), num_values)
        ]
        for i in range(num_clients)
        for j in range(i + 1, num_clients)
    }


def secure(
    rows: NDArray[np.float32], weights: list[int], slow: SlowSum, **more: Any
) -> tuple[NDArray[np.uint64], int, NDArray[np.uint64] | None]:
    levels = native.Levels(
        *(-slow.bound, slow.bound, 2**slow.bits - 1, slow.mask_bits), clip=slow.bound
    )
    options: dict[str, Any] = {"keys": None, "num_threads": 1, **more}
    keys, factors = options.pop("keys"), np.array(weights, np.float64) / slow.weight_unit
    return native.secure_sum(rows, weights, factors, keys, MASKS, levels, **options)


def decode(
    total: NDArray[np.uint64], num_clients: int, bound: float, bits: int
) -> NDArray[np.float64]:
    """Returns the sum of coordinates from the sum of their levels."""
    values: NDArray[np.float64] = total * (2 * bound / (2**bits - 1)) - num_clients * bound
    return values


EXAMPLE = np.array([[0.5, -0.25], [-0.9, 0.1], [1.3, 0.3]], np.float32)


def test_values_of_a_small_example() -> None:
    slow = SlowSum(4, mask_bits(2**4 - 1, 3), 1.0, 1)
    assert slow.mask_bits == 6
    levels = {client: slow.levels(row, 1, None) for client, row in enumerate(EXAMPLE)}
    assert [row[:2] for row in levels.values()] == [[11, 6], [1, 8], [15, 10]]
    masks = {(0, 1): [37, 5, 0], (0, 2): [60, 11, 0], (1, 2): [3, 50, 0]}
    sent = slow.sent(levels, masks)
    assert [row[:2] for row in sent.values()] == [[44, 22], [31, 53], [16, 13]]
    assert slow.received(sent, masks)[:2] == [27, 24]
    total, num_clipped, _ = secure(EXAMPLE, [1, 1, 1], slow)
    assert total.tolist() == [27, 24, 3]
    assert num_clipped == 1
    np.testing.assert_allclose(decode(total[:2], 3, 1.0, 4), [0.6, 0.2], atol=1e-12)
    clipped = np.clip(EXAMPLE.astype(np.float64), -1, 1).sum(axis=0)
    assert np.abs(decode(total[:2], 3, 1.0, 4) - clipped).max() <= 3 / (2 * 7.5) + 1e-12


@pytest.mark.parametrize("is_stochastic", [False, True])
@pytest.mark.parametrize(
    ("weights", "num_rows"),
    [
        ([3, 7, 8, 1], 4),
        ([3, 0, 8, 0], 4),
        ([5, 2, 0, 0, 0], 2),
        ([1], 1),
        ([0, 0], 2),
        ([], 0),
    ],
)
def test_sums_and_masked_rows_equal_the_slow_ones(
    weights: list[int], num_rows: int, is_stochastic: bool
) -> None:
    num_params = 37
    rng = native.random_u64(stream_key(1, Purpose.AUDIT), num_rows * num_params)
    rows = (rng / 2.0**63 - 1.0).astype(np.float32).reshape(num_rows, num_params)
    slow = SlowSum(11, mask_bits(2**11 - 1, len(weights)), 0.7, 8)
    keys = ROUNDING_KEYS[: len(weights)] if is_stochastic else None
    draws = [native.random_u64(key, num_params) if is_stochastic else None for key in ROUNDING_KEYS]
    levels = {
        client: slow.levels(rows[client], weight, draws[client])
        for client, weight in enumerate(weights)
        if weight
    }
    masks = draw_masks(len(weights), num_params + 1)
    sent = slow.sent(levels, masks)
    total, num_clipped, masked = secure(rows, weights, slow, keys=keys, returns_sent=True)
    plain = [sum(values) for values in zip(*levels.values(), strict=True)]
    assert total.tolist() == (plain or [0] * (num_params + 1))  # the sums are below the modulus
    if levels:
        assert slow.received(sent, masks) == plain
    assert num_clipped == sum(int(np.count_nonzero(np.abs(rows[each]) > 0.7)) for each in levels)
    for client in range(len(weights)):
        assert masked is not None
        assert masked[client].tolist() == sent.get(client, [0] * (num_params + 1))


@pytest.mark.parametrize("num_params", [1, 63, 4095, 4096, 4097, 20_000])
def test_threads_change_no_bit(num_params: int) -> None:
    num_clients = 9
    words = native.random_u64(stream_key(2, Purpose.AUDIT), num_clients * num_params)
    rows = (words / 2.0**63 - 1.0).astype(np.float32).reshape(num_clients, num_params)
    weights = [1, 2, 3, 0, 5, 6, 0, 8, 9]
    slow = SlowSum(24, mask_bits(2**24 - 1, num_clients), 1.0, 16)
    results = [
        secure(rows, weights, slow, keys=ROUNDING_KEYS[:num_clients], num_threads=threads)[0]
        for threads in (1, 2, 7)
    ]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert results[0][-1] == sum(weights)


def test_one_masked_row_is_uniform() -> None:
    """Chi-square of 64 cells has mean 63 and deviation 11.2; the limit is 5 deviations above."""
    rows = np.zeros((2, 64_000), np.float32)
    slow = SlowSum(5, 6, 1.0, 1)
    *_, sent = secure(rows, [1, 1], slow, returns_sent=True)
    assert sent is not None
    for row in sent:
        counts = np.bincount(row.astype(np.int64), minlength=64)
        assert np.sum(np.square(counts - row.size / 64)) / (row.size / 64) < 63 + 5 * 11.2
    assert np.unique((sent[0] + sent[1])[:-1] % 64).tolist() == [32]  # 0 is level 15.5 -> 16


def test_random_rounding_is_unbiased_and_nearest_is_not() -> None:
    value, num_values = 0.01, 40_000
    rows = np.full((2, num_values), value, np.float32)
    slow = SlowSum(4, 5, 1.0, 1)
    step = 2 / 15
    nearest = decode(secure(rows, [1, 1], slow)[0][:-1], 2, 1.0, 4).mean() / 2
    at_random = (
        decode(secure(rows, [1, 1], slow, keys=ROUNDING_KEYS[:2])[0][:-1], 2, 1.0, 4).mean() / 2
    )
    fraction = (value + 1) / step % 1
    error = step * np.sqrt(fraction * (1 - fraction) / (2 * num_values))  # standard error
    assert abs(at_random - value) < 5 * error
    assert abs(nearest - value) > 50 * error


def deltas_of(
    rows: NDArray[np.float32], weights: list[float], num_absent: int = 0, **more: Any
) -> Deltas:
    stats = np.zeros(len(rows), STATS)
    stats["weight"] = weights
    stats["is_finite"] = 1
    stats["norm"] = np.linalg.norm(rows, axis=1)
    context = RoundContext(
        5, 3, tuple(f"c{each}" for each in range(len(rows))), (0,) * len(rows), num_absent
    )
    unused = np.full(rows.shape[1], np.nan)  # a secure sum must not read the plain one
    return Deltas(unused, np.nan, stats, rows, round=context, **more)


@pytest.mark.parametrize("weights", [[1, 1, 1], [10, 30, 7]])
@pytest.mark.parametrize("is_stochastic", [False, True])
def test_the_mean_is_within_the_largest_error(weights: list[float], is_stochastic: bool) -> None:
    aggregator = SecureSum(Mean(), SumOptions(bits=10, is_stochastic=is_stochastic))
    mean, state, metrics = aggregator.aggregate({}, deltas_of(EXAMPLE, weights))
    exact = np.average(EXAMPLE.astype(np.float64), axis=0, weights=weights)
    found = metrics["secure_sum"]
    assert found["bound"] == 2.0  # the smallest power of two above 1.3
    assert found["num_clipped"] == 0
    assert np.abs(mean - exact).max() <= found["largest_error"] + 1e-7
    assert found["largest_error"] < 0.02
    assert state == {}
    assert found["payload_bytes"] == 3 + 2 * (weights[0] != 1)  # 2 x 12 bits; a weight: 12 bits


def test_a_given_bound_clips_and_that_of_the_aggregator_is_taken() -> None:
    given = SecureSum(Mean(), SumOptions(bound=0.5)).aggregate({}, deltas_of(EXAMPLE, [1, 1, 1]))
    np.testing.assert_allclose(given[0], [0.5 / 3, 0.15 / 3], atol=1e-6)
    assert given[2]["secure_sum"]["num_clipped"] == 2
    inner = NormBound(3.0)
    aggregator = SecureSum(inner)
    request = aggregator.request({})
    assert request.all_rows
    assert request.bounds == inner.request({}).bounds
    found = aggregator.aggregate({}, deltas_of(EXAMPLE, [1, 1, 1], bounds=request.bounds))
    assert found[2]["secure_sum"]["bound"] == 3.0
    assert found[2]["clipping_norm"] == 3.0  # a metric of the inner aggregator is kept


@pytest.mark.parametrize(
    ("weights", "num_absent", "needed", "is_skipped"),
    [
        ([1, 1, 1], 3, 3, False),
        ([1, 0, 1], 3, 3, True),
        ([1, 1, 1], 4, 4, True),
        ([1, 0, 0], 0, 2, True),  # a sum of one would reveal its update
        ([0, 0, 0], 0, 2, True),
    ],
)
def test_rounds_below_the_threshold_are_skipped(
    weights: list[float], num_absent: int, needed: int, is_skipped: bool
) -> None:
    deltas = deltas_of(EXAMPLE, weights, num_absent)
    mean, _, metrics = SecureSum(Mean(), SumOptions(threshold=0.5)).aggregate({}, deltas)
    found = metrics["secure_sum"]
    assert found["num_needed"] == needed
    assert found["is_skipped"] == is_skipped
    assert found["num_dropped_out"] == num_absent + weights.count(0)
    assert np.isnan(mean).all() == is_skipped


def test_a_weight_that_does_not_fit_is_refused() -> None:
    aggregator = SecureSum(Mean(), SumOptions(bits=4))
    with pytest.raises(ConfigError, match="c1 has weight 16, but weights are whole numbers up to"):
        aggregator.aggregate({}, deltas_of(EXAMPLE, [15, 16, 1]))
    with pytest.raises(ConfigError, match=r"weight 0\.5"):
        aggregator.aggregate({}, deltas_of(EXAMPLE, [0.5, 1, 1]))


@pytest.mark.parametrize(
    ("num_params", "payload"), [(7850, 19_625), (199_210, 498_025), (1_663_370, 4_158_425)]
)
def test_bytes_of_a_client(num_params: int, payload: int) -> None:
    """20 bits a coordinate: 16 and 4 for 10 clients."""
    rows = np.zeros((10, num_params), np.float32)
    for weight, more in ((1.0, 0), (2.0, 3)):  # a weight has 20 bits
        deltas = deltas_of(rows, [weight] * 10)
        found = SecureSum(Mean(), SumOptions(bits=16)).aggregate({}, deltas)[2]["secure_sum"]
        assert found["payload_bytes"] == payload + more
        if num_params > 7850:
            break
    # Up: two keys, and for each of 9 others a pair of shares (80 bytes) and one share (32).
    assert setup_bytes(10) == (64 + 9 * 80 + 9 * 32, 9 * 64 + 9 * 80)
    assert setup_bytes(1) == (64, 0)


def test_the_modulus_has_room_for_all_clients() -> None:
    top = 2**24 - 1
    assert [mask_bits(top, m) for m in (0, 1, 2, 3, 8, 9)] == [24, 24, 25, 26, 27, 28]
    assert [mask_bits(2, m) for m in (1, 2, 3, 4, 10)] == [2, 3, 3, 4, 5]  # ceil(log2(2 m + 1))
    with pytest.raises(ConfigError, match="64 bits, more than 62"):
        mask_bits(2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("top_level", 0),
        ("top_level", 2**51 + 1),
        ("mask_bits", 5),
        ("mask_bits", 63),
        ("low", 1.0),
        ("low", float("nan")),
        ("high", float("inf")),
        ("high", -1.0 + 1e-310),
        ("clip", 0.0),
        ("weights", [1, 63, 1]),
        ("factors", [1, -1, 1]),
        ("num_threads", 0),
    ],
)
def test_the_core_refuses_what_could_overflow(change: str, value: Any) -> None:
    def call(**changed: Any) -> None:
        good = {"low": -1.0, "high": 1.0, "top_level": 15, "mask_bits": 6, "clip": 1.0}
        parts = {"weights": [1, 1, 1], "factors": [1, 1, 1], "num_threads": 1, **changed}
        levels = native.Levels(**{name: changed.get(name, each) for name, each in good.items()})
        native.secure_sum(
            EXAMPLE,
            parts["weights"],
            np.array(parts["factors"], np.float64),
            None,
            MASKS,
            levels,
            num_threads=parts["num_threads"],
        )

    call()
    with pytest.raises(_core.CoreError):
        call(**{change: value})


@pytest.mark.parametrize(
    "changed",
    [{"weights": [1, 1]}, {"weights": [1, 1, 1, 1]}, {"keys": []}, {"center": [0.0]}],
)
def test_rows_weights_and_keys_must_agree(changed: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"weights": [1, 1, 1], "keys": None, "center": [0.0, 0.0], **changed}
    weights = parts["weights"]
    with pytest.raises(ValueError, match=r"clients|row|center"):
        native.secure_sum(
            EXAMPLE,
            weights,
            np.ones(len(weights)),
            parts["keys"],
            MASKS,
            native.Levels(-1.0, 1.0, 15, 8),
            center=np.array(parts["center"]),
            num_threads=1,
        )


# ---- Whole runs ----------------------------------------------------------------------------------

SECURE: dict[str, Any] = {
    "secure_sum": True,
    "secure_sum_options": {"rounding": "stochastic", "bits": 16, "threshold": 0.25},
    "sampling": "uniform",
    "clients": "6",
    "client_dropout": 0.3,
}


def secure_sums_of(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(each)["aggregator"]["secure_sum"] for each in lines]


def test_a_run_is_the_same_for_any_threads_and_when_resumed(tmp_path: Path) -> None:
    expected = figures(trained(tmp_path / "1", **SECURE, threads=1))
    for threads in (2, 7):
        found = figures(trained(tmp_path / str(threads), **SECURE, threads=threads))
        assert found["metrics.jsonl"] == expected["metrics.jsonl"]
    stopped = figures(trained_with_a_stop(tmp_path / "stopped", 3, **SECURE, threads=1))
    assert stopped == expected
    sums = secure_sums_of(tmp_path / "1")
    assert sum(each["num_dropped_out"] for each in sums) > 3
    assert all(each["num_selected"] == 6 for each in sums)


@pytest.mark.parametrize("aggregator", ["mean", "norm-bound", "tff-robust"])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedsgd", "fedadam"])
def test_a_run_is_close_to_one_without_secure_sum(
    tmp_path: Path, aggregator: str, algorithm: str
) -> None:
    values = {"aggregator": aggregator, "algorithm": algorithm, "rounds": 2}
    plain = train(tmp_path / "plain", make_config(**values))
    masked = train(tmp_path / "secure", make_config(**values, secure_sum=True))
    key = "current_round_metrics"
    losses = [each["train"]["client_work"]["eval"][key]["loss"] for each in (plain, masked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("attack", ["alie", "optimal", "nan"])
def test_attackers_send_masked_rows_as_others_do(tmp_path: Path, attack: str) -> None:
    values = {"attack": attack, "attackers": "1", "rounds": 2}
    plain = train(tmp_path / "plain", make_config(**values))
    masked = train(tmp_path / "secure", make_config(**values, secure_sum=True))
    key = "current_round_metrics"
    losses = [each["train"]["client_work"]["eval"][key]["loss"] for each in (plain, masked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    dropped = [each["num_dropped_out"] for each in secure_sums_of(tmp_path / "secure")]
    assert dropped == [attack == "nan"] * 2  # an update that is not finite is not sent


def test_the_ledger_has_masked_coordinates_keys_and_shares(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", **SECURE))
    ledger = ledger_of(run)
    assert ledger is not None
    payload = 18_644 + 3  # 19 bits a coordinate: 16 and 3 for 6 clients
    up, down = setup_bytes(6)
    for each, found in zip(ledger.rounds, secure_sums_of(run.path), strict=True):
        num_reports = found["num_selected"] - found["num_dropped_out"]
        assert each.num_up == num_reports
        assert each.bytes_up == 6 * up + num_reports * payload
        assert each.bytes_down == 6 * (4 * 7850 + down)


def test_a_run_whose_rounds_are_all_skipped_says_so(tmp_path: Path) -> None:
    values = {**SECURE, "secure_sum_options": {"threshold": 1.0}, "client_dropout": 0.9}
    run = load_run(trained(tmp_path / "run", **values))
    assert all(each["is_skipped"] for each in secure_sums_of(tmp_path / "run"))
    text = verdict(run.metrics, run.evaluation, run.config)
    assert text is not None
    assert "fewer clients reported than --secure-sum-option threshold=1 " in text


ALLOWED = {"fedavg", "fedprox", "fedsgd", "fedavgm", "fedadagrad", "fedadam", "fedyogi"}


@pytest.mark.parametrize("algorithm", settings.tables.ALGORITHMS)
def test_algorithms_that_send_more_are_refused(algorithm: str) -> None:
    values = {"algorithm": algorithm, "secure_sum": True}
    if algorithm in ALLOWED:
        assert settings.from_options(values).secure_sum_options["bits"] == 24
        return
    with pytest.raises(ConfigError, match="--secure-sum"):
        settings.from_options(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"aggregator": "median"}, "aggregator median with --secure-sum: it needs the individual"),
        ({"secure_sum_options": {"bits": 33}}, "a whole number from 2 to 32"),
        ({"secure_sum_options": {"bound": 0.0}}, "a finite number from"),
        ({"secure_sum_options": {"bound": "norm"}}, "auto, or a number"),
        ({"secure_sum_options": {"bit": 3}}, "has no option 'bit'"),
        ({"secure_sum_options": {"threshold": 1.5}}, "a finite number from 0 to 1"),
        ({"secure_sum": False, "secure_sum_options": {"bits": 3}}, "is for --secure-sum"),
    ],
)
def test_impossible_options_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings.from_options({"secure_sum": True, **values})


def test_a_cohort_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cohort of 1 client"):
        trained(tmp_path / "run", clients="1", secure_sum=True)
    for sampled in ("uniform", "cyclic"):
        with pytest.raises(ConfigError, match="cohort of 1 client"):
            trained(tmp_path / "run", clients="1", secure_sum=True, sampling=sampled)


def test_bounds_reach_the_aggregator() -> None:
    """The bound of a coordinate is the bound to which the engine has clipped the deltas."""
    deltas = deltas_of(EXAMPLE, [1, 1, 1], bounds=DeltaBounds(5.0, 7.0))
    assert SecureSum(Mean()).aggregate({}, deltas)[2]["secure_sum"]["bound"] == 5.0
