"""MixUp: mixed batches and the training on them, against a slow reference in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning
from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, client_key
from fedcli.datasets.batch_plan import FULL, BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models import layers
from fedcli.models.augmentation import augmenting, with_input_layers
from fedcli.models.layer_graphs import functional
from fedcli.models.layers import Spec
from fedcli.models.layers.contract import KERAS_READERS
from fedcli.models.layers.keras_options import Options
from fedcli.models.model import Model, sequential
from fedcli.settings.options import resolve
from fedcli.settings.tables import find_augmentation
from tests.kit import reference_net
from tests.kit.mixup_oracle import mixing
from tests.kit.toy_engine import ToyEngine

pytestmark = pytest.mark.numeric

Vector = NDArray[np.float64]
# By client: two batches of 5 and one of 1; two batches of 5; one example; none; three examples.
SIZES, BATCH, SEED, RATE, ALPHA, NUM_CLASSES = (11, 10, 1, 0, 3), 5, 4, 0.2, 0.8, 3
SHAPE = (9, 8, 3)
INPUTS = [layers.RandomCrop(8, 8, 2), layers.RandomFlip(), layers.ImageStandardization()]
DENSE = [layers.Flatten(), layers.Dense(NUM_CLASSES)]
# These layers have no kinks, where a rounding error would change the slope.
CONVOLUTION = [layers.Conv2D(4, 3, activation="tanh"), *DENSE]
NORM = [layers.Conv2D(4, 3), layers.BatchNorm(), layers.Activation("tanh"), *DENSE]
# Batches of 11 pass through this network in parts of 4 examples.
WIDE_SHAPE = (24, 24, 1)
WIDE = [
    layers.Conv2D(64, 3, padding="same", activation="tanh"),
    layers.Conv2D(128, 3, padding="same", activation="tanh"),
    layers.GlobalAveragePool2D(),
    layers.Dense(NUM_CLASSES),
]


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.2, 1.0, 7.5, 1e6])
def test_draws_follow_their_slow_twin(alpha: float) -> None:
    for visit, num_rows in ((0, 0), (0, 1), (7, 2), (19, 33), (2**31, 200)):
        key = StreamKey(1, 2**63 + 5, 3, Purpose.MIXUP, 2)
        share, partners = native.mixup_draw(alpha, key, visit, num_rows)
        wanted_share, wanted_partners = mixing(alpha, key, visit, num_rows)
        assert share == pytest.approx(wanted_share, rel=1e-6, abs=1e-7)
        assert partners.tolist() == wanted_partners


def test_a_wrong_alpha_is_refused_by_the_core() -> None:
    for alpha in (0.0, 5e-324, -1.0, 1e7, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give a number from 1e-6 to 1e6"):
            native.mixup_draw(alpha, StreamKey(1, 2, 3, Purpose.MIXUP, 0), 0, 4)


# ---- Training ------------------------------------------------------------------------------------


def clients(
    plan: BatchPlan, shape: tuple[int, ...] = SHAPE, sizes: Sequence[int] = SIZES
) -> list[BatchedDataset]:
    generator = np.random.default_rng(8)
    made = []
    for number, size in enumerate(sizes):
        pixels = generator.random((size, *shape), np.float32)
        labels = generator.integers(0, NUM_CLASSES, size, dtype=np.int32)
        client = from_arrays(pixels, labels, client_id=f"c{number}").client
        made.append(BatchedDataset(client, plan, SEED))
    return made


def mixed_model(inputs: Sequence[Spec], own: Sequence[Spec], shape: tuple[int, ...]) -> Model:
    return sequential([*inputs, layers.MixUp(ALPHA), *own], shape, seed=3)


def algorithm(
    name: str = "fedavg", weight_decay: float = 0.0, weighting: str = "num-examples"
) -> Any:
    return algorithms.build(
        name,
        replace(optimizers.sgd(RATE), weight_decay=weight_decay),
        optimizers.sgd(1.0),
        weighting=weighting,
        aggregator=aggregators.build("mean"),
    )


def trained(
    model: Model,
    cohort: Sequence[BatchedDataset],
    engine: Engine | None = None,
    method: Any = None,
    **loss: Any,
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Returns the weights and the metrics of two rounds."""
    made = method or algorithm()
    process = learning.build_process(made, model, engine=engine, num_clients=len(cohort), **loss)
    state, metrics = process.initialize(), []
    for _ in range(2):
        output = process.next(state, cohort)
        state = output.state
        metrics.append(output.metrics["client_work"]["train"])
    return state.global_model_weights, metrics


def mixed_batches(
    model: Model, dataset: BatchedDataset, round_num: int
) -> Iterator[tuple[Vector, NDArray[np.int64], NDArray[np.int64], float]]:
    """Yields each batch: mixed images, own labels, partners' labels, the share of an own image."""
    visit = 0
    id_key = client_key(dataset.client.client_id)
    keys = [
        StreamKey(SEED, id_key, round_num, purpose, 0)
        for purpose in (Purpose.DROPOUT, Purpose.MIXUP)
    ]
    shape = next(layer.out_shape for layer in model.layout.layers if layer.kind == "mix_up")
    table = (model.layout.core_rows(), model.layout.num_params)
    for batch in dataset.in_round(round_num):
        x = native.run_inputs(*table, batch["x"], keys[0], visit).astype(np.float64)
        y = batch["y"].ravel().astype(np.int64)
        share, partners = mixing(ALPHA, keys[1], visit, len(y))
        x = share * x + (1 - share) * x[partners]
        yield x.reshape(len(y), *shape), y, y[partners], share
        visit += len(y)


def expected_rounds(
    model: Model, own: Sequence[Spec], cohort: Sequence[BatchedDataset]
) -> tuple[Vector, list[dict[str, float]]]:
    """The weights and the metrics of two rounds of federated averaging, in float64."""
    shape = next(layer.out_shape for layer in model.layout.layers if layer.kind == "mix_up")
    layout = sequential(own, shape).layout
    params, metrics = model.initial_params.astype(np.float64), []
    for round_num in range(2):
        total, num_visits = np.zeros_like(params), 0
        loss, num_correct = 0.0, 0
        for dataset in cohort:
            local, size = params.copy(), 0
            for x, y, other, share in mixed_batches(model, dataset, round_num):
                scores = [reference_net.score(layout, local, (x, each), []) for each in (y, other)]
                shares = (share, 1 - share)
                loss += sum(s * each.loss_sum for s, (each, _) in zip(shares, scores, strict=True))
                num_correct += scores[0][0].num_correct
                moved = reference_net.moved_statistics(layout, local, (x, y), [])
                for part, (_, gradient) in zip(shares, scores, strict=True):
                    local = local - RATE * part * gradient
                local[layout.num_trained :] = moved
                size += len(y)
            total += size * (local - params)
            num_visits += size
        params = params + total / num_visits
        metrics.append({"loss": loss / num_visits, "accuracy": num_correct / num_visits})
    return params, metrics


def check_rounds(model: Model, own: Sequence[Spec], cohort: Sequence[BatchedDataset]) -> None:
    found, metrics = trained(model, cohort, ThreadEngine(2))
    wanted, wanted_metrics = expected_rounds(model, own, cohort)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    for one, other in zip(metrics, wanted_metrics, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["sparse_categorical_accuracy"] == pytest.approx(other["accuracy"], abs=1e-12)


@pytest.mark.parametrize("inputs", [[], INPUTS], ids=["alone", "after-others"])
@pytest.mark.parametrize("own", [DENSE, CONVOLUTION, NORM], ids=["dense", "convolution", "norm"])
def test_rounds_follow_the_formulas_in_float64(inputs: list[Spec], own: list[Spec]) -> None:
    plan = BatchPlan(epochs=2, batch_size=BATCH, shuffle_buffer=FULL)
    check_rounds(mixed_model(inputs, own, SHAPE), own, clients(plan))


@pytest.mark.parametrize("pipeline", ["shuffle-repeat", "per-epoch"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_of_any_size_follow_them(pipeline: str, batch_size: int) -> None:
    plan = BatchPlan(epochs=2, batch_size=batch_size, shuffle_buffer=FULL, pipeline=pipeline)
    check_rounds(mixed_model(INPUTS[:2], DENSE, SHAPE), DENSE, clients(plan))


def test_batches_in_parts_follow_them() -> None:
    cohort = clients(BatchPlan(batch_size=11), WIDE_SHAPE, (13, 11))
    model = mixed_model([layers.RandomCrop(24, 24, 2), layers.RandomFlip()], WIDE, WIDE_SHAPE)
    check_rounds(model, WIDE, cohort)
    expected = trained(model, cohort, ThreadEngine(1))
    for threads in (2, 7):
        found = trained(model, cohort, ThreadEngine(threads))
        assert found[0].tobytes() == expected[0].tobytes()
        assert found[1] == expected[1]


def test_an_example_alone_is_mixed_with_itself() -> None:
    plan = BatchPlan(epochs=3, batch_size=1)
    mixed, _ = trained(mixed_model([], DENSE, SHAPE), clients(plan))
    plain, _ = trained(sequential(DENSE, SHAPE, seed=3), clients(plan))
    np.testing.assert_allclose(mixed, plain, rtol=0, atol=1e-6)


def test_losses_are_smoothed_and_weighted_as_well() -> None:
    """One step of softmax regression from its initial parameters, by the formula."""
    smoothing, decay, weights = 0.3, 0.05, np.array([0.5, 2.0, 0.0])
    plan = BatchPlan(batch_size=100)
    (dataset,) = clients(plan, sizes=(12,))
    model = mixed_model(INPUTS, DENSE, SHAPE)
    start = model.initial_params.astype(np.float64)
    (batch,) = mixed_batches(model, dataset, 0)
    x, y, other, share = batch
    flat = np.column_stack([x.reshape(len(y), -1), np.ones(len(y))])
    probabilities = reference_net.softmax(flat @ start.reshape(-1, NUM_CLASSES))
    targets = np.zeros_like(probabilities)
    for part, labels in ((share, y), (1 - share, other)):
        hard = np.eye(NUM_CLASSES)[labels]
        smoothed = (1 - smoothing) * hard + smoothing / NUM_CLASSES
        targets += part * weights[labels][:, np.newaxis] * smoothed
    loss = -(targets * np.log(probabilities)).sum(axis=1).mean()
    error = targets.sum(axis=1, keepdims=True) * probabilities - targets
    gradient = (flat.T @ error).ravel() / len(y) + decay * start
    process = learning.build_process(
        algorithm(weight_decay=decay), model, label_smoothing=smoothing, class_weights=weights
    )
    output = process.next(process.initialize(), [dataset])
    np.testing.assert_allclose(
        output.state.global_model_weights, start - RATE * gradient, rtol=0, atol=1e-6
    )
    assert output.metrics["client_work"]["train"]["loss"] == pytest.approx(loss, rel=1e-6)


def test_threads_and_engines_change_no_byte() -> None:
    plan = BatchPlan(epochs=2, batch_size=BATCH)
    for own in (DENSE, CONVOLUTION, NORM):
        model = mixed_model(INPUTS, own, SHAPE)
        expected = trained(model, clients(plan), ThreadEngine(1))
        for engine in (ThreadEngine(2), ThreadEngine(7), ToyEngine()):
            found = trained(model, clients(plan), engine)
            assert found[0].tobytes() == expected[0].tobytes()
            assert found[1] == expected[1]


def test_rounds_and_copies_of_a_client_draw_anew() -> None:
    model = mixed_model([], DENSE, SHAPE)
    still = algorithms.build(
        "fedavg",
        optimizers.sgd(1e-30),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )
    (dataset,) = clients(BatchPlan(batch_size=6, shuffle_buffer=1), sizes=(6,))
    _, metrics = trained(model, [dataset], method=still)
    _, twice = trained(model, [dataset, dataset], method=still)
    assert len({each["loss"] for each in (*metrics, *twice)}) == 4


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "mime", "mime-lite", "fednova", "feddyn"])
def test_algorithms_train_on_mixed_batches(name: str) -> None:
    cohort = clients(BatchPlan(epochs=2, batch_size=BATCH))
    model, plain = mixed_model([], CONVOLUTION, SHAPE), sequential(CONVOLUTION, SHAPE, seed=3)
    method = algorithm(name, weighting="uniform")
    found, metrics = trained(model, cohort, ThreadEngine(1), method)
    again, _ = trained(model, cohort, ThreadEngine(7), method)
    unmixed, _ = trained(plain, cohort, ThreadEngine(1), method)
    assert found.tobytes() == again.tobytes()
    assert np.isfinite(found).all()
    assert np.abs(found - unmixed).max() > 1e-4
    assert all(np.isfinite(each["loss"]) for each in metrics)


def test_full_gradients_are_of_all_mixed_batches() -> None:
    """FedSGD sends the mean gradient over all epochs, each of which is mixed in another way."""
    plan = BatchPlan(epochs=3, batch_size=BATCH)
    (dataset,) = clients(plan, sizes=(12,))
    model = mixed_model(INPUTS, CONVOLUTION, SHAPE)
    layout = sequential(CONVOLUTION, (8, 8, 3)).layout
    params = model.initial_params.astype(np.float64)
    total, num_visits = np.zeros_like(params), 0
    for x, y, other, share in mixed_batches(model, dataset, 0):
        for part, labels in ((share, y), (1 - share, other)):
            total += part * len(y) * reference_net.score(layout, params, (x, labels))[1]
        num_visits += len(y)
    method = algorithms.build(
        "fedsgd",
        None,
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )
    process = learning.build_process(method, model)
    output = process.next(process.initialize(), [dataset])
    wanted = params - total / num_visits
    np.testing.assert_allclose(output.state.global_model_weights, wanted, rtol=0, atol=1e-6)


def test_both_gradients_of_a_mime_step_are_of_the_same_mixed_batch() -> None:
    """In the first step the two cancel; the mean gradient is left, so the step is FedAvg's."""
    (dataset,) = clients(BatchPlan(batch_size=100), sizes=(12,))
    model = mixed_model(INPUTS, CONVOLUTION, SHAPE)
    process = learning.build_process(algorithm("mime"), model)
    found = process.next(process.initialize(), [dataset]).state.global_model_weights
    plain = learning.build_process(algorithm(), model)
    wanted = plain.next(plain.initialize(), [dataset]).state.global_model_weights
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_evaluation_mixes_nothing() -> None:
    plan = BatchPlan(batch_size=4)
    metrics = []
    for model in (mixed_model([], CONVOLUTION, SHAPE), sequential(CONVOLUTION, SHAPE, seed=3)):
        process = learning.build_fed_eval(model)
        output = process.next(process.initialize(), clients(plan))
        metrics.append(output.metrics["client_work"]["eval"]["current_round_metrics"])
    assert metrics[0] == metrics[1]


# ---- Where it acts, and mistakes -----------------------------------------------------------------


def augmented(name: str, model: Model) -> list[str]:
    """Returns the kinds of layers of a model that follows an augmentation."""
    specs = augmenting(name, resolve(find_augmentation(name), {}), SHAPE)
    return [each.kind for each in with_input_layers(specs, model, SHAPE).layout.layers]


def test_it_follows_all_other_input_layers() -> None:
    plain = sequential(CONVOLUTION, SHAPE)
    normalising = sequential([layers.ImageStandardization(), *CONVOLUTION], SHAPE)
    assert augmented("mixup", plain)[:2] == ["mix_up", "conv2d"]
    assert augmented("flip+mixup", plain)[:3] == ["random_flip", "mix_up", "conv2d"]
    kinds = ["random_flip", "image_standardization", "mix_up", "conv2d"]
    assert augmented("flip+mixup", normalising)[:4] == kinds


def test_all_readers_of_the_image_read_the_mixed_one() -> None:
    image = layers.Input()
    x = layers.Conv2D(3, 3, padding="same", name="first")(image)
    x = layers.GlobalAveragePool2D()(layers.Add()(x, image))
    layout = with_input_layers(
        [layers.MixUp()], functional(layers.Dense(2)(x), SHAPE), SHAPE
    ).layout
    assert layout.sources[:3] == ((0,), (1,), (2, 1))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([layers.MixUp(), layers.RandomFlip()], "random_flip: it follows mix_up, which mixes the"),
        ([layers.MixUp(), layers.MixUp()], "mix_up_1: it follows mix_up, which mixes the"),
        ([layers.Conv2D(3, 1), layers.MixUp()], "changes the image itself; put it at the start"),
        ([layers.Flatten(), layers.MixUp()], "it takes images"),
        ([layers.MixUp(0.0)], r"alpha 0\.0: choose a finite number from 0\.001 to 1000"),
        ([layers.MixUp(float("nan"))], "alpha nan: choose a finite number from"),
    ],
)
def test_wrong_layers(specs: list[Spec], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sequential([*specs, *DENSE], SHAPE)


def test_names_after_it_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        find_augmentation("crop+mixup+flip")
    wanted = "--augment crop+mixup+flip: mixup acts after all others; write crop+flip+mixup"
    assert str(caught.value) == wanted


def test_the_layer_of_keras_is_refused() -> None:
    options = Options("MixUp", {"config": {"name": "mixed", "alpha": 0.2}})
    with pytest.raises(ConfigError, match="mixes images without their labels; save the model with"):
        KERAS_READERS["MixUp"](options, SHAPE, "mixed")
