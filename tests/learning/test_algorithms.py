"""Each algorithm against its paper's formulas in float64, and by the property that defines it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core import _core, native
from fedcli.core.native import CancelFlag, StepKind
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError, RunError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.engines.task import ClientExchange, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from fedcli.models.zoo import softmax_regression
from fedcli.settings import tables
from tests.kit import algorithm_oracle as oracle
from tests.kit import reference
from tests.kit.clients import NUM_CLASSES, SHAPE, make_clients

pytestmark = pytest.mark.numeric

SIZES = (1, 7, 40, 23, 33, 12, 50, 9, 26)
BATCH_SIZE = 10
RATE = 0.1


def _model() -> Model:
    return softmax_regression(SHAPE, NUM_CLASSES)


def _clients(sizes: Sequence[int] = SIZES) -> list[BatchedDataset]:
    def brighten(number: int, pixels: NDArray[np.float32]) -> None:
        pixels[:, 1] += 0.3 * number  # clients differ

    plan = BatchPlan(epochs=2, batch_size=BATCH_SIZE)
    return make_clients(sizes, plan=plan, is_learnable=True, change=brighten)


def _slow(dataset: BatchedDataset) -> oracle.Client:
    client = dataset.client
    batches = reference.make_batches(
        client.images(), client.labels, list(dataset.order()), dataset.plan.batch_size
    )
    return oracle.dense_client(batches, NUM_CLASSES)


def _build(
    name: str,
    client: Optimizer | None = None,
    server: Optimizer | None = None,
    *,
    weighting: str | None = None,
    **options: Any,
) -> Algorithm:
    entry = tables.ALGORITHMS[name]
    if server is None:
        server = optimizers.build(
            entry.server_optimizer or "sgd", entry.server_lr, entry.server_options
        )
    return algorithms.build(
        name,
        client or optimizers.sgd(RATE),
        server,
        weighting=weighting or entry.weightings[0],
        aggregator=aggregators.build("mean"),
        options=options,
    )


def _process(algorithm: Algorithm, num_threads: int = 2) -> learning.LearningProcess:
    return learning.build_process(
        algorithm, _model(), engine=ThreadEngine(num_threads), num_clients=len(SIZES)
    )


def _assert_close(found: NDArray[Any], expected: NDArray[np.float64], scale: float = 1.0) -> None:
    # The rounding errors of several rounds in float32; parameters are of the order of 1.
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-5 * scale)


# The cohorts differ, so a client must keep its state during the rounds that it misses.
COHORTS = ([0, 2, 4], [1, 2, 8, 6], [0, 2, 3, 4, 5], [7, 1], [2, 4, 6, 8])

# ---- Against the papers' formulas ----------------------------------------------------------------


@pytest.mark.parametrize("by", [None, "local-step"], ids=["constant", "by-local-step"])
def test_scaffold_follows_the_paper(by: str | None) -> None:
    client, factors = optimizers.sgd(RATE), lambda step: 1.0
    if by is not None:
        options = {"decay_rounds": 2}
        client = optimizers.schedule_learning_rate(client, "inverse-sqrt", options, by=by)
        factors = lambda step: (1 + step / 2) ** -0.5  # noqa: E731
    slow = oracle.Scaffold(RATE, len(SIZES), factors, server_rate=0.8)
    process = _process(_build("scaffold", client, optimizers.sgd(0.8)))
    state, clients = process.initialize(), _clients()
    params = np.zeros(len(state.global_model_weights))
    for cohort in COHORTS:
        state = process.next(state, [clients[index] for index in cohort]).state
        chosen = {f"client {index}": _slow(clients[index]) for index in cohort}
        params = slow.round(params, chosen)
        _assert_close(state.global_model_weights, params)
        _assert_close(state.client_work["control"], slow.control)
        for name, control in slow.controls.items():
            # A control is a delta divided by at least 0.1, so its rounding error is larger.
            found = state.client_work["client_controls"].read(name, len(params))
            _assert_close(found, control, scale=2.0)


def test_feddyn_follows_the_paper() -> None:
    slow = oracle.FedDyn(RATE, 0.3, len(SIZES))
    process = _process(_build("feddyn", alpha=0.3))
    state, clients = process.initialize(), _clients()
    params = np.zeros(len(state.global_model_weights))
    for cohort in COHORTS:
        state = process.next(state, [clients[index] for index in cohort]).state
        chosen = {f"client {index}": _slow(clients[index]) for index in cohort}
        params = slow.round(params, chosen)
        _assert_close(state.global_model_weights, params)
        _assert_close(state.evaluated_weights, slow.evaluated)
        for name, gradient in slow.gradients.items():
            _assert_close(state.client_work["client_bends"].read(name, len(params)), gradient)


@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_follows_the_paper(momentum: float, weighting: str) -> None:
    algorithm = _build("fednova", optimizers.sgd(RATE, momentum), weighting=weighting)
    process, clients = _process(algorithm), _clients()
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    for _ in range(4):
        state = process.next(state, clients).state
        slow = [_slow(each) for each in clients]
        params = oracle.fednova_round(params, slow, RATE, momentum, weighting == "num-examples")
        _assert_close(state.global_model_weights, params)


@pytest.mark.parametrize(
    ("base", "slow"),
    [
        (optimizers.sgd(RATE), reference.Sgd(RATE)),
        (optimizers.sgd(0.05, momentum=0.9), reference.Sgd(0.05, 0.9)),
        (optimizers.adam(0.01, epsilon=0.01), reference.Adam(0.01, epsilon=0.01)),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_mime_follows_the_paper(base: Optimizer, slow: reference.Optimizer) -> None:
    process, clients = _process(_build("mime", base)), _clients()
    state, expected = process.initialize(), oracle.Mime(slow)
    params = np.zeros(len(state.global_model_weights))
    for _ in range(4):
        state = process.next(state, clients).state
        params = expected.round(params, [_slow(each) for each in clients])
        _assert_close(state.global_model_weights, params)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_fedopt_presets_follow_the_paper(name: str) -> None:
    process, clients = _process(_build(name)), _clients()
    state, memory = process.initialize(), None
    params = np.zeros(len(state.global_model_weights))
    batches = [
        reference.make_batches(
            each.client.images(), each.client.labels, list(each.order()), BATCH_SIZE
        )
        for each in clients
    ]
    for _ in range(5):
        state = process.next(state, clients).state
        averaged = reference.fedavg_round(
            params,
            np.zeros_like(params),
            batches,
            num_classes=NUM_CLASSES,
            client=reference.Sgd(RATE),
            server=reference.Sgd(1.0),
        )
        rate = tables.ALGORITHMS[name].server_lr
        update, memory = oracle.fedopt_step(name, rate, memory, averaged.params - params)
        params = params + update
        _assert_close(state.global_model_weights, params)


# ---- Quadratics: an engine of these tests -----------------------------------------------------


class _Quadratics:
    """An engine for clients with the loss curvature/2 * (w - optimum)^2 and exact gradients.

    The engine follows the documentation of `Engine`, and its local steps are the core's own. Each
    parameter of the model is a number w with this loss.
    """

    def __init__(self, losses: dict[str, tuple[float, float]]) -> None:
        self.losses = losses

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        assert task.schedule is None
        chosen, params = list(clients), task.params
        inputs = task.piece(chosen, 0, exchange).inputs
        linear = np.zeros((len(chosen), 1)) if inputs.linear is None else inputs.linear
        plain = [row for row in task.rows if row[0] != StepKind.LINEAR]
        deltas = np.zeros((len(chosen), len(params)), np.float32)
        stats = np.zeros(len(chosen), _core.STATS)
        for index, each in enumerate(chosen):
            curvature, optimum = self.losses[each.client.client_id]
            local = params.copy()
            slots = native.initial_slots(plain, len(params))
            num_steps = each.plan.num_batches(len(each.client))
            for step in range(1, num_steps + 1):
                gradient = (curvature * (local - optimum) + linear[index]).astype(np.float32)
                native.apply_step(plain, step, local, params, gradient, slots)
            deltas[index] = local - params
            stats[index] = (0.0, 1.0, 0.0, 0.0, 0, num_steps, num_steps, 1)
        factors = np.ones(len(chosen)) if inputs.delta_factors is None else inputs.delta_factors
        delta_sum = (factors[:, np.newaxis] * deltas.astype(np.float64)).sum(axis=0)
        if exchange is not None and exchange.receives:
            exchange.receive(chosen, deltas, stats)
        return Deltas(delta_sum, float(len(chosen)), stats)


TWO = {"low": (1.0, -1.0), "high": (4.0, 2.0)}  # their mean loss is lowest at 1.4


def _find_optimum(
    algorithm: Algorithm, num_rounds: int, num_steps: Sequence[int] = (10, 10)
) -> float:
    """Returns the parameter after some rounds of local steps of all clients of `TWO`."""
    cohort = [
        from_arrays(
            np.zeros((steps, 1, 1), np.float32), np.zeros(steps, np.int32), client_id=name
        ).client.preprocess(batch_size=1)
        for name, steps in zip(TWO, num_steps, strict=True)
    ]
    model = softmax_regression((1, 1), 1)
    engine: Any = _Quadratics(TWO)
    process = learning.build_process(algorithm, model, engine=engine, num_clients=2)
    state = process.initialize()
    for _ in range(num_rounds):
        state = process.next(state, cohort).state
    assert np.ptp(state.evaluated_weights) == 0.0  # all parameters have the same loss
    return float(state.evaluated_weights[0])


def test_scaffold_reaches_the_optimum_where_fedavg_stops_short() -> None:
    client = optimizers.sgd(0.05)
    averaged = _find_optimum(_build("fedavg", client, weighting="uniform"), 200)
    assert averaged == pytest.approx(1.06963480217161, abs=1e-6)
    assert _find_optimum(_build("scaffold", client), 200) == pytest.approx(1.4, abs=1e-5)


def test_feddyn_reaches_the_optimum() -> None:
    found = _find_optimum(_build("feddyn", optimizers.sgd(0.05), alpha=1.0), 300)
    assert found == pytest.approx(1.4, abs=1e-5)


def test_fednova_corrects_for_unequal_numbers_of_steps() -> None:
    """With tiny steps a delta is the number of steps times the gradient, so FedAvg moves
    towards the client with more steps."""
    client, num_steps = optimizers.sgd(1e-4), (5, 50)
    averaged = _find_optimum(_build("fedavg", client, weighting="uniform"), 2000, num_steps)
    corrected = _find_optimum(_build("fednova", client, weighting="uniform"), 2000, num_steps)
    assert averaged == pytest.approx((5 * -1 + 50 * 4 * 2) / (5 + 50 * 4), abs=0.02)
    assert corrected == pytest.approx(1.4, abs=0.02)


# ---- Identities ----------------------------------------------------------------------------------


def _run(algorithm: Algorithm, clients: Sequence[Any], num_rounds: int = 3) -> NDArray[np.float32]:
    process = _process(algorithm)
    state = process.initialize()
    for _ in range(num_rounds):
        state = process.next(state, clients).state
    return state.global_model_weights


def test_the_first_round_of_scaffold_is_fedavg() -> None:
    clients = _clients()
    found = _run(_build("scaffold"), clients, 1)
    # Bytes differ: SCAFFOLD first computes the corrected gradient, then multiplies by the rate.
    expected = _run(_build("fedavg", weighting="uniform"), clients, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_fednova_is_fedavg_where_all_take_equal_steps() -> None:
    clients = _clients((20, 20, 20, 20))
    for momentum in (0.0, 0.9):
        client = optimizers.sgd(RATE, momentum)
        found = _run(_build("fednova", client), clients)
        expected = _run(_build("fedavg", client), clients)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_fedavgm_without_momentum_is_fedavg_to_the_byte() -> None:
    clients = _clients()
    found = _run(_build("fedavgm", server=optimizers.sgd(1.0)), clients)
    assert found.tobytes() == _run(_build("fedavg"), clients).tobytes()


def test_mime_with_one_full_batch_is_fedavg() -> None:
    clients = [each.client.preprocess(batch_size=1000) for each in _clients()]
    found, expected = _run(_build("mime"), clients), _run(_build("fedavg"), clients)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "mime"])
def test_one_client_with_everything_is_centralized_sgd(name: str) -> None:
    """With one client, SCAFFOLD's c equals c_k, and Mime's mean gradient is this client's."""
    (client,) = _clients((50,))
    if name == "mime":  # the gradient of a full batch has no variance
        client = client.client.preprocess(epochs=1, batch_size=50)
    algorithm = _build(name)
    process = learning.build_process(algorithm, _model(), num_clients=1)
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    for _ in range(3):
        state = process.next(state, [client]).state
        for step in _slow(client).steps:
            params = params - RATE * step(params)
        _assert_close(state.global_model_weights, params)


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fednova", "mime"])
def test_threads_change_no_byte(name: str) -> None:
    outcomes = set()
    for num_threads in (1, 2, 7):
        process = _process(_build(name), num_threads)
        state, clients = process.initialize(), _clients()
        for cohort in COHORTS:
            state = process.next(state, [clients[index] for index in cohort]).state
        states = [
            part.read(f"client {index}", len(state.global_model_weights)).tobytes()
            for part in state.client_work.values()
            if hasattr(part, "read")
            for index in range(len(SIZES))
        ]
        outcomes.add((state.global_model_weights.tobytes(), *states))
    assert len(outcomes) == 1


# ---- Corner cases --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_clients_without_examples_or_finite_deltas_keep_their_state(name: str) -> None:
    process, clients = _process(_build(name)), _clients()
    state = process.next(process.initialize(), clients).state
    part = next(each for each in state.client_work.values() if hasattr(each, "read"))
    num_params = len(state.global_model_weights)
    before = [part.read(f"client {index}", num_params).copy() for index in (0, 1, 2)]
    poisoned = clients[1].client.images().copy()
    poisoned[0, 0, 0] = 3e38  # logits overflow float32
    bad = from_arrays(poisoned, clients[1].client.labels, client_id="client 1").client.preprocess(
        epochs=3, batch_size=2
    )
    state = process.next(state, [clients[0].without_examples(), bad, clients[2]]).state
    assert np.isfinite(state.global_model_weights).all()
    part = next(each for each in state.client_work.values() if hasattr(each, "read"))
    after = [part.read(f"client {index}", num_params) for index in (0, 1, 2)]
    assert before[0].any()
    assert [old.tobytes() == new.tobytes() for old, new in zip(before, after, strict=True)] == [
        *(True, True, False)
    ]


def test_scaffolds_c_stays_the_mean_of_the_c_k_when_a_client_comes_twice() -> None:
    process, clients = _process(_build("scaffold")), _clients()
    state = process.initialize()
    for cohort in ([0, 1, 1], [1, 2, 2, 1], [2]):
        state = process.next(state, [clients[index] for index in cohort]).state
    controls = state.client_work["client_controls"]
    num_params = len(state.global_model_weights)
    total = sum(
        controls.read(f"client {index}", num_params).astype(np.float64) for index in range(3)
    )
    np.testing.assert_allclose(state.client_work["control"], total / len(SIZES), atol=1e-12)


def test_a_round_without_a_finite_client_changes_nothing_but_its_number() -> None:
    nothing = [each.without_examples() for each in _clients()]
    for name in ("scaffold", "feddyn", "fednova", "mime"):
        process = _process(_build(name))
        state = process.next(process.initialize(), _clients()).state
        output = process.next(state, nothing)
        assert output.metrics["finalizer"]["update_non_finite"] == 1
        assert output.state.global_model_weights.tobytes() == state.global_model_weights.tobytes()
        assert output.state.evaluated_weights.tobytes() == state.evaluated_weights.tobytes()
        assert process.next(output.state, _clients()).metrics["finalizer"]["update_non_finite"] == 0


def test_a_round_can_be_repeated_but_a_superseded_state_is_refused() -> None:
    process, clients = _process(_build("scaffold")), _clients()
    first = process.next(process.initialize(), clients[:4]).state
    twice = [process.next(first, clients[2:]).state for _ in range(2)]
    assert twice[0].global_model_weights.tobytes() == twice[1].global_model_weights.tobytes()
    later = process.next(twice[1], clients).state
    with pytest.raises(RunError, match="after round 2 are no longer kept"):
        process.next(twice[0], clients)
    process.next(later, clients)
    with pytest.raises(RunError, match="after round 1 are no longer kept"):
        process.next(first, clients)


def test_state_of_clients_has_a_signature() -> None:
    process = _process(_build("scaffold"))
    assert "client_controls=float32[?,63]" in process.state_signature


def test_client_optimizers_that_do_not_fit_the_algorithm_are_refused() -> None:
    with pytest.raises(ConfigError, match="scaffold with client optimizer adam is not supp"):
        _build("scaffold", optimizers.adam(0.1))
    with pytest.raises(ConfigError, match="scaffold with client optimizer sgd with momentum"):
        _build("scaffold", optimizers.sgd(0.1, momentum=0.9))
    with pytest.raises(ConfigError, match="fednova with client optimizer adam is not supp"):
        _build("fednova", optimizers.adam(0.1))


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_weights_by_examples_are_refused_where_weights_are_equal(name: str) -> None:
    with pytest.raises(ConfigError, match=f"num-examples with {name}: choose uniform"):
        _build(name, weighting="num-examples")


def test_another_server_optimizer_than_the_algorithm_s_is_refused() -> None:
    with pytest.raises(ConfigError, match="fedadam uses server optimizer adam, not sgd"):
        _build("fedadam", server=optimizers.sgd(1.0))


def test_the_number_of_clients_must_be_known() -> None:
    process = learning.build_process(_build("scaffold"), _model())
    with pytest.raises(ConfigError, match="give num_clients"):
        process.next(process.initialize(), _clients())


# ---- Rates by local step, running means ----------------------------------------------------------


def test_rates_by_local_step_start_again_each_round() -> None:
    options: dict[str, Any] = {"boundaries": [2, 5], "factors": [0.5, 0.1]}
    client = optimizers.schedule_learning_rate(
        optimizers.sgd(RATE, momentum=0.5), "step", options, by="local-step"
    )
    clients = _clients()
    process = _process(_build("fedavg", client))
    state = process.initialize()
    params = np.zeros(len(state.global_model_weights))
    for _ in range(3):
        state = process.next(state, clients).state
        total = np.zeros_like(params)
        for each in clients:
            slow, local, velocity = _slow(each), params.copy(), np.zeros_like(params)
            for number, step in enumerate(slow.steps):
                velocity = 0.5 * velocity + step(local)
                local = local - RATE * (1.0, 0.5, 0.1)[(number >= 2) + (number >= 5)] * velocity
            total += slow.num_examples * (local - params)
        params = params + total / sum(2 * size for size in SIZES)
        _assert_close(state.global_model_weights, params)


def test_a_schedule_counts_rounds_or_local_steps() -> None:
    with pytest.raises(
        ConfigError, match="a schedule cannot count 'epoch'; choose by=round or by=local-"
    ):
        optimizers.schedule_learning_rate(optimizers.sgd(0.1), "linear-warmup", by="epoch")


def test_the_running_mean_of_weights_is_what_is_evaluated() -> None:
    process = _process(replace(_build("fedavg"), ema_decay=0.9))
    state, clients = process.initialize(), _clients()
    mean = np.zeros(len(state.global_model_weights))
    for num_updates in range(4):
        state = process.next(state, clients).state
        share = 1 - min(0.9, (1 + num_updates) / (10 + num_updates))
        mean = mean - share * (mean - state.global_model_weights)
        np.testing.assert_allclose(state.evaluated_weights, mean, rtol=1e-6, atol=1e-7)
    before = state.evaluated_weights
    empty = [each.without_examples() for each in clients]
    state = process.next(state, empty).state  # this round is rejected
    assert state.evaluated_weights.tobytes() == before.tobytes()
    plain = _run(_build("fedavg"), clients, 4)
    assert state.global_model_weights.tobytes() == plain.tobytes()
    joined = process.model.layout.join(process.get_model_weights(state).trainable)
    assert joined.tobytes() == before.tobytes()
    fresh = process.set_model_weights(state, process.get_model_weights(state))
    assert fresh.evaluated_weights.tobytes() == fresh.global_model_weights.tobytes()
