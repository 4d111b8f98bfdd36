"""Attackers that project their parameters after each epoch, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models.zoo import softmax_regression
from tests.kit import reference
from tests.kit.clients import NUM_CLASSES, SHAPE, make_clients
from tests.kit.own_softmax import Softmax

pytestmark = pytest.mark.numeric

RADIUS = 0.05
SIZES = (23, 7, 40)
BATCH_SIZE = 10  # epochs of 23 or 7 examples end with a partial batch
TENSORS = ((SHAPE[0] * SHAPE[1], NUM_CLASSES), (NUM_CLASSES,))
# Client optimizers, each with a radius that every epoch exceeds.
CLIENTS: dict[str, tuple[Optimizer, Any, float]] = {
    "sgd": (optimizers.sgd(0.1), reference.Sgd(0.1), RADIUS),
    "adam": (optimizers.adam(0.01), reference.Adam(0.01), RADIUS),
    "adafactor": (optimizers.adafactor(0.05), reference.Adafactor(0.05, TENSORS), 2e-4),
}


def _clients(**plan: Any) -> list[BatchedDataset]:
    return make_clients(SIZES, plan=BatchPlan(epochs=3, batch_size=BATCH_SIZE, **plan))


def _algorithm(name: str, optimizer: Optimizer) -> Algorithm:
    mean = aggregators.build("mean")
    return algorithms.build(
        name, optimizer, optimizers.sgd(1.0), weighting="uniform", aggregator=mean
    )


def _delta(
    client: BatchedDataset,
    optimizer: Optimizer,
    radius: float | None,
    algorithm: str = "fedavg",
    model: Any = None,
) -> NDArray[np.float32]:
    """Returns a client's delta, which is the change of the model: the server's rate is 1."""
    process = learning.build_process(
        _algorithm(algorithm, optimizer),
        model or softmax_regression(SHAPE, NUM_CLASSES),
        num_clients=3,
    )
    distances = None if radius is None else {client.client.client_id: radius}
    before = process.initialize()
    after = process.next(before, [client], max_distances=distances).state
    return after.global_model_weights - before.global_model_weights


def _expected(
    client: BatchedDataset, optimizer: reference.Optimizer, radius: float
) -> NDArray[np.float64]:
    """Returns the delta of local steps from zeros; after each epoch, the norm is bounded."""
    data = client.client
    batches = reference.make_batches(
        data.images(), data.labels, list(client.order()), client.plan.batch_size
    )
    params = np.zeros((data.images()[0].size + 1) * NUM_CLASSES)
    state, num_done = optimizer.start(params), 0
    for number, batch in enumerate(batches, 1):
        gradient = reference.score(params, batch, NUM_CLASSES)[1]
        params, state = optimizer.step(params, state, gradient)
        epoch, num_done = num_done // len(data), num_done + len(batch[1])
        if num_done // len(data) > epoch or number == len(batches):
            params *= min(1.0, radius / float(np.linalg.norm(params)))
    return params


@pytest.mark.parametrize("name", list(CLIENTS))
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_each_epoch_ends_within_the_radius(name: str, size: int) -> None:
    optimizer, slow, radius = CLIENTS[name]
    client = _clients()[size]
    found = _delta(client, optimizer, radius)
    error = found - _expected(client, slow, radius)
    assert np.abs(error).max() < max(2e-5 * radius, 1e-7)  # roundings of float32
    # The bound changes the steps, not only the last parameters.
    free = _delta(client, optimizer, None).astype(np.float64)
    scaled = free * radius / np.linalg.norm(free)
    assert np.abs(found - scaled).max() > 1e-4 * radius


def test_a_radius_that_is_never_reached_changes_no_byte() -> None:
    client, optimizer = _clients()[2], CLIENTS["adam"][0]
    assert _delta(client, optimizer, 1e9).tobytes() == _delta(client, optimizer, None).tobytes()


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "mime", "fednova", "fedprox"])
def test_every_algorithm_s_steps_are_bounded(algorithm: str) -> None:
    client = _clients()[0]
    if algorithm in ("feddyn", "fednova"):  # they scale or shift deltas, possibly beyond the radius
        free, bound = (_delta(client, optimizers.sgd(0.1), each, algorithm) for each in (1e9, 1e-6))
        assert np.linalg.norm(bound) < 1e-3 * np.linalg.norm(free)
        return
    found = _delta(client, optimizers.sgd(0.1), RADIUS, algorithm)
    assert np.linalg.norm(found.astype(np.float64)) == pytest.approx(RADIUS, rel=1e-6)


def test_a_model_in_python_projects_alike() -> None:
    client = _clients()[1]
    layers = _delta(client, optimizers.sgd(0.1), RADIUS)
    python = _delta(client, optimizers.sgd(0.1), RADIUS, model=Softmax)
    np.testing.assert_allclose(python, layers, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("num_threads", [2, 7])
def test_only_the_named_clients_project_on_any_number_of_threads(num_threads: int) -> None:
    def weights(threads: int, named: tuple[int, ...]) -> bytes:
        process = learning.build_process(
            _algorithm("fedavg", optimizers.sgd(0.1)),
            softmax_regression(SHAPE, NUM_CLASSES),
            engine=ThreadEngine(threads),
        )
        clients = _clients()
        distances = {clients[index].client.client_id: RADIUS for index in named}
        state = process.next(process.initialize(), clients, max_distances=distances).state
        return state.global_model_weights.tobytes()

    assert weights(num_threads, (0, 2)) == weights(1, (0, 2))
    assert len({weights(1, named) for named in ((), (0,), (2,), (0, 2))}) == 4
