"""Weights of classes in the training loss, with each algorithm, engine and kind of model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import ArraySpec, BatchedDataset, from_arrays
from fedcli.errors import ConfigError, ModelError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.own.contract import BatchOutput
from fedcli.models.own.loading import wrap
from fedcli.models.zoo import mlp_2nn, softmax_regression
from fedcli.settings import tables
from tests.kit import algorithm_oracle as oracle
from tests.kit import reference
from tests.kit.clients import NUM_CLASSES, SHAPE, make_clients
from tests.kit.own_softmax import Softmax
from tests.kit.reference import Vector
from tests.kit.toy_engine import ToyEngine

pytestmark = pytest.mark.numeric

SIZES = (1, 7, 30, 0, 22, 12, 9, 16, 5)
WEIGHTS = (0.5, 3.0, 0.0)
BATCH_SIZE = 10
RATE = 0.1


class Weighing(Softmax):
    """`Softmax` whose spec declares weights of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.input_spec["sample_weight"] = ArraySpec((None,), "float32")
        self.seen: list[bool] = []

    def forward_pass(self, batch: Mapping[str, Any], training: bool = True) -> BatchOutput:
        self.seen.append("sample_weight" in batch)
        return self.scored(batch, batch.get("sample_weight", np.ones(len(batch["y"]))))


def clients() -> list[BatchedDataset]:
    plan = BatchPlan(epochs=2, batch_size=BATCH_SIZE)
    return make_clients(SIZES, plan=plan, is_learnable=True)


def slow_client(dataset: BatchedDataset) -> oracle.Client:
    client = dataset.client
    batches = reference.make_batches(
        client.images(), client.labels, list(dataset.order()), BATCH_SIZE
    )
    return oracle.dense_client(batches, NUM_CLASSES, np.array(WEIGHTS))


def build(name: str, **options: Any) -> Any:
    entry = tables.ALGORITHMS[name]
    server = optimizers.build(
        entry.server_optimizer or "sgd", entry.server_lr, entry.server_options
    )
    return algorithms.build(
        name,
        optimizers.sgd(RATE) if entry.has_local_steps else None,
        server,
        weighting=entry.weightings[0],
        aggregator=aggregators.build("mean"),
        options=options,
    )


def trained(
    algorithm: Any, model: Any, engine: Engine | None = None, weights: Any = WEIGHTS
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    process = learning.build_process(
        algorithm, model, engine=engine, num_clients=len(SIZES), class_weights=weights
    )
    state, found, cohort = process.initialize(), [], tuple(clients())
    for _ in range(3):
        output = process.next(state, cohort)
        state = output.state
        found.append(output.metrics["client_work"]["train"])
    if state.has_own_models:
        return np.concatenate([state.weights_for(each.client.client_id) for each in cohort]), found
    return state.global_model_weights, found


def softmax() -> Any:
    return softmax_regression(SHAPE, NUM_CLASSES)


def fedavg_round(params: Vector, cohort: Sequence[oracle.Client]) -> Vector:
    moved, total = np.zeros_like(params), 0
    for client in cohort:
        local = params.copy()
        for step in client.steps:
            local = local - RATE * step(local)
        moved += client.num_examples * (local - params)
        total += client.num_examples
    return params + moved / total


@pytest.mark.parametrize("name", ["fedavg", "fedsgd", "scaffold", "feddyn", "mime"])
def test_rounds_follow_the_formulas_in_float64(name: str) -> None:
    cohort = {each.client.client_id: slow_client(each) for each in clients() if len(each.client)}
    several = list(cohort.values())
    scaffold, feddyn = oracle.Scaffold(RATE, len(SIZES)), oracle.FedDyn(RATE, 0.3, len(SIZES))
    mime, sgd = oracle.Mime(reference.Sgd(RATE)), tables.ALGORITHMS["fedsgd"].server_lr

    def sgd_round(params: Vector) -> Vector:
        total = sum(each.num_examples for each in several)
        fulls = [each.num_examples * each.full(params) for each in several if each.full]
        return params - sgd * np.sum(fulls, axis=0) / total

    rounds: dict[str, Callable[[Vector], Vector]] = {
        "fedavg": lambda params: fedavg_round(params, several),
        "fedsgd": sgd_round,
        "scaffold": lambda params: scaffold.round(params, cohort),
        "feddyn": lambda params: feddyn.round(params, cohort),
        "mime": lambda params: mime.round(params, several),
    }
    params = np.zeros((SHAPE[0] * SHAPE[1] + 1) * NUM_CLASSES)
    for _ in range(3):
        params = rounds[name](params)
    algorithm = build(name, **({"alpha": 0.3} if name == "feddyn" else {}))
    found, _ = trained(algorithm, softmax(), ThreadEngine(2))
    np.testing.assert_allclose(found, params, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in tables.ALGORITHMS if name != "mime"])
@pytest.mark.parametrize("model", [Softmax, Weighing])
def test_models_in_python_train_as_the_core_does(name: str, model: Any) -> None:
    algorithm = build(name)
    expected, core = trained(algorithm, softmax(), ThreadEngine(2))
    found, own = trained(algorithm, wrap(model))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
    for one, other in zip(own, core, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    plain, _ = trained(algorithm, softmax(), ThreadEngine(2), weights=None)
    assert not np.allclose(expected, plain, atol=1e-4)


def test_other_engines_are_given_the_weights_and_threads_change_no_byte() -> None:
    model, algorithm = mlp_2nn(SHAPE, NUM_CLASSES), build("fedavg")
    expected = trained(algorithm, model, ThreadEngine(1))
    for engine in (ThreadEngine(3), ToyEngine()):
        found = trained(algorithm, model, engine)
        assert found[0].tobytes() == expected[0].tobytes()
        assert found[1] == expected[1]


def test_the_loss_that_is_reported_is_the_sum_of_weighted_losses_over_the_examples() -> None:
    """With all parameters 0, the unweighted loss of each example is log 3."""
    labels = np.array([0, 1, 1, 2, 0, 1], np.int32)
    pixels = np.ones((6, *SHAPE), np.float32)
    data = [from_arrays(pixels, labels).client.preprocess(batch_size=4)]
    expected = np.array(WEIGHTS)[labels].sum() * np.log(3) / 6
    still = algorithms.build(
        "fedavg",
        optimizers.sgd(1e-30),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )
    for model in (softmax(), wrap(Softmax), wrap(Weighing)):
        process = learning.build_process(still, model, class_weights=WEIGHTS)
        output = process.next(process.initialize(), data)
        reported = output.metrics["client_work"]["train"]
        assert reported["loss"] == pytest.approx(expected, rel=1e-6)
        assert reported["num_examples"] == 6
        evaluator = learning.build_fed_eval(model)
        evaluated = evaluator.next(evaluator.initialize(), data).metrics["client_work"]["eval"]
        assert evaluated["current_round_metrics"]["loss"] == pytest.approx(np.log(3), rel=1e-6)


def test_weights_of_1_change_nothing_but_the_last_digit_of_losses() -> None:
    ones = trained(build("fedavg"), softmax(), ThreadEngine(2), weights=[1, 1, 1])
    none = trained(build("fedavg"), softmax(), ThreadEngine(2), weights=None)
    assert ones[0].tobytes() == none[0].tobytes()
    for one, other in zip(ones[1], none[1], strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_a_model_with_example_weights_gets_them_only_in_training() -> None:
    model = Weighing()
    wrapped = wrap(model)
    assert True in model.seen  # `wrap` tries the model, and then passes weights
    model.seen.clear()
    trained(build("fedavg"), wrapped)
    assert set(model.seen) == {True}
    model.seen.clear()
    trained(build("fedavg"), wrapped, weights=None)
    evaluator = learning.build_fed_eval(wrapped)
    evaluator.next(evaluator.initialize(), clients())
    assert set(model.seen) == {False}


def test_a_spec_of_weights_of_another_type_is_refused() -> None:
    class Wrong(Weighing):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec["sample_weight"] = ArraySpec((None, 1), "float32")

    with pytest.raises(ModelError, match=r"test_class_weights\.py:\d+: input_spec: has sample_wei"):
        wrap(Wrong)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"class_weights have shape \[2\], but the model has 3 classes"),
        ([[1, 2, 3]], r"shape \[1, 3\]"),
        ([1, -1, 2], "negative or non-finite"),
        ([1, float("nan"), 2], "negative or non-finite"),
        ([1, 1e39, 2], "negative or non-finite"),
        (["a", 1, 2], "class_weights are not numbers"),
    ],
)
def test_bad_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learning.build_process(build("fedavg"), softmax(), class_weights=weights)


def test_a_task_with_weights_can_be_pickled() -> None:
    from fedcli.learning.engines.task import ClientTask

    weights = np.array(WEIGHTS, np.float32)
    task = ClientTask((), np.zeros(3, np.float32), 0, "uniform", class_weights=weights)
    assert pickle.loads(pickle.dumps(task)).class_weights.tolist() == list(WEIGHTS)
