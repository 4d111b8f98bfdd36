"""The cluster engine, with workers in this process, gives the same bytes as the thread engine."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcli import learning, models
from fedcli.cluster import probe
from fedcli.cluster.engine import ClusterEngine
from fedcli.cluster.merging import PartSum, part_size
from fedcli.cluster.messages import NamedClients, Part, PartResult, SharedWork, WorkerSetup
from fedcli.cluster.worker import Worker
from fedcli.core import native
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.client_batches import ClientBatches
from fedcli.datasets.opening import open_splits
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.task import NO_INPUTS
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.training_process import TrainingProcess
from fedcli.models.augmentation import with_input_layers
from fedcli.models.layers import BatchNorm, Dense, MixUp, RandomFlip
from fedcli.models.zoo import softmax_regression
from fedcli.runs import starting
from fedcli.settings import RunConfig
from fedcli.settings.data_source import DataSource

pytestmark = pytest.mark.numeric

NUM_CLIENTS = 60
SOURCE = DataSource("synthetic-digits", data_options={"clients": NUM_CLIENTS})
SPLITS = open_splits(SOURCE)
PLAN = BatchPlan(batch_size=20, max_examples=30)


class NearWorkers:
    """Workers in this process. Arguments and results are pickled, as for a remote worker."""

    def __init__(self, num_workers: int, source: DataSource | None = SOURCE) -> None:
        self._workers = [Worker(WorkerSetup(source, 1)) for _ in range(num_workers)]
        self._num_calls = 0

    @property
    def num_threads(self) -> int:
        return self.num_workers

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def run(
        self, shared: SharedWork, parts: Iterable[Part], cancel: CancelFlag | None
    ) -> Iterator[tuple[Part, PartResult]]:
        shared = pickle.loads(pickle.dumps(shared))
        self._num_calls += 1
        for number, part in enumerate(parts):
            sent = pickle.loads(pickle.dumps(part))
            worker = self._workers[number % self.num_workers]
            yield part, pickle.loads(pickle.dumps(worker.compute(self._num_calls, shared, sent)))


def cohort(num_clients: int, *, repeats: bool = False, data: Any = None) -> ClientBatches:
    data = SPLITS["train"] if data is None else data
    ids = list(data.client_ids[:num_clients])
    if repeats:  # clients occur again in later parts, as in sampling with replacement
        ids = [ids[index * 7 % max(1, num_clients // 2)] for index in range(num_clients)]
    return ClientBatches(data, ids, PLAN, seed=3)


def cluster(num_workers: int = 2, *, ships_data: bool = False) -> ClusterEngine:
    workers = NearWorkers(num_workers, None if ships_data else SOURCE)
    return ClusterEngine(workers, ThreadEngine(1), SPLITS, ships_data=ships_data)


def process(
    engine: Any,
    algorithm: str = "fedavg",
    aggregator: str = "mean",
    options: Any = None,
    model: Any = None,
) -> learning.LearningProcess:
    is_even = algorithm in ("scaffold", "feddyn", "local-only")
    made = algorithms.build(
        algorithm,
        None if algorithm == "fedsgd" else optimizers.sgd(0.1),
        optimizers.sgd(1.0),
        weighting="uniform" if is_even else "num-examples",
        aggregator=aggregators.build(aggregator, options),
    )
    model = softmax_regression((28, 28), 10) if model is None else model
    return learning.build_process(made, model, engine=engine, num_clients=NUM_CLIENTS)


def rounds(process: learning.LearningProcess, clients: Iterable[Any], num_rounds: int = 2) -> Any:
    state = process.initialize()
    for _ in range(num_rounds):
        output = process.next(state, clients)
        state = output.state
    return output


def assert_equal(first: Any, second: Any) -> None:
    weights = [each.state.global_model_weights.tobytes() for each in (first, second)]
    assert weights[0] == weights[1]
    for name in first.client_stats.dtype.names:
        values = [each.client_stats[name].tobytes() for each in (first, second)]
        assert values[0] == values[1], name
    assert repr(first.metrics) == repr(second.metrics)


@pytest.mark.parametrize("num_clients", [0, 1, 3, 8, 9, 16, 37, 60])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_cohort_has_the_bytes_of_threads(num_clients: int, num_workers: int) -> None:
    clients = cohort(num_clients)
    expected = rounds(process(ThreadEngine(2)), clients)
    assert_equal(rounds(process(cluster(num_workers)), clients), expected)


@pytest.mark.parametrize(
    "algorithm", ["fedavg", "fedsgd", "fedprox", "scaffold", "feddyn", "fednova", "mime"]
)
@pytest.mark.parametrize("repeats", [False, True], ids=["once", "repeated"])
def test_any_algorithm_has_the_bytes_of_threads(algorithm: str, repeats: bool) -> None:
    clients = cohort(37, repeats=repeats)
    expected = rounds(process(ThreadEngine(1), algorithm), clients, 3)
    assert_equal(rounds(process(cluster(), algorithm), clients, 3), expected)


@pytest.mark.parametrize(
    ("aggregator", "options"),
    [("median", None), ("norm-bound", {"max_norm": 0.01}), ("tff-robust", None)],
)
def test_any_aggregator_has_the_bytes_of_threads(aggregator: str, options: Any) -> None:
    clients = cohort(21)
    expected = rounds(process(ThreadEngine(1), "fedavg", aggregator, options), clients)
    assert_equal(rounds(process(cluster(), "fedavg", aggregator, options), clients), expected)


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "repeated"])
def test_mixed_batches_have_the_bytes_of_threads(repeats: bool) -> None:
    clients = cohort(21, repeats=repeats)
    model = with_input_layers(
        [RandomFlip(), MixUp(0.5)], softmax_regression((28, 28), 10), (28, 28)
    )
    expected = rounds(process(ThreadEngine(2), model=model), clients)
    assert_equal(rounds(process(cluster(), model=model), clients), expected)
    plain = rounds(process(ThreadEngine(2)), clients)
    assert plain.metrics != expected.metrics


def test_local_models_have_the_bytes_of_threads() -> None:
    clients = cohort(19)
    outputs = [
        rounds(process(engine, "local-only"), clients) for engine in (ThreadEngine(1), cluster())
    ]
    models = [each.state.models_of(list(clients)).tobytes() for each in outputs]
    assert models[0] == models[1]


@pytest.mark.parametrize("repeats", [False, True])
def test_local_batch_norms_have_the_bytes_of_threads(repeats: bool) -> None:
    clients = cohort(19, repeats=repeats)
    model = models.sequential([Dense(5), BatchNorm(0.6), Dense(10)], (28, 28), seed=1)
    outputs = []
    for engine in (ThreadEngine(1), cluster()):
        plain = process(engine, model=model)
        assert isinstance(plain, TrainingProcess)
        algorithm = replace(plain.algorithm, local_norms="local-layers")
        outputs.append(rounds(learning.build_process(algorithm, model, engine=engine), clients))
    assert_equal(*outputs)
    found = [each.state.models_of(list(clients)) for each in outputs]
    assert found[0].tobytes() == found[1].tobytes()
    assert len(np.unique(found[0], axis=0)) > 5


def test_clients_can_be_sent_with_their_examples() -> None:
    clients = cohort(21)
    expected = rounds(process(ThreadEngine(1)), clients)
    assert_equal(rounds(process(cluster(ships_data=True)), clients), expected)


def test_the_driver_reads_no_client_of_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cluster()
    read: list[str] = []
    train = SPLITS["train"]
    original = type(train).client

    def noting(self: Any, client_id: str) -> Any:
        if self is train:
            read.append(client_id)
        return original(self, client_id)

    monkeypatch.setattr(type(train), "client", noting)
    for algorithm in ("fedavg", "scaffold", "fednova"):
        rounds(process(engine, algorithm), cohort(21))
    assert read == []


def test_evaluation_and_prediction_have_the_bytes_of_threads() -> None:
    model = softmax_regression((28, 28), 10)
    clients = cohort(37, data=SPLITS["test"])
    near, far = ThreadEngine(1), cluster()
    own = np.random.default_rng(0).normal(size=(37, model.layout.num_params)).astype(np.float32)

    def starts() -> Any:
        rows = iter(own)
        return lambda pieces: np.stack([next(rows) for _ in pieces])

    params = model.initial_params
    for given_starts in (False, True):
        found = [
            engine.evaluate(
                model.layout, params, clients, starts=starts() if given_starts else None
            )
            for engine in (near, far)
        ]
        for name in native.STATS.names or ():
            assert found[0][name].tobytes() == found[1][name].tobytes()
        scores = [
            engine.predict(model.layout, params, clients, starts=starts() if given_starts else None)
            for engine in (near, far)
        ]
        assert scores[0].values.tobytes() == scores[1].values.tobytes()


def test_the_driver_computes_other_clients() -> None:
    engine = cluster()
    clients = tuple(cohort(9))
    assert_equal(rounds(process(engine), clients), rounds(process(ThreadEngine(1)), clients))


def test_a_cancelled_call_does_not_start_and_the_next_one_does() -> None:
    worker = Worker(WorkerSetup(SOURCE, 1))
    model = softmax_regression((28, 28), 10)
    shared = SharedWork(model.layout, params=model.initial_params)
    client_ids = tuple(SPLITS["train"].client_ids[:3])
    part = Part(NamedClients("train", client_ids, PLAN, seed=3), (), NO_INPUTS)
    worker.cancel(1)
    with pytest.raises(Cancelled):
        worker.compute(1, shared, part)
    assert len(worker.compute(2, shared, part).stats) == 3
    worker.cancel(1)  # call 1 has ended, so this must not cancel anything
    assert len(worker.compute(2, shared, part).stats) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200), st.integers(1, 5), st.sampled_from([8, 16, 64, 4096]), st.integers(1, 40)
)
def test_parts_add_up_to_the_bytes_of_one_sum(
    num_clients: int, num_workers: int, most: int, num_values: int
) -> None:
    generator = np.random.default_rng(num_clients)
    vectors = generator.normal(size=(num_clients, num_values)).astype(np.float32)
    weights = generator.integers(1, 300, num_clients).astype(np.float64)
    whole = native.WeightedSum(num_values)
    whole.add(list(vectors), weights.tolist())
    size = part_size(num_clients, num_workers, most)
    total = PartSum(num_values)
    for first in range(0, num_clients, size):
        part = native.WeightedSum(num_values)
        part.add(list(vectors[first : first + size]), weights[first : first + size].tolist())
        count = len(vectors[first : first + size])
        total.add(part.total()[0], is_whole=count == size)
    assert total.total().tobytes() == whole.total()[0].tobytes()


def test_parts_are_whole_blocks_and_there_are_two_per_worker() -> None:
    for num_clients in range(400):
        for num_workers in (1, 2, 7):
            size = part_size(num_clients, num_workers, 64)
            assert size in (8, 16, 32, 64)
            num_parts = -(-num_clients // size)
            assert size == 8 or num_parts >= 2 * num_workers


def test_the_probe_is_constant_and_detects_other_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = probe.digest()
    assert probe.digest() == first
    original = ThreadEngine.train

    def nudged(self: Any, *args: Any, **more: Any) -> Any:
        deltas = original(self, *args, **more)
        deltas.delta_sum[0] = np.nextafter(deltas.delta_sum[0], 1.0)
        return deltas

    monkeypatch.setattr(ThreadEngine, "train", nudged)
    assert probe.digest() != first


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("address", ["local", "far:6379"])
def test_a_missing_ray_is_reported_before_any_work(tmp_path: Path, address: str) -> None:
    config = RunConfig(engine="ray", engine_options={"address": address})
    with pytest.raises(ConfigError, match=r"Ray is not installed: pip install 'fedcli\[ray\]'"):
        starting.start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
