from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.algorithms import centralized
from fedcli.models.zoo import softmax_regression
from fedcli.runs.files import folder
from tests.kit import reference
from tests.kit.clients import make_clients
from tests.kit.training import make_config, train

pytestmark = pytest.mark.numeric

SIZES = (7, 1, 40, 0, 23)
RATE = 0.3


def arrays(clients: list[BatchedDataset]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    pixels = np.concatenate([each.client.images() for each in clients])
    return pixels, np.concatenate([each.client.labels for each in clients])


def make_process(name: str) -> learning.LearningProcess:
    algorithm = algorithms.build(
        name,
        optimizers.sgd(RATE),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean", {}),
    )
    return learning.build_process(algorithm, softmax_regression((5, 4), 3))


def test_rounds_are_epochs_of_sgd_on_all_data() -> None:
    clients = make_clients(SIZES, plan=BatchPlan(epochs=2, batch_size=20, pipeline="per-epoch"))
    process = make_process("centralized")
    state = process.initialize()
    for _ in range(3):
        state = process.next(state, clients).state
    x, y = arrays(clients)
    # Six epochs in order, in float64: softmax regression written out.
    weights, bias = np.zeros((20, 3)), np.zeros(3)
    for _ in range(6):
        for batch_x, batch_y in reference.make_batches(x, y, range(len(y)), 20):
            logits = batch_x @ weights + bias
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[batch_y]
            weights -= RATE * batch_x.T @ error / len(batch_y)
            bias -= RATE * error.mean(axis=0)
    expected = np.concatenate([weights.ravel(), bias])
    np.testing.assert_allclose(state.global_model_weights, expected, rtol=1e-4, atol=1e-5)


def test_centralized_is_federated_averaging_of_one_client_with_all_examples() -> None:
    plan = BatchPlan(epochs=2, batch_size=8, shuffle_buffer=50, max_examples=30)
    clients = make_clients(SIZES, plan=plan)
    (pooled,) = centralized.pool(clients)
    whole = replace(
        from_arrays(*arrays(clients), client_id=centralized.POOL),
        plan=replace(plan, max_examples=14 + 2 + 30 + 0 + 30),
    )
    found = make_process("centralized")
    expected = make_process("fedavg")
    a, b = found.initialize(), expected.initialize()
    for _ in range(2):
        left, right = found.next(a, clients), expected.next(b, [whole])
        a, b = left.state, right.state
        assert left.metrics == right.metrics
    assert pooled.plan == whole.plan
    assert a.global_model_weights.tobytes() == b.global_model_weights.tobytes()


def test_clients_stored_unlike_each_other_are_decoded() -> None:
    clients = make_clients(SIZES, plan=BatchPlan())
    bytes_ = np.arange(40, dtype=np.uint8).reshape(2, 5, 4)
    inverted = from_arrays(bytes_, np.array([0, 2], np.int32))
    inverted = replace(inverted, client=replace(inverted.client, scale=-1 / 255, offset=1.0))
    (pooled,) = centralized.pool([*clients, inverted])
    assert pooled.client.pixels.dtype == np.float32
    np.testing.assert_array_equal(pooled.client.images()[-2:], inverted.client.images())
    (alike,) = centralized.pool([inverted, inverted])
    assert alike.client.pixels.dtype == np.uint8
    assert alike.client.scale == -1 / 255
    np.testing.assert_array_equal(alike.client.images()[2:], inverted.client.images())


@pytest.mark.parametrize("members", [0, 1])
def test_rounds_without_examples_change_nothing(members: int) -> None:
    clients = [
        each for each in make_clients(SIZES, plan=BatchPlan(max_examples=3)) if not len(each.client)
    ]
    process = make_process("centralized")
    state = process.initialize()
    output = process.next(state, tuple(clients[:members]))
    assert output.metrics["client_work"]["train"]["num_examples"] == 0
    assert output.state.round_num == 1
    assert (output.state.global_model_weights == state.global_model_weights).all()


def test_a_round_processes_what_a_federated_round_processes(tmp_path: Path) -> None:
    def num_examples(name: str) -> list[int]:
        train(tmp_path / name, make_config(algorithm=name, rounds=2, max_examples=50))
        lines = folder.read_metrics(tmp_path / name)
        return [line["client_work"]["train"]["num_examples"] for line in lines]

    assert num_examples("centralized") == num_examples("fedavg")
