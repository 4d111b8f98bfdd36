"""The task of an engine gives the same bytes when it is sent to another process, also in pieces."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli.core.native import StepKind
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning import optimizers
from fedcli.learning.engines.deltas import DeltaBounds, DeltaRequest, Deltas
from fedcli.learning.engines.task import ClientInputs, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.optimizers.optimizer import frozen_slots
from fedcli.models.zoo import softmax_regression
from tests.kit.clients import make_clients

pytestmark = pytest.mark.numeric

MODEL = softmax_regression((5, 4), 3)
NUM_PARAMS = MODEL.layout.num_params
ENGINE = ThreadEngine(2)


def _clients(sizes: Sequence[int], *, same_name: bool = False) -> list[BatchedDataset]:
    plan = BatchPlan(epochs=2, batch_size=5, shuffle_buffer=50)
    return make_clients(sizes, plan=plan, client_id="one" if same_name else "client {}")


def _task(**changes: Any) -> ClientTask:
    optimizer = optimizers.schedule_learning_rate(
        optimizers.adam(0.1), "exponential", {"decay_rounds": 3}, by="local-step"
    )
    return ClientTask(
        rows=((StepKind.LINEAR, ()), *optimizer.client_rows()),
        params=MODEL.initial_params,
        round_num=4,
        weighting="num-examples",
        schedule=optimizer.local_schedule,
        **changes,
    )


def _rows(num: int, seed: int = 9) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((num, NUM_PARAMS), dtype=np.float32)


def _content(result: Deltas) -> tuple[Any, ...]:
    columns = {name: result.stats[name].tobytes() for name in result.stats.dtype.names or ()}
    return result.delta_sum.tobytes(), result.weight_sum, columns


class _Exchange:
    """Sends rows of arrays piece by piece, and keeps the results."""

    num_vectors = 1
    receives = True

    def __init__(self, inputs: ClientInputs) -> None:
        self.inputs = inputs
        self.num_sent = 0
        self.received: list[NDArray[np.float32]] = []

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        first, self.num_sent = self.num_sent, self.num_sent + len(clients)
        return self.inputs.of(first, self.num_sent)

    def receive(
        self,
        clients: Sequence[BatchedDataset],
        deltas: NDArray[np.float32],
        stats: NDArray[np.void],
    ) -> None:
        assert len(clients) == len(deltas) == len(stats)
        self.received += [delta.copy() for delta in deltas]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"request": DeltaRequest(DeltaBounds(0.3, 0.2))},
        {
            "frozen": frozen_slots(
                {
                    "step": 3,
                    "accumulator": np.zeros(NUM_PARAMS, np.float32),
                    "preconditioner": np.ones(NUM_PARAMS, np.float32),
                }
            )
        },
        {"inputs": ClientInputs(linear=_rows(1))},
        {"inputs": ClientInputs(linear=_rows(4), delta_factors=np.array([0.5, 0.0, 2.0, 1.0]))},
        {"inputs": ClientInputs(starts=_rows(4))},
        {"inputs": ClientInputs(starts=_rows(4), delta_factors=np.ones(4))},
    ],
    ids=["plain", "bounds", "frozen", "common-linear", "linear-and-factors", "starts", "summed"],
)
def test_a_task_that_was_pickled_is_computed_to_the_same_bytes(changes: dict[str, Any]) -> None:
    task, clients = _task(**changes), _clients((7, 20, 1, 13))
    here = ENGINE.train(MODEL.layout, task, clients)
    there = ENGINE.train(MODEL.layout, pickle.loads(pickle.dumps(task)), clients)
    assert _content(there) == _content(here)
    other = ENGINE.train(MODEL.layout, replace(task, round_num=5), clients)
    assert _content(here) != _content(other)


@pytest.mark.parametrize("piece_bytes", [1, 64 << 20])
def test_inputs_come_from_the_task_or_from_an_exchange(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcli.learning.engines.threads.PIECE_BYTES", piece_bytes)
    clients = _clients([5 + index for index in range(19)])
    inputs = ClientInputs(linear=_rows(19), delta_factors=np.linspace(0.0, 2.0, 19))
    exchange = _Exchange(inputs)
    exchanged = ENGINE.train(MODEL.layout, _task(), clients, exchange=exchange)
    whole = ENGINE.train(MODEL.layout, _task(inputs=inputs), clients)
    assert _content(exchanged) == _content(whole)
    assert len(exchange.received) == exchange.num_sent == 19
    weights = (exchanged.stats["weight"] * inputs.delta_factors)[:, np.newaxis]
    total = (weights * np.array(exchange.received, np.float64)).sum(axis=0)
    np.testing.assert_allclose(exchanged.delta_sum, total, rtol=1e-9, atol=1e-9)


def test_a_part_of_a_cohort_has_the_numbers_of_its_clients_copies() -> None:
    """A cohort drawn with replacement is split after a whole block, as an engine may split it."""
    clients = _clients([12], same_name=True) * 11
    whole = ENGINE.train(MODEL.layout, _task(), clients)
    parts = [
        ENGINE.train(
            MODEL.layout, _task(occurrences=tuple(range(first, last))), clients[first:last]
        )
        for first, last in ((0, 8), (8, 11))
    ]
    assert (parts[0].delta_sum + parts[1].delta_sum).tobytes() == whole.delta_sum.tobytes()
    uncounted = ENGINE.train(MODEL.layout, _task(), clients[8:])
    assert uncounted.delta_sum.tobytes() != parts[1].delta_sum.tobytes()


def test_the_task_may_renumber_the_copies_in_a_kept_cohort() -> None:
    clients, engine = tuple(_clients([12, 15], same_name=True)), ThreadEngine(1)
    found = [
        engine.train(MODEL.layout, _task(occurrences=each), clients).delta_sum.tobytes()
        for each in ((0, 1), (5, 6), (0, 1))
    ]
    assert found[0] == found[2] != found[1]


def test_a_schedule_of_local_steps_becomes_as_many_factors_as_there_are_steps() -> None:
    clients = _clients((7, 20, 1))  # the largest sees 40 examples in batches of 5
    factors = _task().rate_factors(clients)
    assert factors is not None
    np.testing.assert_allclose(factors, 0.1 ** (np.arange(8) / 3), rtol=1e-15)
    assert replace(_task(), schedule=None).rate_factors(clients) is None
