"""Label smoothing and weight decay: local steps follow the formulas on every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models.own.loading import wrap
from fedcli.models.zoo import mlp_2nn, softmax_regression
from tests.kit import algorithm_oracle as oracle
from tests.kit import reference
from tests.kit.clients import NUM_CLASSES, SHAPE, make_clients
from tests.kit.own_softmax import Softmax
from tests.kit.toy_engine import ToyEngine

pytestmark = pytest.mark.numeric

SIZES = (1, 7, 30, 0, 22)
WEIGHTS = (0.5, 3.0, 0.0)
BATCH_SIZE, RATE, SMOOTHING, DECAY = 10, 0.1, 0.2, 0.05
DECAYED = replace(optimizers.sgd(RATE), weight_decay=DECAY)


def clients() -> list[BatchedDataset]:
    plan = BatchPlan(epochs=2, batch_size=BATCH_SIZE)
    return make_clients(SIZES, plan=plan, is_learnable=True)


def averaging(optimizer: Optimizer) -> Any:
    return algorithms.build(
        "fedavg",
        optimizer,
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )


def trained(
    optimizer: Optimizer, model: Any, engine: Engine | None = None, **loss: Any
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Returns the weights and the metrics of three rounds."""
    process = learning.build_process(averaging(optimizer), model, engine=engine, **loss)
    state, found = process.initialize(), []
    for _ in range(3):
        output = process.next(state, clients())
        state = output.state
        found.append(output.metrics["client_work"]["train"])
    return state.global_model_weights, found


def expected_params(decay: float, smoothing: float, weights: Any = None) -> NDArray[np.float64]:
    """Returns the weights after the rounds of `trained`, computed step by step in float64."""
    params = np.zeros((SHAPE[0] * SHAPE[1] + 1) * NUM_CLASSES)
    for _ in range(3):
        moved, total = np.zeros_like(params), 0
        for dataset in clients():
            if not len(dataset.client):
                continue
            batches = reference.make_batches(
                dataset.client.images(), dataset.client.labels, list(dataset.order()), BATCH_SIZE
            )
            client = oracle.dense_client(batches, NUM_CLASSES, weights, smoothing)
            local = params.copy()
            for gradient in client.steps:
                local = local - RATE * (gradient(local) + decay * local)
            moved += client.num_examples * (local - params)
            total += client.num_examples
        params = params + moved / total
    return params


@pytest.mark.parametrize(
    ("decay", "smoothing", "weights"),
    [
        (DECAY, 0.0, None),
        (0.0, SMOOTHING, None),
        (DECAY, SMOOTHING, np.array(WEIGHTS)),
    ],
)
def test_rounds_follow_the_formulas_in_float64(
    decay: float, smoothing: float, weights: Any
) -> None:
    model = softmax_regression(SHAPE, NUM_CLASSES)
    optimizer = replace(optimizers.sgd(RATE), weight_decay=decay)
    loss = {"label_smoothing": smoothing, "class_weights": weights}
    found, _ = trained(optimizer, model, ThreadEngine(2), **loss)
    plain, _ = trained(optimizers.sgd(RATE), model, ThreadEngine(2))
    expected = expected_params(decay, smoothing, weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert not np.allclose(found, plain, rtol=0, atol=1e-4)


def test_engines_and_threads_change_no_byte() -> None:
    model = mlp_2nn(SHAPE, NUM_CLASSES)
    expected = trained(DECAYED, model, ThreadEngine(1), label_smoothing=SMOOTHING)
    for engine in (ThreadEngine(2), ThreadEngine(7), ToyEngine()):
        found = trained(DECAYED, model, engine, label_smoothing=SMOOTHING)
        assert found[0].tobytes() == expected[0].tobytes()
        assert found[1] == expected[1]


def test_the_reported_loss_is_that_under_smoothed_labels() -> None:
    """With all parameters 0, classes have equal probabilities, so smoothing changes no loss."""
    model = softmax_regression(SHAPE, NUM_CLASSES)
    still = optimizers.sgd(1e-30)
    _, rounds = trained(still, model, label_smoothing=SMOOTHING)
    assert rounds[0]["loss"] == pytest.approx(np.log(NUM_CLASSES), rel=1e-6)
    far = replace(model, initial_params=model.initial_params + np.float32(0))
    far.initial_params[-NUM_CLASSES:] = (3.0, 0.0, -1.0)  # only the biases
    _, rounds = trained(still, far, label_smoothing=SMOOTHING)
    logs = -np.array([3.0, 0.0, -1.0]) + np.log(np.exp([3.0, 0.0, -1.0]).sum())
    labels = np.concatenate([each.client.labels for each in clients()])
    smoothed = (1 - SMOOTHING) * logs[labels] + SMOOTHING * logs.mean()
    assert rounds[0]["loss"] == pytest.approx(smoothed.mean(), rel=1e-6)


def test_an_optimizer_in_python_decays_as_the_core_does() -> None:
    params = np.array([1.0, -2.0, 0.5])
    moved, _ = DECAYED.update(np.zeros(3), DECAYED.init(params), params)
    np.testing.assert_allclose(moved, -RATE * DECAY * params)
    assert "weight_decay=0.05" in repr(DECAYED)


def test_models_in_python_decay_and_refuse_smoothing() -> None:
    model = softmax_regression(SHAPE, NUM_CLASSES)
    expected, _ = trained(DECAYED, model, ThreadEngine(2))
    found, _ = trained(DECAYED, wrap(Softmax))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
    with pytest.raises(ConfigError, match=r"label smoothing 0\.2: .* computes its own loss"):
        trained(DECAYED, wrap(Softmax), label_smoothing=SMOOTHING)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan"), "a"])
def test_wrong_smoothing(smoothing: Any) -> None:
    model = softmax_regression(SHAPE, NUM_CLASSES)
    with pytest.raises(ConfigError, match="label smoothing"):
        learning.build_process(averaging(DECAYED), model, label_smoothing=smoothing)
