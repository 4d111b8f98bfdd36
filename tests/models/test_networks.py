"""Whole rounds of every kind of layer, from pixels to metrics, against a float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import learning, models
from fedcli.core import native
from fedcli.core.native import StepKind, StepRow
from fedcli.core.seeds import Purpose, StreamKey, client_key
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.learning import optimizers
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layers import (
    ELU,
    IMAGE,
    Activation,
    Add,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    SeparableConv2D,
    Spec,
    ZeroPad2D,
)
from fedcli.models.layout import ParamLayout
from fedcli.models.model import Model
from tests.kit import one_step, reference, reference_net

pytestmark = pytest.mark.numeric

NUM_CLASSES = 4
SEED = 5
SIZES = (13, 1, 22)

STACKS: dict[str, tuple[tuple[int, ...], list[Spec]]] = {
    "cnn-mcmahan's": (
        (12, 12),
        [
            Conv2D(20, 5, padding="same", activation="relu"),
            MaxPool2D(),
            Conv2D(33, 5, padding="same", activation="relu"),
            MaxPool2D(),
            Flatten(),
            Dense(40, "relu"),
            Dense(NUM_CLASSES),
        ],
    ),
    "cnn-reddi's": (
        (10, 10),
        [
            Conv2D(18, 3, activation="relu"),
            Conv2D(17, 3, activation="relu"),
            MaxPool2D(),
            Dropout(0.25),
            Flatten(),
            Dense(19, "relu"),
            Dropout(0.5),
            Dense(NUM_CLASSES),
        ],
    ),
    "average and tanh": (
        (9, 7, 3),
        [
            Conv2D(5, (3, 2), (2, 1), "same", "tanh"),
            AveragePool2D(2, 2, "same"),
            Conv2D(6, (2, 3), use_bias=False),
            Activation("sigmoid"),
            Dense(7, "tanh", use_bias=False),
            Dense(NUM_CLASSES, use_bias=False),
        ],
    ),
    "group norm": (
        (8, 8, 3),
        [
            Conv2D(8, 3, padding="same", use_bias=False),
            GroupNorm(4),
            Activation("relu"),
            MaxPool2D(3, 2, "same"),
            GroupNorm(2, 0.1, center=False),
            Conv2D(18, 3, 2, "same"),
            # Each group has 4 values; with 1, the output and all gradients before it would be 0.
            GroupNorm(-1, 0.1, scale=False),
            Dense(NUM_CLASSES),
        ],
    ),
    "depthwise": (
        (9, 8, 3),
        [
            DepthwiseConv2D(3, 1, "same", "sigmoid"),
            Conv2D(18, 1, use_bias=False),
            DepthwiseConv2D((5, 4), 2, "same", "tanh", use_bias=False),
            DepthwiseConv2D(2),
            Dense(NUM_CLASSES),
        ],
    ),
    "pixels dropped first": (
        (6, 6),
        [Dropout(0.2), Dense(18, "sigmoid"), Dropout(0.4), Dense(NUM_CLASSES)],
    ),
    "one convolution": ((5, 5), [Conv2D(3, 5), Dense(NUM_CLASSES)]),
    "convolution alone": ((5, 5), [Conv2D(NUM_CLASSES, 5)]),
    "convolution last": (
        (9, 8, 2),
        [Conv2D(18, 3, activation="relu"), MaxPool2D(2), Conv2D(NUM_CLASSES, 3), Flatten()],
    ),
    "average of the whole image last": (
        (9, 8, 2),
        [Conv2D(6, 3, 2, activation="tanh"), Conv2D(NUM_CLASSES, 1), AveragePool2D((4, 3))],
    ),
    "greatest of the whole image last": ((4, 4), [Conv2D(NUM_CLASSES, 3), MaxPool2D(2)]),
    "convolution on units, then norm last": (
        (4, 4),
        [Conv2D(17, 4), Conv2D(NUM_CLASSES, 1, activation="sigmoid"), GroupNorm(1)],
    ),
    "smooth activations": (
        (6, 5, 2),
        [
            Activation("silu"),
            Conv2D(17, 3, padding="same", activation="gelu"),
            AveragePool2D(2),
            Conv2D(9, 2, activation="gelu_tanh"),
            GroupNorm(3),
            Activation("silu"),
            Dense(18, "gelu"),
            Dense(9, "silu"),
            Dense(NUM_CLASSES),
        ],
    ),
    "activations with kinks": (
        (5, 4),
        [
            Conv2D(5, 3, padding="same"),
            LeakyReLU(0.1),
            AveragePool2D(2),
            Dense(9, "hard_silu"),
            Dense(9, "relu6"),
            Dense(7),
            ELU(0.5),
            Dense(NUM_CLASSES),
        ],
    ),
    "separable convolutions, padding, layer norms": (
        (6, 7, 3),
        [
            ZeroPad2D((1, 2, 0, 1)),
            SeparableConv2D(18, 3, 2, activation="tanh"),
            LayerNorm(),
            SeparableConv2D(9, 3, padding="same", activation="silu", use_bias=False),
            ZeroPad2D(1),
            LayerNorm(0.1, scale=False),
            Dense(17),
            LayerNorm(),
            Activation("sigmoid"),
            Dense(NUM_CLASSES),
        ],
    ),
    # No kinks: in networks of this depth, any data have values near a kink.
    "residual blocks": (
        (8, 7, 3),
        [
            Conv2D(8, 3, padding="same", use_bias=False),
            GroupNorm(4, name="start"),
            Activation("tanh", name="block"),
            Conv2D(8, 3, padding="same"),
            GroupNorm(2, 0.1),
            Add(name="sum", inputs=("group_normalization", "block")),
            Activation("tanh", name="wide"),
            Conv2D(18, 3, 2, "same"),
            Conv2D(18, 3, padding="same", name="main"),
            Conv2D(18, 1, 2, "same", name="shortcut", inputs=("wide",)),
            Add(name="sum_2", inputs=("main", "shortcut")),
            AveragePool2D((4, 4)),
            Dense(NUM_CLASSES),
        ],
    ),
    "sums of the image and of units": (
        (5, 4, 2),
        [
            Conv2D(2, 3, padding="same", name="conv"),
            Add(name="sum", inputs=("conv", IMAGE)),
            Dense(9, "tanh", name="units"),
            Dropout(0.2),
            Dense(9, name="more"),
            Add(inputs=("more", "units")),
            Activation("sigmoid"),
            Dense(NUM_CLASSES),
        ],
    ),
    "batch norms": (
        (6, 5, 3),
        [
            BatchNorm(0.5, scale=False),
            *(Conv2D(7, 3, padding="same", name="first"), BatchNorm(0.9), Activation("tanh")),
            *(Conv2D(7, 3, padding="same"), BatchNorm(0.8, 0.1, center=False, name="second")),
            *(Add(inputs=("second", "first")), Activation("tanh"), Conv2D(5, 2, 2)),
            *(BatchNorm(0.7, frozen=True), Dense(9), BatchNorm(0.6), Activation("tanh")),
            Dense(NUM_CLASSES),
        ],
    ),
    # Its convolutions have more than 65,536 parameters, so they are computed by batch.
    "wide residual block": (
        (6, 6, 3),
        [
            Conv2D(65, 3, padding="same", activation="tanh", name="first"),
            Conv2D(65, 3, padding="same"),
            GroupNorm(5),
            Activation("tanh"),
            Conv2D(65, 3, padding="same", name="second"),
            Add(inputs=("second", "first")),
            Activation("tanh"),
            AveragePool2D(2),
            Conv2D(40, 3, 2, "same", "tanh"),
            Dense(NUM_CLASSES),
        ],
    ),
    "dropout last": ((4, 4), [Dense(18, "relu"), Dense(NUM_CLASSES), Dropout(0.3)]),
}


def _a_model(name: str) -> Model:
    shape, specs = STACKS[name]
    model = models.sequential(specs, shape, NUM_CLASSES, seed=1)
    # Biases and betas of 0 and gammas of 1 would hide faults.
    noise = np.random.default_rng(7).normal(0, 0.1, model.layout.num_params)
    return Model(model.name, model.layout, (model.initial_params + noise).astype(np.float32))


def _clients(shape: tuple[int, ...], data_seed: int = 2) -> list[BatchedDataset]:
    random = np.random.default_rng(data_seed)
    return [
        from_arrays(
            random.random((size, *shape), dtype=np.float32),
            random.integers(0, NUM_CLASSES, size, dtype=np.int32),
            client_id=f"client {size}",
        ).client.preprocess(epochs=2, shuffle_buffer=10, batch_size=8, seed=SEED)
        for size in SIZES
    ]


def _reference_client(dataset: BatchedDataset, round_num: int) -> reference_net.Client:
    client = dataset.client
    order = list(dataset.order(round_num, 0))
    key = StreamKey(SEED, client_key(client.client_id), round_num, Purpose.DROPOUT, 0)
    batches = reference.make_batches(client.pixels, client.labels, order, 8)
    return reference_net.Client(batches, key)


@dataclass(frozen=True)
class NumpyForm:
    """The NumPy implementation of an optimizer, in float64; test_optimizers.py checks it."""

    optimizer: optimizers.Optimizer

    def start(self, params: NDArray[np.float64]) -> dict[str, Any]:
        return self.optimizer.init(params)

    def step(
        self, params: NDArray[np.float64], state: dict[str, Any], gradient: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        updates, state = self.optimizer.update(gradient, state, params)
        return params + updates, state


# Some gradients are 0 but for rounding; these epsilons of Adafactor and Adam hide the errors.
ADAFACTOR = optimizers.adafactor(0.01, epsilon_1=1e-6)
OPTIMIZERS: dict[str, tuple[optimizers.Optimizer, Callable[[ParamLayout], Any]]] = {
    "sgd": (optimizers.sgd(0.05), lambda _: reference.Sgd(0.05)),
    "momentum": (optimizers.sgd(0.02, momentum=0.9), lambda _: reference.Sgd(0.02, momentum=0.9)),
    "adam": (optimizers.adam(1e-3, epsilon=1e-3), lambda _: reference.Adam(1e-3, epsilon=1e-3)),
    "adafactor": (ADAFACTOR, lambda layout: NumpyForm(ADAFACTOR.for_tensors(layout.shapes))),
    "clipped adafactor": (
        optimizers.clip_gradients(ADAFACTOR, 0.5),
        lambda layout: NumpyForm(
            optimizers.clip_gradients(ADAFACTOR, 0.5).for_tensors(layout.shapes)
        ),
    ),
}


# ReLU and max pooling give the loss kinks, where its gradient jumps. By rounding, float32 and
# float64 may be on different sides of a kink; then their gradients differ by the contribution of
# one position, and both are right. (With data seed 2 a ReLU of McMahan's CNN has the input -5e-7 in
# float64 and 2e-7 in AVX2's float32, and a kernel's gradient jumps by 1.5e-2.) No tolerance can
# distinguish that from a fault, so all values of the data are, in float64, at least this far from
# every kink. The margin is three times 2.5e-6, the largest error of a ReLU's input in 200 images
# (by Winograd's convolutions; PyTorch's largest is 5e-7).
KINK_MARGIN = 7.5e-6
# Seeds of such data, 2 if there is no entry. After a `NearKinkError`, look for another seed.
DATA_SEEDS: dict[tuple[str, str], int] = {
    ("cnn-mcmahan's", "sgd"): 413,
    ("cnn-mcmahan's", "momentum"): 21,
    ("cnn-mcmahan's", "adam"): 348,
    ("cnn-mcmahan's", "clipped adafactor"): 74,
    ("cnn-mcmahan's", "adafactor"): 551,
    ("cnn-reddi's", "sgd"): 99,
    ("cnn-reddi's", "momentum"): 260,
    ("cnn-reddi's", "adam"): 10,
    ("cnn-reddi's", "adafactor"): 291,
    ("cnn-reddi's", "clipped adafactor"): 22,
    ("group norm", "adafactor"): 3,
    ("group norm", "clipped adafactor"): 3,
    ("convolution last", "momentum"): 8,
    ("convolution last", "adam"): 3,
    ("convolution last", "clipped adafactor"): 3,
}


@pytest.mark.parametrize("name", list(STACKS))
@pytest.mark.parametrize("clip", [(), ((StepKind.CLIP, (1e30,)),)], ids=["at once", "kept"])
def test_the_gradient_is_the_reference_s(name: str, clip: tuple[StepRow, ...]) -> None:
    """The core and the reference compute the gradient of one batch at the same parameters."""
    model = _a_model(name)
    params = model.initial_params.astype(np.float64)
    data_seeds, num_compared = iter(range(20, 30)), 0
    while num_compared < 3:
        # `StopIteration` fails the test if there are no more seeds
        drawn = one_step.draw(model, 8, next(data_seeds))
        batch, masks = drawn.batch, drawn.masks
        if reference_net.kink_distance(model.layout, params, batch, masks) < KINK_MARGIN:
            continue
        _, expected = reference_net.score(model.layout, params, batch, masks)
        found = one_step.gradient(model, drawn, 2, clip)
        for tensor in model.layout.tensors:
            if not tensor.is_trained:  # a moving statistic, which has no gradient
                continue
            own = slice(tensor.offset, tensor.offset + tensor.size)
            # Float32 in NumPy has errors of 2e-7 to 2e-6 of a tensor's largest value. A bias before
            # an instance norm has the gradient 0, computed with a rounding error of its terms.
            atol = 5e-6 * np.abs(expected[own]).max() + 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(
                found[own], expected[own], rtol=0, atol=atol, err_msg=tensor.name
            )
        num_compared += 1


@pytest.mark.parametrize("name", list(STACKS))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_rounds_of_any_network_follow_the_reference(name: str, optimizer: str) -> None:
    ours, reference_of = OPTIMIZERS[optimizer]
    model = _a_model(name)
    theirs = reference_of(model.layout)
    clients = _clients(model.layout.input_shape, DATA_SEEDS.get((name, optimizer), 2))
    process = learning.build_weighted_fed_avg(model, ours)
    state = process.initialize()
    params = state.global_model_weights.astype(np.float64)
    for round_num in range(2):
        result = process.next(state, clients)
        state = result.state
        cohort = [_reference_client(dataset, round_num) for dataset in clients]
        params, stats = reference_net.fedavg_round(
            model.layout, params, cohort, theirs, KINK_MARGIN
        )
        # Two rounds of at most ten local steps in float32 have errors of 1e-7 to 5e-7; parameters
        # are of order 1 and change by 1e-2 to 1e-1. Layers computed by batch use Winograd's
        # F(4x4, 3x3), whose error is ten times that of sums of products. A batch norm divides by
        # the deviation in the batch, which is small if the batch has few examples.
        atol = 1e-5 if name in ("wide residual block", "batch norms") else 2e-6
        np.testing.assert_allclose(state.global_model_weights, params, rtol=0, atol=atol)
        online = result.metrics["client_work"]["train"]
        assert online["num_examples"] == stats.num_examples
        assert online["loss"] == pytest.approx(stats.loss_sum / stats.num_examples, rel=2e-5)
        correct = online["sparse_categorical_accuracy"] * stats.num_examples
        assert correct == pytest.approx(stats.num_correct, abs=1e-6)


@pytest.mark.parametrize("num_clients", [1, 3])  # with one client, threads share its work
def test_adafactor_is_the_same_to_the_byte_for_any_number_of_threads(num_clients: int) -> None:
    model = _a_model("cnn-mcmahan's")
    clients = _clients(model.layout.input_shape)[:num_clients]
    found = set()
    for num_threads in (1, 2, 7):
        process = learning.build_weighted_fed_avg(
            model, ADAFACTOR, engine=ThreadEngine(num_threads)
        )
        found.add(process.next(process.initialize(), clients).state.global_model_weights.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("name", list(STACKS))
def test_evaluation_of_any_network_follows_the_reference_and_drops_nothing(name: str) -> None:
    model = _a_model(name)
    clients = _clients(model.layout.input_shape)
    evaluator = learning.build_fed_eval(model)
    metrics = evaluator.next(evaluator.initialize(), clients).metrics
    found = metrics["client_work"]["eval"]["current_round_metrics"]
    expected = reference.Stats()
    for dataset in clients:
        cohort = _reference_client(dataset, 0)
        for batch in cohort.batches:
            params = model.initial_params.astype(np.float64)
            expected.add(reference_net.score(model.layout, params, batch)[0])
    assert found["num_examples"] == expected.num_examples
    assert found["loss"] == pytest.approx(expected.loss_sum / expected.num_examples, rel=2e-5)


@pytest.mark.parametrize("name", list(STACKS))
def test_the_reference_s_gradient_is_the_slope_of_its_loss(name: str) -> None:
    model = _a_model(name)
    (x, y) = _reference_client(_clients(model.layout.input_shape)[0], 0).batches[0]
    params = model.initial_params.astype(np.float64)
    has_dropout = any(each.kind == "dropout" for each in model.layout.layers)
    masks: list[Any] | None = None if has_dropout else []
    _, gradient = reference_net.score(model.layout, params, (x, y), masks)
    random = np.random.default_rng(3)
    for _ in range(3):
        direction = random.normal(size=len(params))
        direction[model.layout.num_trained :] = 0
        direction /= np.linalg.norm(direction)
        losses = [
            reference_net.score(model.layout, params + step * direction, (x, y), masks)[0].loss_sum
            for step in (1e-6, -1e-6)
        ]
        slope = (losses[0] - losses[1]) / (2e-6 * len(y))
        # Central differences have a rounding error of 1e-16 / 1e-6 times the loss.
        assert gradient @ direction == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_masks_come_from_the_stream_of_the_client_and_round() -> None:
    key = StreamKey(SEED, client_key("a"), 3, Purpose.DROPOUT, 1)
    layout: ParamLayout = models.sequential([Dropout(0.3), Dense(2)], (3, 2)).layout
    (mask,) = reference_net.draw_masks(layout, key, 0)
    words = [int(word) for word in native.random_u64(key, 2)]
    bits = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)][:6]
    share = 19661  # 0.3 of 65536
    expected = [0 if each < share else 65536 / (65536 - share) for each in bits]
    np.testing.assert_allclose(mask.ravel(), expected)


def test_an_anchor_s_gradient_sees_the_same_masks() -> None:
    """In a client's first step both gradients are at the same parameters and cancel."""
    layout: ParamLayout = models.sequential(
        [Dense(6, "relu"), Dropout(0.5), Dense(2)], (3, 2)
    ).layout
    params = np.random.default_rng(5).normal(size=layout.num_params).astype(np.float32)
    images = np.random.default_rng(6).normal(size=(9, 3, 2)).astype(np.float32)
    client = from_arrays(images, np.arange(9) % 2, client_id="client").client
    for clip in (), ((StepKind.CLIP, (1e9,)),):  # without and with a stored gradient
        rows = ((StepKind.ANCHOR, ()), *clip, (StepKind.SGD, (0.5, 0.0, 0.0)))
        task = ClientTask(rows=rows, params=params, round_num=3, weighting="uniform")
        clients = [client.preprocess(epochs=1, batch_size=9, shuffle_buffer=9)]
        result = ThreadEngine(2).train(layout, task, clients)
        # One gradient is subtracted and one added; each time parameters below 4 are rounded.
        np.testing.assert_allclose(result.delta_sum, 0, atol=5e-7)
