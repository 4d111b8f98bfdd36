"""Input layers: the images they give, and training and evaluation of models that have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import layers, learning
from fedcli.core import native
from fedcli.core.seeds import Purpose, StreamKey, client_key
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.errors import ConfigError
from fedcli.learning import aggregators, algorithms, optimizers
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.keras import formats
from fedcli.models.layer_graphs import functional
from fedcli.models.layers import Spec
from fedcli.models.layout import from_description
from fedcli.models.model import Model, sequential

pytestmark = pytest.mark.numeric

Image = NDArray[np.float64]
SHAPES = [(7, 5, 3), (4, 6, 1), (1, 1, 3), (9, 9, 2)]


class Draws:
    """The random numbers of one visit, from the core's uniform numbers in [0, 1)."""

    def __init__(self, key: StreamKey) -> None:
        self._words = list(native.random_u64(key, 16))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._words.pop(0) >> np.uint64(11)) * 2.0**-53


# Slow references of the core's layers, as fed.h and layers/augment.c describe them; draws is None
# in evaluation.


def normalized(image: Image, spec: Any, draws: Draws | None) -> Image:
    del draws
    return (image - np.array(spec.mean)) / np.array(spec.std)


def standardized(image: Image, spec: Any, draws: Draws | None) -> Image:
    del spec, draws
    deviation = max(float(image.std()), 1 / math.sqrt(image.size))
    return (image - image.mean()) / deviation


def flipped(image: Image, spec: Any, draws: Draws | None) -> Image:
    del spec
    return image if draws is None or draws.between(0, 1) < 0.5 else image[:, ::-1]


def cropped(image: Image, spec: Any, draws: Draws | None) -> Image:
    border = (spec.padding, spec.padding)
    padded = np.pad(image, (border, border, (0, 0)))
    room_y, room_x = padded.shape[0] - spec.height, padded.shape[1] - spec.width
    top, left = room_y // 2, room_x // 2
    if draws is not None:
        top, left = int(draws.between(0, room_y + 1)), int(draws.between(0, room_x + 1))
    return padded[top : top + spec.height, left : left + spec.width]


def middle_of(image: Image, spec: Any, draws: Draws | None) -> Image:
    top, left = (image.shape[0] - spec.height) // 2, (image.shape[1] - spec.width) // 2
    return image[top : top + spec.height, left : left + spec.width]


def rotated(image: Image, spec: Any, draws: Draws | None) -> Image:
    if draws is None:
        return image
    most = math.radians(spec.degrees)
    angle = draws.between(-most, most)
    height, width, num_channels = image.shape
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    made = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            down, right = y - (height - 1) / 2, x - (width - 1) / 2
            from_y = (height - 1) / 2 + math.cos(angle) * down - math.sin(angle) * right
            from_x = (width - 1) / 2 + math.sin(angle) * down + math.cos(angle) * right
            if not (-1 < from_y < height and -1 < from_x < width):
                continue
            top, left = math.floor(from_y), math.floor(from_x)
            part_y, part_x = from_y - top, from_x - left
            square = padded[top + 1 : top + 3, left + 1 : left + 3]
            shares = np.outer([1 - part_y, part_y], [1 - part_x, part_x])
            made[y, x] = (shares[:, :, np.newaxis] * square).sum(axis=(0, 1))
    assert made.shape[2] == num_channels
    return made


def cut_out(image: Image, spec: Any, draws: Draws | None) -> Image:
    made = image.copy()
    if draws is not None:
        middle_y = int(draws.between(0, image.shape[0]))
        middle_x = int(draws.between(0, image.shape[1]))
        top, left = middle_y - spec.side // 2, middle_x - spec.side // 2
        made[max(top, 0) : top + spec.side, max(left, 0) : left + spec.side] = 0
    return made


def jittered(image: Image, spec: Any, draws: Draws | None) -> Image:
    if draws is None:
        return image
    shares = (spec.brightness, spec.contrast, spec.saturation)
    factors = [draws.between(1 - share, 1 + share) for share in shares]

    def grey(of: Image) -> Image:
        if of.shape[2] < 3:
            return of[:, :, :1]
        return (of[:, :, :3] @ np.array([0.299, 0.587, 0.114]))[:, :, np.newaxis]

    bright = factors[0] * image
    mean = grey(bright).mean()
    contrasted = mean + factors[1] * (bright - mean)
    return grey(contrasted) + factors[2] * (contrasted - grey(contrasted))


REFERENCES = {
    "normalization": normalized,
    "image_standardization": standardized,
    "random_flip": flipped,
    "random_crop": cropped,
    "center_crop": middle_of,
    "random_rotation": rotated,
    "cutout": cut_out,
    "color_jitter": jittered,
}


def stacks(shape: tuple[int, ...]) -> list[list[Spec]]:
    """Lists of input layers for images of a shape: each layer alone, and several together."""
    height, width, channels = shape
    means, stds = tuple(np.linspace(0.1, 0.5, channels)), tuple(np.linspace(0.2, 0.9, channels))
    return [
        [layers.Normalization(means, stds)],
        [layers.Normalization(0.5, 2)],
        [layers.ImageStandardization()],
        [layers.RandomFlip()],
        [layers.RandomCrop(height, width, padding=min(height, 3))],
        [layers.RandomCrop(max(1, height - 2), max(1, width - 3))],
        [layers.CenterCrop(max(1, height - 2), max(1, width - 3))],
        [layers.RandomRotation(0)],
        [layers.RandomRotation(40)],
        [layers.RandomRotation(180)],
        [layers.Cutout(1)],
        [layers.Cutout(3)],
        [layers.Cutout(100)],
        [layers.ColorJitter(0.3, 0.4, 0.5)],
        [
            layers.RandomCrop(height, width, 1),
            layers.RandomFlip(),
            layers.RandomRotation(10),
            layers.Cutout(2),
            layers.ColorJitter(0.2),
            layers.Normalization(means, stds),
        ],
    ]


def with_dense(specs: Sequence[Spec], shape: tuple[int, ...]) -> Model:
    return sequential([*specs, layers.Flatten(), layers.Dense(2)], shape)


def expected_image(image: Image, specs: Sequence[Spec], draws: Draws | None) -> Image:
    for spec in specs:
        image = REFERENCES[spec.kind](image, spec, draws)
    return image


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_equal_their_slow_references(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(3).random((2, *shape), np.float32)
    for specs in stacks(shape):
        layout = with_dense(specs, shape).layout
        table = (layout.core_rows(), layout.num_params, images.reshape(2, -1))
        found = native.run_inputs(*table)
        for image, row in zip(images.astype(np.float64), found, strict=True):
            wanted = expected_image(image, specs, None)
            np.testing.assert_allclose(row, wanted.ravel(), rtol=0, atol=2e-6)
        for occurrence in range(20):
            key = StreamKey(5, 6, 7, Purpose.DROPOUT, occurrence)
            (row, _) = native.run_inputs(*table, key)
            wanted = expected_image(images[0].astype(np.float64), specs, Draws(key))
            np.testing.assert_allclose(row, wanted.ravel(), rtol=0, atol=2e-6)


def test_each_visit_has_its_own_draws() -> None:
    layout = with_dense([layers.RandomCrop(8, 8, 4), layers.Cutout(3)], (8, 8, 1)).layout
    images = np.repeat(np.random.default_rng(1).random((1, 64), np.float32), 8, axis=0)
    key = StreamKey(1, 2, 3, Purpose.DROPOUT, 0)
    found = native.run_inputs(layout.core_rows(), layout.num_params, images, key)
    assert len({row.tobytes() for row in found}) == 8
    for visit in (3, 7):
        (alone,) = native.run_inputs(layout.core_rows(), layout.num_params, images[:1], key, visit)
        assert alone.tobytes() == found[visit].tobytes()


# ---- Training ------------------------------------------------------------------------------------

SHAPE, SIZES, SEED = (9, 8, 3), (5, 17, 0, 8), 4
AUGMENTING = [layers.RandomCrop(8, 8, 2), layers.RandomFlip(), layers.Normalization(0.4, 0.3)]
CONVOLUTION = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
DENSE = [layers.Flatten(), layers.Dense(6, activation="relu"), layers.Dense(3)]


def clients(plan: BatchPlan) -> list[BatchedDataset]:
    generator = np.random.default_rng(8)
    made = []
    for number, size in enumerate(SIZES):
        pixels = generator.random((size, *SHAPE), np.float32)
        labels = generator.integers(0, 3, size, dtype=np.int32)
        client = from_arrays(pixels, labels, client_id=f"c{number}").client
        made.append(BatchedDataset(client, plan, SEED))
    return made


def trained(model: Model, cohort: Sequence[BatchedDataset], threads: int = 1) -> Any:
    algorithm = algorithms.build(
        "fedavg",
        optimizers.sgd(0.2),
        optimizers.sgd(1.0),
        weighting="num-examples",
        aggregator=aggregators.build("mean"),
    )
    process = learning.build_process(algorithm, model, engine=ThreadEngine(threads))
    state = process.initialize()
    output = process.next(state, cohort)
    return output.state.global_model_weights, output.metrics["client_work"]["train"]


@pytest.mark.parametrize("own", [CONVOLUTION, DENSE])
def test_training_equals_training_on_images_changed_in_advance(own: list[Spec]) -> None:
    """In one epoch without shuffling, visit v is example v, so its random changes are known."""
    plan = BatchPlan(epochs=1, batch_size=4, shuffle_buffer=1)
    model = sequential([*AUGMENTING, *own], SHAPE)
    plain = Model("plain", sequential(own, (8, 8, 3)).layout, model.initial_params)
    changed = []
    for each in clients(plan):
        key = StreamKey(SEED, client_key(each.client.client_id), 0, Purpose.DROPOUT, 0)
        images = each.client.images().reshape(-1, math.prod(SHAPE))
        table = (model.layout.core_rows(), model.layout.num_params)
        made = native.run_inputs(*table, images, key).reshape(-1, 8, 8, 3)
        client = from_arrays(made, each.client.labels, client_id=each.client.client_id).client
        changed.append(BatchedDataset(client, plan, SEED))
    found, metrics = trained(model, clients(plan))
    wanted, wanted_metrics = trained(plain, changed)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert metrics == pytest.approx(wanted_metrics, rel=1e-6)


def test_threads_change_no_byte() -> None:
    plan = BatchPlan(epochs=2, batch_size=6)
    for own in (CONVOLUTION, DENSE):
        model = sequential([*AUGMENTING, *own], SHAPE)
        expected = trained(model, clients(plan))
        for threads in (2, 7):
            found = trained(model, clients(plan), threads)
            assert found[0].tobytes() == expected[0].tobytes()
            assert found[1] == expected[1]


def test_evaluation_draws_nothing() -> None:
    """Evaluation uses the normalized center crop of each image."""
    plan = BatchPlan(batch_size=4)
    model = sequential([*AUGMENTING, *CONVOLUTION], SHAPE)
    plain = Model("plain", sequential(CONVOLUTION, (8, 8, 3)).layout, model.initial_params)
    found = learning.build_fed_eval(model)
    wanted = learning.build_fed_eval(plain)
    middles = []
    for each in clients(plan):
        padded = np.pad(each.client.images(), ((0, 0), (2, 2), (2, 2), (0, 0)))
        made = ((padded[:, 2:10, 2:10] - np.float32(0.4)) / 0.3).astype(np.float32)
        middles.append(BatchedDataset(from_arrays(made, each.client.labels).client, plan, SEED))
    metrics, expected = (
        process.next(process.initialize(), cohort).metrics["client_work"]["eval"]
        for process, cohort in ((found, clients(plan)), (wanted, middles))
    )
    now = "current_round_metrics"
    assert metrics[now] == pytest.approx(expected[now], rel=1e-5)


# ---- Descriptions and mistakes -------------------------------------------------------------------


def test_descriptions_and_keras_files_keep_them(tmp_path: Path) -> None:
    specs = [
        layers.CenterCrop(8, 8),
        layers.RandomFlip(),
        layers.RandomRotation(36.0),
        layers.Normalization((0.1, 0.2, 0.3), (0.5, 0.5, 0.25)),
    ]
    model = sequential([*specs, *CONVOLUTION], SHAPE)
    layout = from_description(model.layout.description())
    assert layout.specs == model.layout.specs
    assert layout.core_rows() == model.layout.core_rows()
    formats.write_keras(tmp_path / "model.keras", model.layout, model.initial_params)
    read = formats.read_model(tmp_path / "model.keras")
    again = sequential(read.specs, read.input_shape).layout
    for one, other in zip(again.layers, model.layout.layers, strict=True):
        assert replace(one, constants=()) == replace(other, constants=())
        assert one.constants == pytest.approx(other.constants, rel=1e-9)


@pytest.mark.parametrize("spec", [layers.ImageStandardization(), layers.RandomCrop(10, 8, 1)])
def test_what_keras_lacks_is_refused(spec: Spec, tmp_path: Path) -> None:
    model = sequential([spec, *CONVOLUTION], SHAPE)
    with pytest.raises(ConfigError, match="Keras has no layer that does the same"):
        formats.write_keras(tmp_path / "m.keras", model.layout, model.initial_params)


def test_keras_files_leave_out_what_changes_nothing_in_evaluation(tmp_path: Path) -> None:
    image = layers.Input()
    x = layers.RandomCrop(9, 8, 2)(image)
    x = layers.Normalization(0.5, 0.5)(layers.RandomCrop(8, 6, 1)(x))
    x = layers.ColorJitter(0.1)(layers.Cutout(3)(x))
    y = layers.Conv2D(3, 3, padding="same")(x)
    x = layers.GlobalAveragePool2D()(layers.Add()(y, x))
    model = functional(layers.Dense(2)(x), SHAPE)
    formats.write_keras(tmp_path / "model.keras", model.layout, model.initial_params)
    read = formats.read_model(tmp_path / "model.keras")
    again = sequential(read.specs, read.input_shape)
    kinds = ["center_crop", "normalization", "conv2d", "add"]
    assert [each.kind for each in again.layout.layers][:4] == kinds
    images = np.random.default_rng(2).random((3, 9 * 8 * 3), np.float32)
    wanted = (images.reshape(3, 9, 8, 3)[:, :8, 1:7].reshape(3, -1) - 0.5) * 2
    for one in (model, again):
        found = native.run_inputs(one.layout.core_rows(), one.layout.num_params, images)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([layers.Flatten(), layers.RandomFlip()], "it takes images"),
        ([layers.Conv2D(3, 1), layers.RandomFlip()], "changes the image itself; put it at the"),
        ([layers.Normalization((1, 2), 1.0)], "mean has 2 numbers, but images have 3 channels"),
        ([layers.Normalization(0.0, 0.0)], "std 0.0: choose a finite number from 1e-06"),
        ([layers.RandomCrop(12, 8)], "a part of 12 x 8 with padding 0 does not fit into images of"),
        ([layers.CenterCrop(9, 9)], "a part of 9 x 9 with padding 0 does not fit into images of 9"),
        ([layers.RandomCrop(12, 8)], "images of 9 x 8; choose at most 9 x 8"),
        ([layers.RandomCrop(10, 8, 9)], "padding 9 around images of 9 x 8; choose at most 8"),
        ([layers.RandomFlip("vertical")], "mode 'vertical': fedcli only mirrors left to right"),
        ([layers.Cutout(0)], "side 0: choose a whole number from 1"),
        ([layers.ColorJitter(2.0)], "brightness 2.0: choose a finite number from 0 to 1"),
        ([layers.RandomRotation(181)], "degrees 181: choose a finite number from 0 to 180"),
    ],
)
def test_wrong_layers(specs: list[Spec], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sequential([*specs, layers.Flatten(), layers.Dense(2)], SHAPE)
