"""Moving statistics of batch norms in rounds: what moves, averages, freezes or refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning, models
from fedcli.core.native import StepKind
from fedcli.core.seeds import StreamKey
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.aggregators.own import OwnAggregator
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.secure_sums.one_sum import SecureSum
from fedcli.learning.updates.compression import build as build_compression
from fedcli.models.batch_norms import with_frozen_statistics
from fedcli.models.layers import Activation, BatchNorm, Conv2D, Dense, Dropout, GroupNorm
from fedcli.models.model import Model
from fedcli.runs.trained import load_trained
from fedcli.settings import tables
from tests.kit import reference, reference_net
from tests.kit.clients import make_clients
from tests.kit.training import trained

pytestmark = pytest.mark.numeric

SHAPE = (5, 4)
SIZES = (17, 1, 0, 40)
PLAN = BatchPlan(epochs=2, batch_size=6, shuffle_buffer=1)


def make_model(frozen: bool = False) -> Model:
    specs = [
        *(Conv2D(5, 3, padding="same"), BatchNorm(0.8, frozen=frozen), Activation("tanh")),
        *(Dense(6), BatchNorm(0.6, frozen=frozen), Activation("tanh"), Dense(3)),
    ]
    return models.sequential(specs, SHAPE, seed=4)


def clients() -> list[BatchedDataset]:
    return make_clients(SIZES, SHAPE, plan=PLAN)


def moving(model: Model, params: NDArray[Any]) -> NDArray[Any]:
    return params[model.layout.num_trained :]


def by_reference(model: Model, client: BatchedDataset) -> NDArray[np.float64]:
    """A client's parameters after local training in float64, by SGD of rate 0.1."""
    batches = [(each["x"], each["y"][:, 0]) for each in client.in_round(0)]
    cohort = [reference_net.Client(batches, KEY)]
    params = model.initial_params.astype(np.float64)
    return reference_net.fedavg_round(model.layout, params, cohort, reference.Sgd(0.1))[0]


KEY = StreamKey(0, 0, 0, 0, 0)  # there is no dropout


def process_of(model: Model, name: str = "fedavg", num_threads: int = 2, **parts: Any) -> Any:
    entry = tables.ALGORITHMS[name]
    algorithm = algorithms.build(
        name,
        optimizers.sgd(0.1) if entry.has_local_steps else None,
        parts.pop("server", optimizers.sgd(1.0)),
        weighting=entry.weightings[0],
        aggregator=parts.pop("aggregator", aggregators.build("mean")),
    )
    engine = ThreadEngine(num_threads)
    return learning.build_process(algorithm, model, engine=engine, num_clients=4, **parts)


@pytest.mark.parametrize(
    "server", [optimizers.sgd(0.5, momentum=0.9), optimizers.adam(0.1), optimizers.adafactor(0.1)]
)
def test_the_server_optimizer_does_not_act_on_moving_statistics(server: Any) -> None:
    model = make_model()
    process = process_of(model, server=server)
    state = process.next(process.initialize(), clients()).state
    each = [by_reference(model, client) for client in clients() if len(client.client)]
    shares = np.array([size for size in SIZES if size]) / sum(SIZES)
    mean = sum(share * own for share, own in zip(shares, each, strict=True))
    found = moving(model, state.global_model_weights)
    np.testing.assert_allclose(found, moving(model, mean), rtol=1e-5, atol=1e-5)
    trained = state.global_model_weights[: model.layout.num_trained]
    assert (
        np.abs(trained - mean[: model.layout.num_trained]).max() > 1e-3
    )  # the optimizer changed the trained parameters


def test_federated_sgd_takes_gradients_and_moves_statistics() -> None:
    model = make_model()
    process = process_of(model, "fedsgd", server=optimizers.sgd(0.1))
    client = make_clients([12], SHAPE, plan=BatchPlan(epochs=2, batch_size=12, shuffle_buffer=1))
    state = process.next(process.initialize(), client).state
    at = model.initial_params.astype(np.float64)
    batch, again = [(each["x"], each["y"][:, 0]) for each in client[0].in_round(0)]
    _, gradient = reference_net.score(model.layout, at, batch, [])
    for one in (batch, again):
        moving(model, at)[:] = reference_net.moved_statistics(model.layout, at, one, [])
    expected = at - 0.1 * gradient  # the gradient is 0 for moving statistics
    np.testing.assert_allclose(state.global_model_weights, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_clients", [1, 4])  # with one client, threads share its work
@pytest.mark.parametrize("client", ["sgd", "adam", "clipped", "adafactor"])
def test_threads_change_no_bit(num_clients: int, client: str) -> None:
    rows: dict[str, Any] = {
        "sgd": ((StepKind.SGD, (0.1, 0.0, 0.0)),),
        "adam": optimizers.adam(0.01).client_rows(()),
        "clipped": ((StepKind.CLIP, (0.1,)), (StepKind.SGD, (0.1, 0.9, 0.0))),
        "adafactor": optimizers.adafactor(0.01).client_rows(()),
    }
    model = make_model()
    task = ClientTask(tuple(rows[client]), model.initial_params, round_num=0, weighting="uniform")
    cohort = make_clients(SIZES[:num_clients], SHAPE, plan=PLAN)
    found = [
        ThreadEngine(num_threads).train(model.layout, task, cohort) for num_threads in (1, 2, 7)
    ]
    assert len({each.delta_sum.tobytes() for each in found}) == 1
    assert np.abs(moving(model, found[0].delta_sum)).min() > 0


@pytest.mark.parametrize("terms", ["proximal", "decay"])
def test_terms_of_the_loss_do_not_change_moving_statistics(terms: str) -> None:
    kinds = {"proximal": StepKind.PROXIMAL, "decay": StepKind.DECAY}
    model, (client, *_) = make_model(), clients()
    deltas = []
    for rows in ((), ((kinds[terms], (0.5,)),)):
        task = ClientTask(
            (*rows, (StepKind.SGD, (0.0, 0.0, 0.0))), model.initial_params, 0, "uniform"
        )
        deltas.append(ThreadEngine(1).train(model.layout, task, [client]).delta_sum)
    np.testing.assert_array_equal(deltas[0], deltas[1])
    assert not deltas[0][: model.layout.num_trained].any()


def test_pixels_that_are_the_same_in_all_images_change_nothing() -> None:
    """The core then trains a narrower first layer, which shifts moving statistics in memory."""
    specs = [Dense(6), BatchNorm(0.5), Activation("tanh"), Dense(3)]
    model = models.sequential(specs, SHAPE, seed=4)
    blank = lambda _, pixels: pixels.__setitem__((slice(None), slice(0, 4)), 0.25)  # noqa: E731
    cohort = make_clients([20], SHAPE, plan=PLAN, change=blank)
    task = ClientTask(
        ((StepKind.SGD, (0.1, 0.0, 0.0)),), model.initial_params, round_num=0, weighting="uniform"
    )
    trained = model.initial_params + ThreadEngine(1).train(model.layout, task, cohort).delta_sum
    np.testing.assert_allclose(trained, by_reference(model, cohort[0]), rtol=1e-5, atol=1e-5)


def test_frozen_statistics_stay_and_are_used_in_training() -> None:
    plain = make_model()
    model = with_frozen_statistics(plain)
    assert model.layout.layers == make_model(frozen=True).layout.layers
    process = process_of(model)
    state = process.next(process.initialize(), clients()[:1]).state
    expected = by_reference(model, clients()[0])
    np.testing.assert_allclose(state.global_model_weights, expected, rtol=1e-5, atol=1e-5)
    before = moving(model, model.initial_params)
    np.testing.assert_array_equal(moving(model, state.global_model_weights), before)


def test_a_named_model_of_a_run_is_frozen_after_the_run(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run",
        data="synthetic-shapes",
        model="resnet20-bn",
        batch_norm="frozen",
        clients="1",
        rounds=1,
        max_examples=5,
    )
    with load_trained(run, 1) as loaded:
        norms = [each for each in loaded.model.layout.layers if each.kind == "batch_normalization"]
    assert norms
    assert all(each.is_frozen for each in norms)


def test_models_without_batch_norm_have_nothing_to_freeze() -> None:
    model = models.sequential([Dense(3)], SHAPE)
    with pytest.raises(ConfigError, match="has no layer BatchNorm"):
        with_frozen_statistics(model)


def test_every_client_may_keep_its_own_statistics() -> None:
    model = make_model()
    process = process_of(model, "local-only")
    state = process.next(process.initialize(), clients()).state
    for number in (0, 3):
        own = state.weights_for(f"client {number}")
        expected = by_reference(model, clients()[number])
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_split_into_trained_and_not_trained() -> None:
    model = make_model()
    process = process_of(model)
    state = process.next(process.initialize(), clients()).state
    weights = process.get_model_weights(state)
    assert [each.shape for each in weights.non_trainable] == [(5,), (5,), (6,), (6,)]
    assert len(weights.trainable) == len(model.layout.trained_shapes)
    again = process.set_model_weights(process.initialize(), weights)
    np.testing.assert_array_equal(again.global_model_weights, state.global_model_weights)


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "mime", "mime-lite", "fednova"])
def test_algorithms_that_do_more_than_average_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"statistics can only be averaged, but algorithm {name}"):
        process_of(make_model(), name)
    process_of(models.sequential([Dense(4), GroupNorm(2), Dropout(0.5), Dense(3)], SHAPE), name)


@pytest.mark.parametrize("name", sorted(tables.AGGREGATORS))
def test_aggregators_that_do_more_than_average_are_refused(name: str) -> None:
    aggregator = aggregators.build(name)
    if name in ("mean", "median", "trimmed-mean", "meamed"):
        process = process_of(make_model(), aggregator=aggregator)
        state = process.next(process.initialize(), clients()).state
        assert (moving(process.model, state.global_model_weights)[5:10] > 0).all()
        return
    with pytest.raises(ConfigError, match=f"can only be averaged, but aggregator {name} does"):
        process_of(make_model(), aggregator=aggregator)


class OwnMean:
    """A user's aggregator, which is not called here."""

    averages_coordinates = True


def test_an_own_aggregator_may_say_that_it_averages() -> None:
    process_of(make_model(), aggregator=OwnAggregator(OwnMean(), "own.py"))
    with pytest.raises(ConfigError, match="can only be averaged, but the aggregator"):
        process_of(make_model(), aggregator=OwnAggregator(object(), "own.py"))


class OwnBoundedMean:
    """A user's aggregator with a name for messages."""

    selected_by = "the bounded mean"


def test_an_own_aggregator_may_say_what_messages_call_it() -> None:
    with pytest.raises(ConfigError, match="but the bounded mean does more than average"):
        process_of(make_model(), aggregator=OwnAggregator(OwnBoundedMean(), "bounded.py"))


def test_stages_that_change_updates_are_refused() -> None:
    stage = build_compression("top-k", {"fraction": 0.1}, num_threads=1)
    expected = "averaged, but compress does more than average: leave it out"
    with pytest.raises(ConfigError, match=expected):
        process_of(make_model(), stages=[stage])


def test_a_refusal_names_the_option_that_selects_the_aggregator() -> None:
    secured = SecureSum(aggregators.build("mean"))
    with pytest.raises(ConfigError, match="can only be averaged, but secure_sum does more"):
        process_of(make_model(), aggregator=secured)
