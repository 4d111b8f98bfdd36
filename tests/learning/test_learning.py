from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fedcli
from fedcli import learning
from fedcli.core import _core
from fedcli.core.native import CancelFlag, Cancelled, FrozenSlots
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError, DataError, ModelError, PartError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.models.zoo import mlp_2nn, softmax_regression
from fedcli.settings import tables
from tests.kit import reference
from tests.kit.clients import NUM_CLASSES, SHAPE, Arrays, draw

pytestmark = pytest.mark.numeric

# Two clients have one example, one has exactly one batch, most end with a partial batch.
SIZES = (1, 7, 40, 23, 1, 20, 33, 12, 50, 9, 26)


def _model() -> Model:
    return softmax_regression(SHAPE, NUM_CLASSES)


def _client(size: int, seed: int) -> Arrays:
    return draw(size, seed, is_learnable=True)


def _cohort(sizes: Sequence[int] = SIZES) -> list[Arrays]:
    return [_client(size, seed) for seed, size in enumerate(sizes)]


def _in_order(pair: Arrays, batch_size: int = 20) -> list[reference.Batch]:
    return reference.make_batches(*pair, range(len(pair[1])), batch_size)


def _assert_same_params(state: learning.ServerState, expected: NDArray[np.float64]) -> None:
    # The rounding errors of float32.
    np.testing.assert_allclose(state.global_model_weights, expected, rtol=1e-4, atol=1e-6)


def _assert_same_metrics(found: dict[str, Any], expected: reference.Stats) -> None:
    assert found["num_examples"] == expected.num_examples
    assert found["num_batches"] == expected.num_batches
    num_correct = found["sparse_categorical_accuracy"] * found["num_examples"]
    assert num_correct == pytest.approx(expected.num_correct, abs=1e-6)
    # Each float32 loss has an error of a few units in the last place.
    assert found["loss"] == pytest.approx(expected.loss_sum / expected.num_examples, rel=1e-5)


# ---- Whole rounds against the reference --------------------------------------------------------


@pytest.mark.parametrize("is_weighted", [True, False], ids=["weighted", "uniform"])
@pytest.mark.parametrize(
    ("client", "server"),
    [
        ({"learning_rate": 0.1}, {"learning_rate": 1.0}),
        (
            {"learning_rate": 0.05, "momentum": 0.9},
            {"learning_rate": 0.7, "momentum": 0.9},
        ),
        (
            {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
            {"learning_rate": 0.5, "momentum": 0.9, "nesterov": True},
        ),
    ],
    ids=["sgd", "momentum", "nesterov"],
)
def test_rounds_follow_the_reference(
    client: dict[str, Any], server: dict[str, Any], is_weighted: bool
) -> None:
    build = learning.build_weighted_fed_avg if is_weighted else learning.build_unweighted_fed_avg
    process = build(_model(), optimizers.sgd(**client), optimizers.sgd(**server))
    cohort = _cohort()
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    velocity = np.zeros_like(params)
    for round_num in range(1, 6):
        result = process.next(state, cohort)
        state = result.state
        expected = reference.fedavg_round(
            params,
            velocity,
            [_in_order(pair) for pair in cohort],
            num_classes=NUM_CLASSES,
            client=reference.Sgd(**client),
            server=reference.Sgd(**server),
            is_weighted=is_weighted,
        )
        params, velocity = expected.params, expected.server_state
        assert state.round_num == round_num
        _assert_same_params(state, params)
        _assert_same_metrics(result.metrics["client_work"]["train"], expected.stats)
        if server.get("momentum"):
            np.testing.assert_allclose(
                state.finalizer["accumulator"], velocity, rtol=1e-4, atol=1e-6
            )


def test_shuffled_epochs_follow_the_order_of_each_round_and_occurrence() -> None:
    pairs = _cohort([17, 40, 5])
    datasets = [
        from_arrays(*pair, client_id=f"client {index}").client.preprocess(
            epochs=3, shuffle_buffer=10, batch_size=8, seed=4
        )
        for index, pair in enumerate(pairs)
    ]
    # The second client is in the cohort twice: each copy has its own order of examples.
    chosen = [(0, 0), (1, 0), (1, 1), (2, 0)]
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    state, params = process.initialize(), np.zeros(63)
    for round_num in range(3):
        result = process.next(state, [datasets[index] for index, _ in chosen])
        batches = [
            reference.make_batches(
                *pairs[index], list(datasets[index].order(round_num, occurrence)), 8
            )
            for index, occurrence in chosen
        ]
        expected = reference.fedavg_round(
            params,
            np.zeros_like(params),
            batches,
            num_classes=NUM_CLASSES,
            client=reference.Sgd(0.1),
            server=reference.Sgd(1.0),
        )
        state, params = result.state, expected.params
        _assert_same_params(state, params)
        _assert_same_metrics(result.metrics["client_work"]["train"], expected.stats)


def _algorithm(name: str, client: optimizers.Optimizer | None, **options: Any) -> Algorithm:
    entry = tables.ALGORITHMS[name]
    server = optimizers.build(entry.server_optimizer or "sgd", 1.0, entry.server_options)
    return algorithms.build(
        name,
        client,
        server,
        weighting=entry.weightings[0],
        aggregator=aggregators.build("mean"),
        options=options,
    )


def _letter(size: int, seed: int) -> Arrays:
    """Returns a client whose images differ in few pixels: SGD and FedProx train a narrow layer."""
    random = np.random.default_rng(seed)
    pixels = np.ones((size, 16, 16), np.float32)
    pixels[:, 6:10, 4:12] = random.random((size, 4, 8), dtype=np.float32)
    return pixels, random.integers(0, NUM_CLASSES, size, dtype=np.int32)


CLIENTS: dict[str, tuple[optimizers.Optimizer, reference.Optimizer]] = {
    "sgd": (optimizers.sgd(0.1, momentum=0.9), reference.Sgd(0.1, momentum=0.9)),
    "adam": (optimizers.adam(0.01), reference.Adam(0.01)),
    "adamw": (optimizers.adamw(0.01, weight_decay=0.5), reference.AdamW(0.01, weight_decay=0.5)),
    "adagrad": (optimizers.adagrad(0.03), reference.Adagrad(0.03)),
    "yogi": (optimizers.yogi(0.01), reference.Yogi(0.01)),
    "rmsprop": (optimizers.rmsprop(0.01), reference.RmsProp(0.01)),
    "adafactor": (
        optimizers.adafactor(0.05),
        reference.Adafactor(0.05, ((math.prod(SHAPE), NUM_CLASSES), (NUM_CLASSES,))),
    ),
}


@pytest.mark.parametrize("name", tables.OPTIMIZERS)
def test_every_client_optimizer_follows_the_reference(name: str) -> None:
    client, slow = CLIENTS[name]
    cohort = _cohort((40, 1, 33, 90))
    process = learning.build_process(_algorithm("fedavg", client), _model())
    state = process.initialize()
    params = np.random.default_rng(8).normal(size=len(state.global_model_weights))
    params = params.astype(np.float32).astype(np.float64)
    state = replace(state, global_model_weights=params.astype(np.float32))
    for _ in range(5):
        before, state = params, process.next(state, cohort).state
        params = reference.fedavg_round(
            params,
            np.zeros_like(params),
            [_in_order(pair) for pair in cohort],
            num_classes=NUM_CLASSES,
            client=slow,
            server=reference.Sgd(1.0),
        ).params
        np.testing.assert_allclose(state.global_model_weights, params, rtol=1e-5, atol=1e-5)
        assert np.abs(params - before).max() > 1e-2


@pytest.mark.parametrize(
    ("algorithm", "client", "server", "strength"),
    [
        (
            _algorithm("fedavg", optimizers.adam(0.01)),
            reference.Adam(0.01),
            reference.Sgd(1.0),
            0.0,
        ),
        (
            replace(
                _algorithm("fedavg", optimizers.sgd(0.002)),
                server_optimizer=optimizers.yogi(0.03, epsilon=0.01),
            ),
            reference.Sgd(0.002),
            reference.Yogi(0.03, epsilon=0.01),
            0.0,
        ),
        (
            _algorithm("fedprox", optimizers.sgd(0.002), proximal_strength=30.0),
            reference.Sgd(0.002),
            reference.Sgd(1.0),
            30.0,
        ),
        (
            _algorithm("fedprox", optimizers.sgd(0.002, momentum=0.5), proximal_strength=30.0),
            reference.Sgd(0.002, momentum=0.5),
            reference.Sgd(1.0),
            30.0,
        ),
    ],
    ids=["client-adam", "server-yogi", "fedprox", "fedprox-momentum"],
)
def test_other_optimizers_and_fedprox_follow_the_reference(
    algorithm: Algorithm,
    client: reference.Optimizer,
    server: reference.Optimizer,
    strength: float,
) -> None:
    cohort = [_letter(size, seed) for seed, size in enumerate((70, 1, 45, 20))]
    process = learning.build_process(algorithm, softmax_regression((16, 16), NUM_CLASSES))
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    server_state = server.start(params)
    for _ in range(4):
        result = process.next(state, cohort)
        state = result.state
        expected = reference.fedavg_round(
            params,
            server_state,
            [_in_order(pair) for pair in cohort],
            num_classes=NUM_CLASSES,
            client=client,
            server=server,
            proximal_strength=strength,
        )
        params, server_state = expected.params, expected.server_state
        _assert_same_params(state, params)
        _assert_same_metrics(result.metrics["client_work"]["train"], expected.stats)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_2nn_follows_the_reference(momentum: float) -> None:
    cohort = [_letter(size, seed) for seed, size in enumerate((70, 1, 45, 20))]
    algorithm = _algorithm("fedavg", optimizers.sgd(0.01, momentum=momentum))
    process = learning.build_process(algorithm, mlp_2nn((16, 16), NUM_CLASSES, seed=3))
    state = process.initialize()
    params, server_state = state.global_model_weights.astype(np.float64), np.zeros(1)
    for _ in range(3):
        result = process.next(state, cohort)
        state = result.state
        expected = reference.fedavg_round(
            params,
            server_state,
            [_in_order(pair) for pair in cohort],
            num_classes=NUM_CLASSES,
            client=reference.Sgd(0.01, momentum=momentum),
            server=reference.Sgd(1.0),
            hidden=(200, 200),
        )
        params, server_state = expected.params, expected.server_state
        _assert_same_params(state, params)
        _assert_same_metrics(result.metrics["client_work"]["train"], expected.stats)


# ---- FedSGD and Mime Lite ------------------------------------------------------------------------


def _mean_gradient(params: NDArray[np.float64], pair: Arrays) -> NDArray[np.float64]:
    """Returns the mean gradient of a client's loss over all its examples."""
    (batch,) = _in_order(pair, len(pair[1]))
    return reference.score(params, batch, NUM_CLASSES)[1]


@pytest.mark.parametrize("epochs", [1, 3])
def test_fed_sgd_sends_the_gradient_at_the_global_model(epochs: int) -> None:
    cohort = _cohort()
    process = learning.build_fed_sgd(_model(), optimizers.sgd(0.5))
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    for _ in range(4):
        clients = [from_arrays(*pair).client.preprocess(epochs=epochs) for pair in cohort]
        result = process.next(state, clients)
        state = result.state
        stats = reference.evaluate(params, [_in_order(pair) for pair in cohort], NUM_CLASSES)
        online = result.metrics["client_work"]["train"]
        assert online["num_examples"] == epochs * stats.num_examples
        assert online["loss"] == pytest.approx(stats.loss_sum / stats.num_examples, rel=1e-5)
        gradients = [len(pair[1]) * _mean_gradient(params, pair) for pair in cohort]
        params = params - 0.5 * np.sum(gradients, axis=0) / sum(SIZES)
        _assert_same_params(state, params)


def test_one_full_batch_of_fedavg_is_fed_sgd_with_the_product_of_rates() -> None:
    cohort = _cohort()
    whole = [from_arrays(*pair).client.preprocess(batch_size=1000) for pair in cohort]
    average = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.5), optimizers.sgd(0.4))
    gradient = learning.build_fed_sgd(_model(), optimizers.sgd(0.2))
    first, second = average.initialize(), gradient.initialize()
    for _ in range(3):
        first, second = average.next(first, whole).state, gradient.next(second, cohort).state
    np.testing.assert_allclose(
        second.global_model_weights, first.global_model_weights, rtol=1e-5, atol=1e-7
    )


def test_fed_sgd_has_weight_0_for_a_client_without_examples() -> None:
    pair = _client(30, 1)
    process = learning.build_fed_sgd(_model())
    alone = process.next(process.initialize(), [pair])
    empty = (pair[0][:0], pair[1][:0])
    together = process.next(process.initialize(), [empty, pair])
    assert together.num_empty_clients == 1
    assert together.metrics["client_work"]["train"]["num_non_finite_clients"] == 0
    first, second = (each.state.global_model_weights.tobytes() for each in (alone, together))
    assert first == second


BASES: list[tuple[Any, reference.Optimizer]] = [
    (optimizers.sgd(0.1, momentum=0.9), reference.Sgd(0.1, momentum=0.9)),
    (optimizers.sgd(0.1, momentum=0.9, nesterov=True), reference.Sgd(0.1, 0.9, nesterov=True)),
    (optimizers.adam(0.01), reference.Adam(0.01)),
    (optimizers.yogi(0.01), reference.Yogi(0.01)),
]


@pytest.mark.parametrize(("base", "slow"), BASES, ids=["momentum", "nesterov", "adam", "yogi"])
def test_mime_lite_steps_from_the_servers_state(base: Any, slow: reference.Optimizer) -> None:
    cohort = _cohort((40, 1, 23, 20))
    process = learning.build_mime_lite_with_optimizer(_model(), base)
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    frozen = slow.start(params)
    for _ in range(5):
        result = process.next(state, cohort)
        state = result.state
        total, gradient, num_examples = np.zeros_like(params), np.zeros_like(params), 0
        for pair in cohort:
            local = params.copy()
            for batch in _in_order(pair):
                local = slow.step(local, frozen, reference.score(local, batch, NUM_CLASSES)[1])[0]
            total += len(pair[1]) * (local - params)
            gradient += len(pair[1]) * _mean_gradient(params, pair)
            num_examples += len(pair[1])
        frozen = slow.step(np.zeros_like(params), frozen, gradient / num_examples)[1]
        params = params + total / num_examples
        # Adam's division enlarges the rounding errors of small gradients.
        np.testing.assert_allclose(state.global_model_weights, params, rtol=2e-3, atol=2e-5)
    assert result.metrics["client_work"]["train"]["num_examples"] == num_examples


@pytest.mark.parametrize("strength", [0.0, 30.0], ids=["fedavg", "fedprox"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("clip_norm", [1.5, 4.0, 1e6])
def test_clipping_is_of_the_loss_s_gradient_over_all_tensors(
    clip_norm: float, momentum: float, strength: float
) -> None:
    """The clients have many constant pixels, so their first layer is computed with fewer inputs."""
    client = optimizers.clip_gradients(optimizers.sgd(0.01, momentum=momentum), clip_norm)
    options = {"proximal_strength": strength} if strength else {}
    algorithm = _algorithm("fedprox" if strength else "fedavg", client, **options)
    process = learning.build_process(algorithm, softmax_regression((16, 16), NUM_CLASSES))
    cohort = [_letter(size, seed) for seed, size in enumerate((70, 1, 45, 20))]
    batches = [_in_order(pair) for pair in cohort]
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    norms = [
        np.linalg.norm(reference.score(params, batch, NUM_CLASSES)[1])
        for client_batches in batches
        for batch in client_batches
    ]
    assert min(norms) < 4.0 < max(norms) < 1e6
    for _ in range(3):
        state = process.next(state, cohort).state
        expected = reference.fedavg_round(
            params,
            np.zeros_like(params),
            batches,
            num_classes=NUM_CLASSES,
            client=reference.Sgd(0.01, momentum),
            server=reference.Sgd(1.0),
            proximal_strength=strength,
            clip_norm=clip_norm,
        )
        params = expected.params
        _assert_same_params(state, params)


def test_a_norm_that_clips_nothing_changes_no_byte_of_momentum() -> None:
    plain = optimizers.sgd(0.05, momentum=0.9)
    states = []
    for client in (plain, optimizers.clip_gradients(plain, 1e6)):
        process = learning.build_weighted_fed_avg(_model(), client)
        states.append(process.next(process.initialize(), _cohort()).state)
    assert states[0].global_model_weights.tobytes() == states[1].global_model_weights.tobytes()


def test_schedules_count_the_rounds_of_both_sides() -> None:
    client = optimizers.schedule_learning_rate(
        optimizers.sgd(0.1, momentum=0.9), "linear-warmup", {"warmup_rounds": 4}
    )
    server = optimizers.schedule_learning_rate(
        optimizers.sgd(2.0, momentum=0.5), "exponential", {"decay_rounds": 2, "decay_factor": 0.25}
    )
    process = learning.build_weighted_fed_avg(_model(), client, server)
    cohort = _cohort()
    state = process.initialize()
    params = velocity = np.zeros(len(state.global_model_weights))
    rates = [(0.025, 2.0), (0.05, 1.0), (0.075, 0.5), (0.1, 0.25), (0.1, 0.125)]
    for client_rate, server_rate in rates:
        state = process.next(state, cohort).state
        expected = reference.fedavg_round(
            params,
            velocity,
            [_in_order(pair) for pair in cohort],
            num_classes=NUM_CLASSES,
            client=reference.Sgd(client_rate, 0.9),
            server=reference.Sgd(server_rate, 0.5),
        )
        params, velocity = expected.params, expected.server_state
        _assert_same_params(state, params)


@pytest.mark.parametrize(
    "name",
    # In the other algorithms, the server's state or FedDyn's h moves the model even if the deltas
    # are 0, or no common model is trained.
    [
        name
        for name, entry in tables.ALGORITHMS.items()
        if entry.has_local_steps and entry.server_optimizer is None and name != "feddyn"
    ],
)
def test_every_algorithm_with_local_steps_follows_the_client_s_schedule(name: str) -> None:
    """The rate is 0 after two rounds, so the model does not change any more."""
    steady = optimizers.sgd(0.1, momentum=0.0 if name == "scaffold" else 0.9)
    stops = optimizers.schedule_learning_rate(steady, "step", {"boundaries": 2, "factors": 0.0})
    process = learning.build_process(_algorithm(name, stops), _model(), num_clients=len(SIZES))
    control = learning.build_process(_algorithm(name, steady), _model(), num_clients=len(SIZES))
    state, steady_state = process.initialize(), control.initialize()
    for round_num in range(4):
        before = state.global_model_weights.tobytes()
        state = process.next(state, _cohort()).state
        steady_state = control.next(steady_state, _cohort()).state
        same = state.global_model_weights.tobytes() == steady_state.global_model_weights.tobytes()
        assert same == (round_num < 2)
        assert (state.global_model_weights.tobytes() == before) == (round_num >= 2)


@pytest.mark.parametrize(
    "name", [name for name, entry in tables.ALGORITHMS.items() if not entry.has_own_models]
)
def test_every_algorithm_follows_the_server_s_schedule(name: str) -> None:
    server = optimizers.schedule_learning_rate(
        optimizers.sgd(1.0), "step", {"boundaries": 1, "factors": 0.0}
    )
    client = optimizers.sgd(0.1) if tables.ALGORITHMS[name].has_local_steps else None
    algorithm = replace(_algorithm(name, client), server_optimizer=server)
    process = learning.build_process(algorithm, _model(), num_clients=len(SIZES))
    first = process.next(process.initialize(), _cohort()).state
    second = process.next(first, _cohort()).state
    assert first.global_model_weights.any()
    assert first.global_model_weights.tobytes() == second.global_model_weights.tobytes()


def test_mime_lite_clips_local_gradients_and_the_mean() -> None:
    base = optimizers.clip_gradients(optimizers.sgd(0.1, momentum=0.9), 0.05)
    process = learning.build_mime_lite_with_optimizer(_model(), base)
    cohort = _cohort((40, 20))
    state = process.next(process.initialize(), cohort).state
    # The accumulator was 0, so now it is the clipped mean gradient. Local steps are clipped too.
    assert np.linalg.norm(state.client_work["accumulator"]) == pytest.approx(0.05, rel=1e-5)
    steps = np.linalg.norm(state.global_model_weights) / 0.1
    assert 0.05 < steps < 2 * 0.05


def test_mime_lite_with_plain_sgd_is_fedavg() -> None:
    cohort = _cohort()
    mime = learning.build_mime_lite_with_optimizer(_model(), optimizers.sgd(0.1))
    average = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    first = mime.next(mime.initialize(), cohort).state
    second = average.next(average.initialize(), cohort).state
    assert first.global_model_weights.tobytes() == second.global_model_weights.tobytes()


def test_a_dropped_client_changes_no_part_of_mime_lite() -> None:
    pair = _client(30, 1)
    bad = from_arrays(np.full_like(pair[0], 1e38), pair[1]).client.preprocess(epochs=3)
    process = learning.build_mime_lite_with_optimizer(_model(), optimizers.sgd(0.1, momentum=0.9))
    alone = process.next(process.initialize(), [pair]).state
    together = process.next(process.initialize(), [bad, pair])
    assert together.metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    for name in ("global_model_weights", "client_work"):
        first, second = getattr(alone, name), getattr(together.state, name)
        np.testing.assert_equal(first, second)
    nobody = process.next(alone, [bad])
    assert nobody.metrics["finalizer"] == {"update_non_finite": 1}
    np.testing.assert_equal(nobody.state.client_work, alone.client_work)


def test_a_dropped_copy_leaves_the_other_copies_of_its_client_as_they_were() -> None:
    """The first copy draws only the example that overflows, the second only the other one."""
    pixels, labels = _client(2, 1)
    pixels[0] = 1e38
    pair = from_arrays(pixels, labels, client_id="twice")
    drawn = [
        pair.client.preprocess(2, "full", batch_size=1, seed=seed, max_examples=2)
        for seed in range(100)
    ]
    orders = [[each.order(0, 0).tolist(), each.order(0, 1).tolist()] for each in drawn]
    copies = drawn[orders.index([[0, 0], [1, 1]])]
    process = learning.build_mime_lite_with_optimizer(_model(), optimizers.sgd(0.1, momentum=0.9))
    result = process.next(process.initialize(), [copies, copies])
    assert result.metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    good = from_arrays(pixels[1:], labels[1:])
    expected = process.next(process.initialize(), [good]).state.client_work
    np.testing.assert_allclose(
        result.state.client_work["accumulator"], expected["accumulator"], rtol=1e-5, atol=1e-7
    )
    assert expected["accumulator"].any()


@pytest.mark.filterwarnings("error")
def test_the_base_state_of_mime_lite_overflows_silently() -> None:
    pixels, labels = _client(4, 1)
    base = optimizers.adam(0.0)
    process = learning.build_mime_lite_with_optimizer(_model(), base)
    state = process.next(process.initialize(), [(pixels * np.float32(1e25), labels)]).state
    assert np.isinf(state.client_work["preconditioner"]).any()


@pytest.mark.parametrize(
    ("num_params", "step_num", "message"),
    [(62, 1, r"\[1, 62\], not \[1, 63\]"), (63, 0, "outside what")],
)
def test_frozen_slots_that_do_not_fit_are_refused(
    num_params: int, step_num: int, message: str
) -> None:
    frozen = FrozenSlots(np.zeros((1, num_params), np.float32), step_num)
    rows = optimizers.sgd(0.1, momentum=0.9).client_rows()
    clients, params = [from_arrays(*_client(5, 1))], np.zeros(63, np.float32)
    task = ClientTask(tuple(rows), params, round_num=0, weighting="uniform", frozen=frozen)
    with pytest.raises((ValueError, _core.CoreError), match=message):
        ThreadEngine(1).train(_model().layout, task, clients)


def test_mime_lite_reads_a_generator_once() -> None:
    cohort = _cohort((40, 1, 23))
    process = learning.build_mime_lite_with_optimizer(_model(), optimizers.sgd(0.1, momentum=0.9))
    state = process.next(process.initialize(), cohort).state
    again = process.next(process.initialize(), (pair for pair in cohort)).state
    np.testing.assert_equal(again.client_work, state.client_work)
    assert again.global_model_weights.tobytes() == state.global_model_weights.tobytes()


def test_a_stronger_proximal_term_keeps_clients_closer() -> None:
    """The rate is one at which SGD converges: if it diverged, even a wrong sign would pass."""
    pair = _client(60, 3)
    distances = []
    for strength in (0.0, 0.01, 0.1, 1.0, 5.0):
        algorithm = _algorithm("fedprox", optimizers.sgd(0.1), proximal_strength=strength)
        process = learning.build_process(algorithm, _model())
        start = process.next(process.initialize(), [pair]).state
        end = process.next(start, [from_arrays(*pair).client.preprocess(epochs=20)]).state
        moved = end.global_model_weights - start.global_model_weights
        distances.append(float(np.linalg.norm(moved)))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.5 * distances[0]


def test_fedprox_without_strength_is_fedavg_to_the_byte() -> None:
    states = []
    for algorithm in (
        _algorithm("fedavg", optimizers.sgd(0.1)),
        _algorithm("fedprox", optimizers.sgd(0.1), proximal_strength=0.0),
    ):
        process = learning.build_process(algorithm, _model())
        states.append(process.next(process.initialize(), _cohort()).state)
    first, second = (state.global_model_weights.tobytes() for state in states)
    assert first == second


def test_adaptive_clients_train_without_epsilon() -> None:
    """For weights without gradient, such as padding, Adam divides 0 by 0: they must not change."""
    process = learning.build_weighted_fed_avg(_model(), optimizers.adam(0.01, epsilon=0.0))
    result = process.next(process.initialize(), _cohort())
    assert result.metrics["client_work"]["train"]["num_non_finite_clients"] == 0
    assert np.isfinite(result.state.global_model_weights).all()


def test_server_sgd_with_rate_one_gives_the_weighted_mean_of_client_params() -> None:
    cohort = _cohort([30, 10])
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.3))
    state = process.next(process.initialize(), _cohort([25])).state
    alone = [process.next(state, [pair]).state.global_model_weights for pair in cohort]
    together = process.next(state, cohort).state.global_model_weights
    np.testing.assert_allclose(together, 0.75 * alone[0] + 0.25 * alone[1], rtol=1e-5, atol=1e-7)


def test_one_client_with_all_the_data_is_plain_sgd() -> None:
    pair = _client(45, 1)
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.2))
    state, params = process.initialize(), np.zeros(63)
    for _ in range(4):
        state = process.next(state, [pair]).state
        for batch in _in_order(pair):
            params = params - 0.2 * reference.score(params, batch, NUM_CLASSES)[1]
    _assert_same_params(state, params)


def test_doubling_every_client_weight_changes_nothing() -> None:
    cohort = _cohort([30, 10, 20])
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.0625))
    once = process.next(process.initialize(), cohort)
    twice = process.next(process.initialize(), cohort + cohort)
    np.testing.assert_array_equal(once.state.global_model_weights, twice.state.global_model_weights)
    assert twice.metrics["client_work"]["train"]["num_examples"] == 120


@pytest.mark.parametrize("num_threads", [2, 7])
def test_threads_change_no_byte(num_threads: int) -> None:
    def run(threads: int) -> tuple[bytes, str]:
        process = learning.build_weighted_fed_avg(
            _model(), optimizers.sgd(0.1, momentum=0.5), engine=ThreadEngine(threads)
        )
        state, metrics = process.initialize(), []
        for _ in range(3):
            result = process.next(state, _cohort())
            state = result.state
            metrics.append(result.metrics)
        return state.global_model_weights.tobytes(), repr(metrics)

    assert run(num_threads) == run(1)


@pytest.mark.parametrize("collect", [list, tuple, iter])
def test_pieces_of_a_cohort_change_no_byte(collect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> tuple[bytes, float, bytes]:
        task = ClientTask(
            rows=tuple(optimizers.sgd(0.1).client_rows()),
            params=_model().initial_params,
            round_num=0,
            weighting="num-examples",
        )
        clients = (from_arrays(*each, client_id=str(i)) for i, each in enumerate(_cohort()))
        cohort = ThreadEngine(2).train(_model().layout, task, collect(clients))
        return cohort.delta_sum.tobytes(), cohort.weight_sum, cohort.stats.tobytes()

    whole = train()
    monkeypatch.setattr("fedcli.learning.engines.threads.PIECE_BYTES", 1)
    assert train() == whole


def test_a_kept_cohort_is_not_used_for_another_cohort_or_another_model() -> None:
    engine = ThreadEngine(2)
    first, second = (
        tuple(from_arrays(*_client(20, seed)) for seed in seeds) for seeds in ((1, 2), (3, 4))
    )

    def train(model: Model, clients: tuple[BatchedDataset, ...], engine: ThreadEngine) -> bytes:
        rows = tuple(optimizers.sgd(0.1).client_rows())
        task = ClientTask(rows, model.initial_params, round_num=0, weighting="uniform")
        return engine.train(model.layout, task, clients).delta_sum.tobytes()

    wide = softmax_regression(SHAPE, NUM_CLASSES + 20)
    for model, clients in ((_model(), first), (_model(), second), (wide, second), (wide, first)):
        assert train(model, clients, engine) == train(model, clients, ThreadEngine(2))


def test_next_changes_neither_state_nor_data() -> None:
    pair = _client(30, 2)
    pair[0].setflags(write=False)
    process = learning.build_weighted_fed_avg(
        _model(), optimizers.sgd(0.1), optimizers.sgd(1.0, momentum=0.9)
    )
    state = process.next(process.initialize(), [pair]).state
    for array in (state.global_model_weights, state.finalizer["accumulator"]):
        array.setflags(write=False)
    first = process.next(state, [pair])
    second = process.next(state, [pair])
    assert first.state.round_num == second.state.round_num == 2
    assert first.state.global_model_weights.tobytes() == second.state.global_model_weights.tobytes()


# ---- Empty and non-finite clients --------------------------------------------------------------


def _exploding(size: int = 40) -> Arrays:
    """Returns a client whose second local step overflows float32."""
    pixels, labels = _client(size, 9)
    return pixels * np.float32(1e30), labels


@pytest.mark.parametrize(
    "build", [learning.build_weighted_fed_avg, learning.build_unweighted_fed_avg]
)
def test_a_non_finite_client_is_left_out_and_counted(build: Any) -> None:
    good = _cohort([30, 12])
    process = build(_model(), optimizers.sgd(0.1))
    with_bad = process.next(process.initialize(), [good[0], _exploding(), good[1]])
    without = process.next(process.initialize(), good)
    assert (
        with_bad.state.global_model_weights.tobytes()
        == without.state.global_model_weights.tobytes()
    )
    train = with_bad.metrics["client_work"]["train"]
    assert train.pop("num_non_finite_clients") == 1
    assert without.metrics["client_work"]["train"].pop("num_non_finite_clients") == 0
    assert train == without.metrics["client_work"]["train"]
    assert with_bad.metrics["finalizer"] == {"update_non_finite": 0}
    assert with_bad.num_empty_clients == 0


def test_the_reference_agrees_on_what_is_not_finite() -> None:
    result = reference.fedavg_round(
        np.zeros(63),
        np.zeros(63),
        [_in_order(_exploding()), _in_order(_client(5, 1)), []],
        num_classes=NUM_CLASSES,
        client=reference.Sgd(0.1),
        server=reference.Sgd(1.0),
    )
    assert (result.num_non_finite_clients, result.update_non_finite) == (1, 0)
    assert result.stats.num_examples == 5


@pytest.mark.parametrize(
    "build", [learning.build_weighted_fed_avg, learning.build_unweighted_fed_avg]
)
def test_an_empty_client_has_no_weight_and_is_counted(build: Any) -> None:
    good = _cohort([30, 12])
    process = build(_model(), optimizers.sgd(0.1))
    with_empty = process.next(process.initialize(), [good[0], _client(0, 0), good[1]])
    without = process.next(process.initialize(), good)
    assert (
        with_empty.state.global_model_weights.tobytes()
        == without.state.global_model_weights.tobytes()
    )
    assert with_empty.metrics == without.metrics
    assert (with_empty.num_empty_clients, without.num_empty_clients) == (1, 0)


@pytest.mark.parametrize(
    ("cohort", "num_non_finite"),
    [([_exploding()], 1), ([_client(0, 0)], 0), ((), 0)],
    ids=["non-finite", "empty", "nobody"],
)
def test_a_round_without_weight_leaves_the_model_and_advances(
    cohort: Sequence[Arrays], num_non_finite: int
) -> None:
    process = learning.build_weighted_fed_avg(
        _model(), optimizers.sgd(0.1), optimizers.sgd(1.0, momentum=0.9)
    )
    state = process.next(process.initialize(), _cohort([30])).state
    result = process.next(state, cohort)
    assert result.metrics["finalizer"] == {"update_non_finite": 1}
    assert result.state.round_num == 2
    assert result.state.global_model_weights.tobytes() == state.global_model_weights.tobytes()
    assert (
        result.state.finalizer["accumulator"].tobytes() == state.finalizer["accumulator"].tobytes()
    )
    train = result.metrics["client_work"]["train"]
    assert train["num_non_finite_clients"] == num_non_finite
    assert train["num_examples"] == 0
    assert math.isnan(train["loss"])
    assert math.isnan(train["sparse_categorical_accuracy"])


# ---- Evaluation --------------------------------------------------------------------------------


def _trained(cohort: Sequence[Any]) -> learning.ModelWeights:
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    return process.get_model_weights(process.next(process.initialize(), cohort).state)


def test_evaluation_follows_the_reference() -> None:
    cohort = _cohort()
    process = learning.build_fed_eval(_model())
    weights = _trained(cohort)
    state = process.set_model_weights(process.initialize(), weights)
    result = process.next(state, cohort)
    params = np.concatenate([array.ravel() for array in weights.trainable]).astype(np.float64)
    expected = reference.evaluate(params, [_in_order(pair) for pair in cohort], NUM_CLASSES)
    reported = result.metrics["client_work"]["eval"]["current_round_metrics"]
    _assert_same_metrics(reported, expected)
    assert result.state.global_model_weights.tobytes() == state.global_model_weights.tobytes()


def test_total_rounds_metrics_cover_the_states_passed_on() -> None:
    first, second = _cohort([10, 20]), _cohort([5])
    process = learning.build_fed_eval(_model())
    fresh = process.set_model_weights(process.initialize(), _trained(first))

    def evaluate(state: learning.ServerState, cohort: list[Arrays]) -> Any:
        result = process.next(state, cohort)
        reported = result.metrics["client_work"]["eval"]
        return result.state, reported["current_round_metrics"], reported["total_rounds_metrics"]

    state, current, total = evaluate(fresh, first)
    assert current == total
    assert current["num_examples"] == 30
    _, current, total = evaluate(process.set_model_weights(state, _trained(second)), second)
    assert (current["num_examples"], total["num_examples"]) == (5, 35)
    _, both, _ = evaluate(state, first + second)
    assert both["num_examples"] == 35
    _, current, total = evaluate(fresh, second)
    assert current == total


def test_evaluating_no_clients_gives_nan() -> None:
    process = learning.build_fed_eval(_model())
    result = process.next(process.initialize(), [_client(0, 0)])
    reported = result.metrics["client_work"]["eval"]["current_round_metrics"]
    assert reported["num_examples"] == 0
    assert math.isnan(reported["loss"])
    assert result.num_empty_clients == 1


# ---- The process API ---------------------------------------------------------------------------


def test_metrics_have_the_structure_of_tff() -> None:
    training = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    reported = training.next(training.initialize(), _cohort()).metrics
    assert list(reported) == ["distributor", "client_work", "aggregator", "finalizer"]
    assert reported["distributor"] == {}
    assert list(reported["client_work"]["train"]) == [
        "sparse_categorical_accuracy",
        "loss",
        "num_examples",
        "num_batches",
        "num_non_finite_clients",
    ]
    assert reported["aggregator"] == {"mean_value": {}, "mean_weight": {}}
    assert reported["finalizer"] == {"update_non_finite": 0}
    evaluation = learning.build_fed_eval(_model())
    reported = evaluation.next(evaluation.initialize(), _cohort()).metrics
    assert list(reported["client_work"]["eval"]) == [
        "current_round_metrics",
        "total_rounds_metrics",
    ]
    assert reported["aggregator"] == {"mean_value": {}, "mean_weight": {}}
    assert reported["finalizer"] == {}


def test_a_metrics_aggregator_sees_every_client() -> None:
    def largest(stats: Any) -> dict[str, Any]:
        return {"largest": int(stats["num_examples"].max())}

    training = learning.build_weighted_fed_avg(
        _model(), optimizers.sgd(0.1), metrics_aggregator=largest
    )
    reported = training.next(training.initialize(), _cohort()).metrics
    assert reported["client_work"]["train"] == {"largest": 50, "num_non_finite_clients": 0}


def test_a_metrics_aggregator_as_in_tff_is_refused_in_one_line() -> None:
    def build(aggregator: Any) -> learning.LearningProcess:
        return learning.build_fed_eval(_model(), metrics_aggregator=aggregator)

    contract = r"; give a function of one argument, the ClientStats .*, that returns a dict"
    with pytest.raises(PartError, match=f"missing a required argument: 'types'{contract}"):
        build(lambda finalizers, types: None)
    process = build(lambda finalizers: lambda unfinalized: unfinalized)
    with pytest.raises(PartError, match=f"metrics_aggregator returned <function .*{contract}"):
        process.next(process.initialize(), _cohort())


def test_timings_are_separate() -> None:
    training = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    timings = training.next(training.initialize(), _cohort()).timings
    assert list(timings) == ["train", "aggregate"]
    assert all(seconds > 0 for seconds in timings.values())


def test_weights_are_exported_and_loaded() -> None:
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    state = process.next(process.initialize(), _cohort()).state
    weights = process.get_model_weights(state)
    assert [array.shape for array in weights.trainable] == [(20, 3), (3,)]
    assert weights.non_trainable == []
    back = process.set_model_weights(process.initialize(), weights.trainable)
    assert back.global_model_weights.tobytes() == state.global_model_weights.tobytes()
    weights.trainable[0][:] = 0.0
    assert back.global_model_weights.any()
    assert state.global_model_weights[:60].any()
    with pytest.raises(
        ConfigError, match=r"weights have shapes \[3, 20\], \[3\], but the model needs"
    ):
        process.set_model_weights(state, [weights.trainable[0].T, weights.trainable[1]])


@pytest.mark.parametrize(
    ("client_data", "message"),
    [
        (
            [_client(3, 0), 5],
            r"^client_data\[1\] is of type int; give data.client\(id\).preprocess",
        ),
        ([from_arrays(*_client(3, 0)).client], r"^client_data\[0\] is of type ClientDataset; give"),
        (
            {"a": _client(3, 0)},
            "^client_data is of type dict; give a list, one element per client$",
        ),
        (5, "^client_data is of type int; give a list, one element per client$"),
        (
            from_arrays(*_client(3, 0)),
            "^client_data is the dataset of one client; put it into a list",
        ),
        (
            [(np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int32))],
            r"^client_data: client '0': images have shape \[28, 28\], the model takes \[5, 4\]",
        ),
        ([_client(3, 0), (_client(3, 0)[0], np.array([0, 1, 3]))], "label 3"),
        (
            [(_client(3, 0)[0], np.zeros(2, np.int32))],
            "^client_data: client '0': 3 images but 2 labels",
        ),
    ],
)
def test_client_data_of_another_kind_is_refused(client_data: Any, message: str) -> None:
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    with pytest.raises(DataError, match=message) as error:
        process.next(process.initialize(), client_data)
    assert "\n" not in str(error.value)


def test_a_raised_flag_cancels_and_the_state_stays_usable() -> None:
    process = learning.build_weighted_fed_avg(_model(), optimizers.sgd(0.1))
    state, cancel = process.initialize(), CancelFlag()
    cancel.set()
    with pytest.raises(Cancelled):
        process.next(state, _cohort(), cancel=cancel)
    assert not state.global_model_weights.any()
    cancel.clear()
    assert process.next(state, _cohort(), cancel=cancel).state.round_num == 1


def test_algorithms_are_built_by_name() -> None:
    def build(name: str = "fedavg", weighting: str = "uniform") -> Any:
        return algorithms.build(
            name,
            optimizers.sgd(0.1),
            optimizers.sgd(1.0),
            weighting=weighting,
            aggregator=aggregators.build("mean"),
        )

    named = learning.build_process(build(), _model())
    direct = learning.build_unweighted_fed_avg(_model(), optimizers.sgd(0.1))
    states = [process.next(process.initialize(), _cohort()).state for process in (named, direct)]
    assert states[0].global_model_weights.tobytes() == states[1].global_model_weights.tobytes()
    with pytest.raises(
        ConfigError, match="unknown algorithm 'fedsdg'; choose one of centralized, f"
    ):
        build("fedsdg")
    with pytest.raises(ConfigError, match="unknown client weighting 'even'; choose num-examples"):
        build(weighting="even")
    with pytest.raises(ConfigError, match="unknown aggregator 'mode'; choose one of bulyan, "):
        aggregators.build("mode")


# ---- Signatures --------------------------------------------------------------------------------

MODEL_TYPE = """\
  round_num=int64,
  global_model_weights=<
    trainable=<
      float32[784,10],
      float32[10]
    >,
    non_trainable=<>
  >,"""

INITIALIZE = f"""\
( -> <
{MODEL_TYPE}
  distributor=<>,
  client_work=<>,
  aggregator=<>,
  finalizer=<
    accumulator=<
      float32[784,10],
      float32[10]
    >
  >
>@SERVER)"""

EVAL_STATE = """\
  state=<
    round_num=int64,
    global_model_weights=<
      trainable=<
        float32[784,10],
        float32[10]
      >,
      non_trainable=<>
    >,
    distributor=<>,
    client_work=<
      loss_sum=float64,
      num_correct=int64,
      num_examples=int64,
      num_batches=int64
    >,
    aggregator=<>,
    finalizer=<>
  >@SERVER,"""

EVAL_NEXT = f"""\
(<
{EVAL_STATE}
  client_data={{<
    x=float32[?,784],
    y=int32[?,1]
  >*}}@CLIENTS
> -> <
{EVAL_STATE}
  metrics=<
    distributor=<>,
    client_work=<
      eval=<
        current_round_metrics=<
          sparse_categorical_accuracy=float64,
          loss=float64,
          num_examples=int64,
          num_batches=int64
        >,
        total_rounds_metrics=<
          sparse_categorical_accuracy=float64,
          loss=float64,
          num_examples=int64,
          num_batches=int64
        >
      >
    >,
    aggregator=<
      mean_value=<>,
      mean_weight=<>
    >,
    finalizer=<>
  >@SERVER
>)"""


def test_signatures_are_written_as_tff_writes_them() -> None:
    training = learning.build_weighted_fed_avg(
        "softmax-regression", optimizers.sgd(0.02), optimizers.sgd(1.0, momentum=0.9)
    )
    assert training.state_signature == INITIALIZE
    assert learning.build_fed_eval("softmax-regression").next_signature == EVAL_NEXT
    following = training.next_signature
    assert following.startswith("(<\n  state=<\n    round_num=int64,\n")
    assert "      num_non_finite_clients=int64\n" in following
    assert "    finalizer=<\n      update_non_finite=int64\n    >\n  >@SERVER\n>)" in following


def test_weights_in_one_piece_and_outputs_as_pairs_are_refused_in_one_line() -> None:
    process = learning.build_weighted_fed_avg("softmax-regression", optimizers.sgd(0.02))
    state = process.initialize()
    flat: Any = state.global_model_weights
    with pytest.raises(DataError, match=r"weights are one ndarray \[7850\]; give a list with one"):
        process.set_model_weights(state, flat)
    split = process.model.layout.split(flat)
    assert process.set_model_weights(state, split).round_num == 0
    named: Any = {"kernel": split[0]}
    with pytest.raises(DataError, match="weights are one dict; give a list with one array per"):
        process.set_model_weights(state, named)
    output: Any = process.next(state, [(np.zeros((1, 28, 28)), np.zeros(1, np.int32))])
    with pytest.raises(TypeError, match=r"no pair; .* then output\.state and output\.metrics"):
        state, _ = output


def test_functions_have_their_type_signatures_as_in_tff() -> None:
    process = learning.build_weighted_fed_avg("softmax-regression", optimizers.sgd(0.02))
    initialize, following = process.initialize.type_signature, process.next.type_signature  # type: ignore[attr-defined]
    assert initialize == process.state_signature
    assert initialize.parameter is None
    assert f"( -> {initialize.result})" == initialize.formatted_representation()
    assert initialize.result.startswith("<\n  round_num=int64,\n")
    assert initialize.result.formatted_representation().endswith(">@SERVER")
    assert f"({following.parameter} -> {following.result})" == process.next_signature
    assert "client_data={<" in following.parameter
    assert process.next.__name__ == "next"
    assert "state" in inspect.signature(process.next).parameters
    evaluation = learning.build_fed_eval("softmax-regression")
    assert evaluation.next.type_signature == EVAL_NEXT  # type: ignore[attr-defined]


# ---- The tutorial, end to end ------------------------------------------------------------------


def test_the_tutorial_s_flow() -> None:
    train, test = fedcli.datasets.load("synthetic-digits")
    assert test is not None
    chosen = train.client_ids[:10]

    def make_federated_data(data: Any) -> list[BatchedDataset]:
        return [
            data.client(client_id).preprocess(epochs=5, shuffle_buffer=100, batch_size=20, seed=1)
            for client_id in chosen
        ]

    cohort = make_federated_data(train)
    first_batch = next(iter(cohort[0]))
    assert first_batch["x"].shape == (20, 784)
    assert first_batch["y"].shape == (20, 1)

    training = fedcli.learning.build_weighted_fed_avg(
        "softmax-regression",
        fedcli.optimizers.sgd(learning_rate=0.02),
        fedcli.optimizers.sgd(learning_rate=1.0),
    )
    state, losses = training.initialize(), []
    for round_num in range(1, 11):
        result = training.next(state, cohort)
        state = result.state
        reported = result.metrics["client_work"]["train"]
        losses.append(reported["loss"])
        assert state.round_num == round_num
        assert reported["num_examples"] == sum(5 * len(dataset.client) for dataset in cohort)
    assert losses[-1] < 0.7 * losses[0]

    evaluation = fedcli.learning.build_fed_eval("softmax-regression")
    weights = training.get_model_weights(state)
    eval_state = evaluation.set_model_weights(evaluation.initialize(), weights)
    for data in (train, test):
        reported = evaluation.next(eval_state, make_federated_data(data)).metrics
        scores = reported["client_work"]["eval"]
        assert scores["current_round_metrics"] == scores["total_rounds_metrics"]
        assert scores["current_round_metrics"]["sparse_categorical_accuracy"] > 0.5


@dataclass
class _FakeEngine:
    """Another engine: records its arguments and computes on threads."""

    calls: list[tuple[int, str]]

    def train(self, layout: ParamLayout, task: ClientTask, *args: Any, **others: Any) -> Any:
        self.calls.append((task.round_num, task.weighting))
        return ThreadEngine(1).train(layout, task, *args, **others)


def test_another_engine_can_compute_the_clients() -> None:
    engine = _FakeEngine([])
    process = learning.build_weighted_fed_avg(
        _model(),
        optimizers.sgd(0.1),
        engine=engine,  # type: ignore[arg-type]
    )
    state = process.next(process.initialize(), _cohort()).state
    process.next(state, _cohort())
    assert engine.calls == [(0, "num-examples"), (1, "num-examples")]


def test_a_function_in_place_of_a_model_or_a_rate_is_refused() -> None:
    nothing: Any = lambda: None  # noqa: E731
    with pytest.raises(ModelError, match=r"<lambda> returned None; return a fedcli\.models model"):
        learning.build_fed_eval(nothing)
    with pytest.raises(ConfigError, match="client_optimizer is of type float; give one of"):
        learning.build_weighted_fed_avg("softmax-regression", 0.02)  # type: ignore[arg-type]


def test_the_type_of_a_method_can_be_copied_and_the_method_is_shown_as_one() -> None:
    process: Any = learning.build_weighted_fed_avg(softmax_regression(), optimizers.sgd(0.1))
    signature = process.initialize.type_signature
    copied = pickle.loads(pickle.dumps(signature))
    assert (copied, copied.parameter, copied.result) == (signature, None, signature.result)
    assert repr(process.next).startswith("<bound method TrainingProcess.next of <TrainingProcess")
