"""Which images a model takes, and the model of vectors that gets images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcli import layers, learning, models, optimizers
from fedcli.errors import ConfigError, DataError
from fedcli.models.image_shapes import for_images, holds_inputs, takes
from fedcli.models.layers import IMAGE, Dense
from fedcli.models.model import Model
from fedcli.models.own import load


@pytest.mark.parametrize(
    ("input_shape", "image_shape", "expected"),
    [
        ((784,), (28, 28), True),
        ((784,), (28, 28, 1), True),
        ((3072,), (32, 32, 3), True),
        ((783,), (28, 28), False),
        ((28, 28), (28, 28, 1), True),
        ((28, 28, 1), (28, 28), True),
        ((28, 28), (14, 56), False),
        ((32, 32, 3), (3, 32, 32), False),
        ((1,), (1, 1), True),
    ],
)
def test_a_model_takes_its_shape_and_flattened_images(
    input_shape: tuple[int, ...], image_shape: tuple[int, ...], *, expected: bool
) -> None:
    assert takes(input_shape, image_shape) is expected


def loss_of(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    process = learning.build_fed_eval(model)
    output = process.next(process.initialize(), [(images, labels)])
    loss: float = output.metrics["client_work"]["eval"]["current_round_metrics"]["loss"]
    return loss


def test_the_flattened_image_has_its_rows_first_and_the_channels_of_a_pixel_together() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((6, 3, 2, 2)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % 4
    vector = models.sequential([Dense(4)], (12,), seed=1)
    model = for_images(vector, (3, 2, 2))
    assert model.layout.input_shape == (3, 2, 2)
    np.testing.assert_array_equal(model.initial_params, vector.initial_params)
    kernel, bias = model.layout.split(model.initial_params)
    logits = images.reshape(6, 12).astype(np.float64) @ kernel + bias
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logits[np.arange(6), labels].mean()
    assert loss_of(model, images, labels) == pytest.approx(expected, rel=1e-6)  # sums of float32
    assert loss_of(vector, images, labels) == loss_of(model, images, labels)


def test_a_graph_reads_the_flattened_image_wherever_it_reads_the_input() -> None:
    both = layers.Add(inputs=("first", "second"))
    stack = [Dense(5, name="first"), Dense(5, name="second", inputs=(IMAGE,)), both, Dense(3)]
    model = for_images(models.sequential(stack, (16,), seed=2), (4, 4))
    assert [spec.inputs for spec in model.layout.specs[:3]] == [(), (), ("flatten_pixels",)]
    images, labels = np.ones((2, 4, 4), np.float32), np.zeros(2, np.int32)
    assert loss_of(model, images, labels) == loss_of(
        models.sequential(stack, (4, 4), seed=2), images, labels
    )


def test_a_model_that_does_not_fit_says_both_shapes() -> None:
    model = models.sequential([Dense(3)], (15,))
    with pytest.raises(ConfigError) as caught:
        for_images(model, (4, 4))
    assert str(caught.value) == (
        "model sequential takes vectors of 15 values, but the data have images of shape [4, 4], "
        "which are 16 values; build the model for input_shape=(4, 4) or (16,), or choose other data"
    )


def test_a_layer_that_cannot_follow_a_flattening_is_named_with_both_shapes() -> None:
    model = models.sequential([layers.BatchNorm(), Dense(3)], (16,))
    with pytest.raises(ConfigError, match=r"takes \[16\], but .* shape \[4, 4\]: layer batch_norm"):
        for_images(model, (4, 4))


def test_load_takes_a_model_of_fedcli_too() -> None:
    model = models.sequential([Dense(3)], (16,))
    assert models.load(model) is model
    assert models.load(model, (4, 4)).layout.input_shape == (4, 4)
    with pytest.raises(ConfigError, match=r"path is of type int; give the path of a Keras file"):
        models.load(3)  # type: ignore[arg-type]


def test_a_file_may_return_a_model_of_vectors(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from fedcli import layers, models\n"
        "def build():\n    return models.sequential([layers.Dense(3)], (16,))\n"
    )
    assert load(file, None, input_shape=(4, 4), num_classes=3).layout.input_shape == (4, 4)


def test_pixels_in_another_order_are_refused_by_next() -> None:
    assert holds_inputs((1, 28, 28), (28, 28))
    assert not holds_inputs((3, 8, 8), (8, 8, 3))
    model = models.sequential([Dense(3)], (8, 8, 3))
    process = learning.build_weighted_fed_avg(model, optimizers.sgd(0.1))
    channels_first = (np.ones((2, 3, 8, 8), np.float32), np.zeros(2, np.int32))
    with pytest.raises(DataError, match=r"images have shape \[3, 8, 8\], the model takes \[8, 8"):
        process.next(process.initialize(), [channels_first])


def test_a_label_beyond_the_classes_says_how_many_the_model_needs() -> None:
    process = learning.build_weighted_fed_avg(
        models.sequential([Dense(9)], (2, 2)), optimizers.sgd(0.1)
    )
    pair = (np.ones((1, 2, 2), np.float32), np.array([9], np.int32))
    with pytest.raises(DataError, match=r"classes, 0 to 8; build the model for at least 10 cla"):
        process.next(process.initialize(), [pair])
