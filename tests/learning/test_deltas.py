"""Deltas of a cohort: their rows are the terms of the sum, and lie in a file without a name."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.core.native import WeightedSum
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import RunError
from fedcli.learning import optimizers
from fedcli.learning.engines import deltas as engine_deltas
from fedcli.learning.engines.deltas import ALL_ROWS, DeltaBounds, DeltaRequest, Deltas
from fedcli.learning.engines.task import NO_INPUTS, ClientInputs, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from tests.kit.clients import make_clients

pytestmark = pytest.mark.numeric

MODEL = softmax_regression((5, 4), 3)
NUM_PARAMS = MODEL.layout.num_params
SIZES = (7, 20, 0, 13, 9, 30, 2, 5, 11, 4, 17)
BAD = 4  # a client whose delta is not finite


def _clients() -> list[BatchedDataset]:
    def spoil(number: int, pixels: NDArray[np.float32]) -> None:
        if number == BAD:
            pixels[:] = 1e38  # the second step overflows

    return make_clients(SIZES, plan=BatchPlan(epochs=2, batch_size=5), change=spoil)


def _task(request: DeltaRequest, inputs: ClientInputs = NO_INPUTS) -> ClientTask:
    rows = tuple(optimizers.sgd(0.5).client_rows())
    return ClientTask(
        rows,
        MODEL.initial_params,
        round_num=0,
        weighting="num-examples",
        request=request,
        inputs=inputs,
    )


class _CopiedDeltas:
    """Copies the deltas of clients, then overwrites the memory that held them."""

    num_vectors = 0
    receives = True

    def __init__(self) -> None:
        self.rows: list[NDArray[np.float32]] = []

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        return NO_INPUTS

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        for delta, is_finite in zip(deltas, stats["is_finite"], strict=True):
            self.rows.append(delta.copy() if is_finite else np.zeros_like(delta))
        deltas[:] = 77.0


def _total(rows: Sequence[NDArray[np.float32]], weights: NDArray[np.float64]) -> bytes:
    total = WeightedSum(NUM_PARAMS)
    total.add([np.array(row) for row in rows], list(weights))
    return total.total()[0].tobytes()


@pytest.mark.parametrize("piece_bytes", [1, 64 << 20])
@pytest.mark.parametrize("num_threads", [1, 7])
def test_rows_are_the_deltas_that_clients_made(
    num_threads: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcli.learning.engines.threads.PIECE_BYTES", piece_bytes)
    engine, copied = ThreadEngine(num_threads), _CopiedDeltas()
    found = engine.train(MODEL.layout, _task(ALL_ROWS), _clients(), exchange=copied)
    assert found.rows is not None
    assert found.rows.shape == (len(SIZES), NUM_PARAMS)
    assert not found.rows.flags.writeable
    np.testing.assert_array_equal(found.rows, copied.rows)
    assert not found.rows[BAD].any()
    assert not found.rows[2].any()  # this client has no examples
    assert found.rows[0].any()
    plain = engine.train(MODEL.layout, _task(engine_deltas.SUM), _clients())
    assert plain.rows is None
    assert plain.delta_sum.tobytes() == found.delta_sum.tobytes()
    assert _total(copied.rows, found.stats["weight"]) == found.delta_sum.tobytes()


def test_rows_are_bounded_and_scaled_as_the_sum_is() -> None:
    bounds = DeltaBounds(max_abs=0.3, norm=0.25)
    factors = np.linspace(0.0, 2.0, len(SIZES))
    copied, clients = _CopiedDeltas(), _clients()
    task = _task(DeltaRequest(bounds, all_rows=True), ClientInputs(delta_factors=factors))
    found = ThreadEngine(2).train(MODEL.layout, task, clients)
    ThreadEngine(2).train(MODEL.layout, _task(engine_deltas.SUM), clients, exchange=copied)
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in copied.rows])
    is_zeroed = np.array([np.abs(row).max() > bounds.max_abs for row in copied.rows])
    assert 0 < is_zeroed.sum() < 9
    assert ((norms > bounds.norm) & ~is_zeroed).any()
    scale = factors * np.where(is_zeroed, 0.0, np.minimum(1.0, bounds.norm / np.fmax(norms, 1e-9)))
    assert found.rows is not None
    expected = scale[:, np.newaxis] * np.array(copied.rows, np.float64)
    np.testing.assert_allclose(found.rows, expected, rtol=1e-6, atol=1e-9)
    total = (found.stats["weight"][:, np.newaxis] * found.rows.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(found.delta_sum, total, rtol=1e-6, atol=1e-6)


def test_clients_with_their_own_starts_are_not_in_rows_or_sum() -> None:
    starts = np.ones((len(SIZES), NUM_PARAMS), np.float32)
    task = _task(ALL_ROWS, ClientInputs(starts=starts))
    found = ThreadEngine(2).train(MODEL.layout, task, _clients())
    assert found.rows is not None
    assert not found.rows.any()
    assert not found.delta_sum.any()


def test_the_file_has_no_name_and_its_rows_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = ThreadEngine(1)
    first = engine.train(MODEL.layout, _task(ALL_ROWS), _clients()).rows
    assert first is not None
    content = first.tobytes()
    assert list(tmp_path.iterdir()) == []
    engine.train(MODEL.layout, replace(_task(ALL_ROWS), round_num=1), _clients()[::-1])
    assert first.tobytes() == content


def test_an_empty_cohort_has_no_rows() -> None:
    found = ThreadEngine(1).train(MODEL.layout, _task(ALL_ROWS), [])
    assert found.rows is not None
    assert found.rows.shape == (0, NUM_PARAMS)


def _full_device() -> Any:
    return Path("/dev/full").open("w+b", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_deltas, "nameless_file", _full_device)
    monkeypatch.setattr(engine_deltas, "IN_MEMORY_BYTES", 0)
    engine = ThreadEngine(1)
    expected = (
        r"^the model deltas of a cohort cannot be written to a temporary file: No space left on "
        r"device; make room there; set TMPDIR to another folder, with room for 252 bytes per "
        r"client$"
    )
    with pytest.raises(RunError, match=expected):
        engine.train(MODEL.layout, _task(ALL_ROWS), _clients())
    monkeypatch.undo()
    assert engine.train(MODEL.layout, _task(ALL_ROWS), _clients()).rows is not None


def _some(**changes: Any) -> Deltas:
    random = np.random.default_rng(5)
    rows = random.standard_normal((6, 10)).astype(np.float32)
    stats = np.zeros(6, [("weight", "f8"), ("is_finite", "i4")])
    stats["weight"] = (3.0, 1.0, 0.0, 2.0, 0.0, 5.0)
    weighted = stats["weight"][:, np.newaxis] * rows
    return Deltas(weighted.sum(axis=0), 11.0, stats, rows, **changes)


def test_scale_and_shift_hold_for_each_delta() -> None:
    vector = np.linspace(-1.0, 1.0, 10)
    found = _some().scaled(3.0).shifted(vector).scaled(0.5)
    plain = _some()
    assert plain.rows is not None
    each = 0.5 * (3.0 * plain.rows.astype(np.float64) + vector)
    weights = plain.stats["weight"]
    mean = (weights[:, np.newaxis] * each).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(found.weighted_mean(), mean, rtol=1e-6, atol=1e-7)
    largest = found.by_coordinate(lambda values: values.max(axis=1))
    np.testing.assert_allclose(largest, each[weights > 0].max(axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("slice_bytes", [1, 3 * 4 * 4, 8 << 20])
def test_a_rule_sees_all_deltas_that_count_in_slices(
    slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_deltas, "SLICE_BYTES", slice_bytes)
    shapes = []

    def rule(values: NDArray[np.floating]) -> NDArray[np.floating]:
        shapes.append(values.shape)
        return values.sum(axis=1)

    found = _some()
    assert found.rows is not None
    expected = found.rows[[0, 1, 3, 5]].sum(axis=0)
    np.testing.assert_allclose(found.by_coordinate(rule), expected, rtol=1e-6, atol=1e-6)
    assert {shape[1] for shape in shapes} == {4}
    assert sum(shape[0] for shape in shapes) == 10
    assert max(shape[0] for shape in shapes) == {1: 1, 48: 3, 8 << 20: 10}[slice_bytes]


def test_where_no_delta_counts_the_mean_is_not_a_number() -> None:
    nobody = _some()
    nobody.stats["weight"] = 0.0
    gradients = replace(_some(), rows=None)
    gradients.delta_sum[0] = np.inf
    for deltas in (nobody, gradients):
        assert np.isnan(deltas.by_coordinate(lambda values: values[:, 0])).all()


def test_deltas_that_were_not_requested_cannot_be_combined_by_coordinate() -> None:
    with pytest.raises(ValueError, match="no individual deltas; let request return ALL_ROWS"):
        replace(_some(), rows=None).by_coordinate(lambda values: values[:, 0])
