"""Personalization evaluation against fine-tuning each client by itself in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcli import datasets
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.errors import ConfigError, DataError
from fedcli.evaluation.personalization import BASELINE, FineTuning, evaluate_personalization
from fedcli.learning import optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from tests.kit import reference

pytestmark = pytest.mark.numeric

MODEL = softmax_regression()
WEIGHTS = MODEL.initial_params + np.float32(0.001) * np.arange(7850, dtype=np.float32).reshape(
    -1
) % np.float32(0.01)
PLAN = BatchPlan(epochs=2, batch_size=20)
STRATEGIES = {
    "two epochs": FineTuning(optimizers.sgd(0.02), PLAN),
    "momentum": FineTuning(optimizers.sgd(0.01, momentum=0.9), BatchPlan(batch_size=10)),
}


def _splits(num_clients: int = 11) -> tuple[datasets.ClientData, datasets.ClientData]:
    train, test = datasets.load(data_options={"clients": num_clients})
    assert test is not None
    return train, test


def _batches(client: datasets.ClientData, name: str, plan: BatchPlan) -> list[reference.Batch]:
    dataset = client.client(name)
    order = list(range(len(dataset))) * plan.epochs
    return reference.make_batches(dataset.images(), dataset.labels, order, plan.batch_size)


def test_each_client_is_fine_tuned_from_the_same_weights() -> None:
    train, test = _splits()
    found = evaluate_personalization(MODEL, WEIGHTS, train, test, STRATEGIES)
    assert list(found.client_ids) == list(train.client_ids)
    assert list(found.metrics) == [BASELINE, "two epochs", "momentum"]
    slow = {"two epochs": reference.Sgd(0.02), "momentum": reference.Sgd(0.01, 0.9)}
    start = WEIGHTS.astype(np.float64)
    for position, name in enumerate(found.client_ids):
        tested = [_batches(test, name, BatchPlan())]
        for strategy, values in found.metrics.items():
            weights = start
            if strategy != BASELINE:
                batches = _batches(train, name, STRATEGIES[strategy].plan)
                delta, _ = reference.train_client(start, batches, slow[strategy], 10)
                weights = start + delta
            stats = reference.evaluate(weights, tested, 10)
            assert values["num_examples"][position] == stats.num_examples
            loss = stats.loss_sum / stats.num_examples
            assert values["loss"][position] == pytest.approx(loss, rel=1e-4)
            accuracy = stats.num_correct / stats.num_examples
            assert values["sparse_categorical_accuracy"][position] == pytest.approx(accuracy)
    tuned, baseline = (found.metrics[each]["loss"] for each in ("two epochs", BASELINE))
    assert np.mean(tuned) < np.mean(baseline)


def test_threads_and_other_clients_change_nothing() -> None:
    train, test = _splits()
    whole = evaluate_personalization(
        MODEL, WEIGHTS, train, test, STRATEGIES, engine=ThreadEngine(1)
    )
    for num_threads in (2, 7):
        engine = ThreadEngine(num_threads)
        again = evaluate_personalization(MODEL, WEIGHTS, train, test, STRATEGIES, engine=engine)
        assert again.metrics == whole.metrics
    some = [train.client_ids[index] for index in (9, 2)]
    few = evaluate_personalization(MODEL, WEIGHTS, train, test, STRATEGIES, client_ids=some)
    assert few.client_ids == tuple(sorted(some))
    for strategy, values in few.metrics.items():
        assert values["loss"] == [whole.metrics[strategy]["loss"][index] for index in (2, 9)]


def test_the_seed_draws_among_too_many() -> None:
    train, test = _splits(30)
    drawn = [
        evaluate_personalization(MODEL, WEIGHTS, train, test, {}, seed=seed, max_num_clients=5)
        for seed in (0, 0, 1)
    ]
    assert drawn[0].client_ids == drawn[1].client_ids != drawn[2].client_ids
    assert len(set(drawn[0].client_ids)) == 5
    assert len(drawn[0].metrics[BASELINE]["loss"]) == 5


def test_a_model_that_is_lost_is_never_right() -> None:
    train, test = _splits(2)
    strategies = {"wild": FineTuning(optimizers.sgd(1e38), PLAN)}
    found = evaluate_personalization(MODEL, WEIGHTS, train, test, strategies).metrics
    assert all(map(math.isnan, found["wild"]["loss"]))
    assert found["wild"]["sparse_categorical_accuracy"] == [0.0, 0.0]
    assert found["wild"]["num_examples"] == found[BASELINE]["num_examples"]


def test_what_cannot_be_evaluated_is_refused() -> None:
    train, test = _splits(2)
    tuning = STRATEGIES["two epochs"]
    with pytest.raises(ConfigError, match="the strategy name baseline_metrics is reserved"):
        evaluate_personalization(MODEL, WEIGHTS, train, test, {BASELINE: tuning})
    with pytest.raises(ConfigError, match="max_num_clients = 0: choose a whole number from 1"):
        evaluate_personalization(MODEL, WEIGHTS, train, test, {}, max_num_clients=0)
    with pytest.raises(ConfigError, match="has no clients in both train and test"):
        evaluate_personalization(MODEL, WEIGHTS, train, test, {}, client_ids=[])
    with pytest.raises(DataError, match="no client 'nobody'"):
        evaluate_personalization(MODEL, WEIGHTS, train, test, {}, client_ids=["nobody"])
