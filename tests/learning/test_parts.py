"""Wide networks process a batch in parts (`fed_net_part_size`) and get the batch's gradient.

Other networks with layers that take all images of a batch at once do so if the batch is large.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedcli import models
from fedcli.core import native
from fedcli.core.native import StepKind, StepRow
from fedcli.datasets.batches import ClientDataset, from_arrays
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.layers import Add, Conv2D, Dense, Dropout, GroupNorm, Input

NUM_EXAMPLES = 10
GRADIENT: StepRow = (StepKind.GRADIENT, ())
STEPS: tuple[StepRow, ...] = (
    GRADIENT,
    (StepKind.SGD, (0.1, 0.0, 0.0)),
    (StepKind.SGD, (0.1, 0.9, 0.0)),
)


def _model() -> models.Model:
    x = Conv2D(48, 3, padding="same")(Input())
    y = Conv2D(48, 3, padding="same")(GroupNorm(4)(x))
    y = Conv2D(48, 3, padding="same", activation="relu")(Dropout(0.3)(y))
    x = Conv2D(64, 3, strides=2, activation="relu")(Add()(x, y))
    return models.functional(Dense(3)(x), (12, 12, 3), seed=1)


MODEL = _model()


def _heavy_model() -> models.Model:
    """A network whose parameters are more than the values of a few images."""
    layers = [Conv2D(128, 3, padding="same"), Conv2D(256, 3, strides=3, activation="tanh")]
    return models.sequential([*layers, Dense(3)], (6, 6, 16), seed=1)


def _train(step: StepRow, batch_size: int, num_threads: int = 1, num_epochs: int = 2) -> Deltas:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (NUM_EXAMPLES, 12, 12, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, NUM_EXAMPLES).astype(np.int32)
    client = ClientDataset("client", pixels, labels, 1 / 255, 0.0, "test")
    task = ClientTask(
        rows=(step,), params=MODEL.initial_params, round_num=0, weighting="num-examples"
    )
    engine = ThreadEngine(num_threads)
    return engine.train(MODEL.layout, task, (client.preprocess(num_epochs, 1, batch_size, 0),))


def test_the_model_is_one_whose_batches_pass_in_parts() -> None:
    rows, num_params = MODEL.layout.core_rows(), MODEL.layout.num_params
    of_ten = native.batch_bytes(rows, num_params, NUM_EXAMPLES) - 4 * num_params
    assert of_ten < 5 * native.batch_bytes(rows, num_params, 1)


def test_gradients_of_parts_add_up_to_those_of_single_examples() -> None:
    """A dropout mask depends on the number of the visit, not on the batch size."""
    whole, single = (_train(GRADIENT, size).delta_sum for size in (NUM_EXAMPLES, 1))
    np.testing.assert_allclose(whole, single, rtol=0, atol=2e-5 * np.abs(single).max())


def test_a_step_of_sgd_moves_along_the_gradient_of_the_parts() -> None:
    moved = _train(STEPS[1], NUM_EXAMPLES, num_epochs=1)
    gradient = _train(GRADIENT, NUM_EXAMPLES, num_epochs=1)
    expected = 0.1 * gradient.delta_sum
    bound = 2e-6 * np.abs(MODEL.initial_params).max() * NUM_EXAMPLES
    np.testing.assert_allclose(moved.delta_sum, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("step", STEPS)
def test_threads_that_share_parts_change_no_byte(step: StepRow) -> None:
    of_one = _train(step, NUM_EXAMPLES)
    for num_threads in (2, 7):
        shared = _train(step, NUM_EXAMPLES, num_threads)
        assert shared.delta_sum.tobytes() == of_one.delta_sum.tobytes()
        assert shared.stats.tobytes() == of_one.stats.tobytes()


def test_memory_for_batches_of_a_heavy_network_does_not_grow_with_them() -> None:
    layout = _heavy_model().layout
    rows, num_params = layout.core_rows(), layout.num_params
    of_64, of_128, of_1280 = (
        native.batch_bytes(rows, num_params, each) for each in (64, 128, 1280)
    )
    assert of_64 < of_128  # which needs a gradient for the sum over its parts
    assert of_1280 < 1.05 * of_128


def test_a_large_batch_of_a_heavy_network_gives_the_mean_gradient() -> None:
    model, num_examples = _heavy_model(), 70
    rng = np.random.default_rng(2)
    images = rng.random((num_examples, 6, 6, 16), np.float32)
    labels = rng.integers(0, 3, num_examples, np.int32)
    client = from_arrays(images, labels).client
    task = ClientTask(
        rows=(GRADIENT,), params=model.initial_params, round_num=0, weighting="num-examples"
    )

    def gradient(batch_size: int, num_threads: int) -> Deltas:
        data = client.preprocess(1, 1, batch_size, 0)
        return ThreadEngine(num_threads).train(model.layout, task, (data,))

    in_parts = gradient(num_examples, 1)
    expected = gradient(10, 1).delta_sum
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(in_parts.delta_sum, expected, rtol=0, atol=bound)
    for num_threads in (2, 7):
        assert (
            gradient(num_examples, num_threads).delta_sum.tobytes() == in_parts.delta_sum.tobytes()
        )
