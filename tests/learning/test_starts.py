"""Evaluating clients in one call, each at its own parameters, equals one call per client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layout import ParamLayout
from fedcli.models.zoo import softmax_regression
from tests.kit import reference
from tests.kit.clients import make_clients

pytestmark = pytest.mark.numeric

SHAPE, NUM_CLASSES = (3, 4), 3
SIZES = (700, 0, 12, 1, 257, 40, 300, 9, 33, 20, 5)  # the largest is cut into three pieces
STARTS = np.random.default_rng(7).standard_normal((len(SIZES), 13 * NUM_CLASSES), np.float32)


def _clients() -> list[BatchedDataset]:
    return make_clients(SIZES, SHAPE, NUM_CLASSES)


class _Rows:
    """Rows of an array, one for each client; records how many are requested at once."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        first = sum(self.counts)
        self.counts.append(len(clients))
        return STARTS[first : first + len(clients)]


def _check(engine: Engine, layout: ParamLayout) -> list[int]:
    clients, rows = _clients(), _Rows()
    params = np.zeros(layout.num_params, np.float32)
    together = engine.evaluate(layout, params, clients, starts=rows)
    for index, client in enumerate(clients):
        alone = engine.evaluate(layout, STARTS[index], [client])
        for name in together.dtype.names or ():
            assert together[name][index].tobytes() == alone[name][0].tobytes(), (name, index)
    at_params = engine.evaluate(layout, params, clients)
    assert (at_params["loss_sum"] != together["loss_sum"])[np.array(SIZES) > 0].all()
    return rows.counts


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_threads_score_each_client_at_its_own_start(num_threads: int) -> None:
    layout = softmax_regression(SHAPE, NUM_CLASSES).layout
    assert _check(ThreadEngine(num_threads), layout) == [len(SIZES)]


def test_starts_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcli.learning.engines.threads.PIECE_BYTES", 1)
    layout = softmax_regression(SHAPE, NUM_CLASSES).layout
    assert _check(ThreadEngine(2), layout) == [8, 3]


def test_scores_are_those_of_float64() -> None:
    layout = softmax_regression(SHAPE, NUM_CLASSES).layout
    clients = _clients()
    stats = ThreadEngine(2).evaluate(layout, STARTS[0], clients, starts=_Rows())
    for client, start, found in zip(clients, STARTS, stats, strict=True):
        batches = [(each["x"], each["y"][:, 0]) for each in client]
        expected = reference.evaluate(start.astype(np.float64), [batches], NUM_CLASSES)
        assert found["num_correct"] == expected.num_correct
        assert found["loss_sum"] == pytest.approx(expected.loss_sum, rel=1e-5)
