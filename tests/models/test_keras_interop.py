"""Keras 3 loads the files that fedcli writes, and fedcli reads the files that Keras 3 writes.

Needs Keras 3 and a backend of it, which `KERAS_BACKEND` names: `pip install keras jax`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcli import models
from fedcli.core.native import StepKind
from fedcli.datasets.batches import from_arrays
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.keras import formats
from fedcli.models.layer_graphs import specs_of
from fedcli.models.layers import (
    ELU,
    Activation,
    Add,
    AveragePool2D,
    BatchNorm,
    Concatenate,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    GroupNorm,
    Input,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Node,
    Normalization,
    RandomCrop,
    RandomFlip,
    SeparableConv2D,
    Spec,
    ZeroPad2D,
)
from fedcli.models.layout import ParamLayout, lay_out
from tests.kit import reference_net

BACKENDS = ("jax", "torch", "tensorflow")

# A process of its own runs the programs below, because the backends of Keras keep threads. It is
# one process for all tests, because importing Keras takes longer than most of them. From each line
# it reads a program and its arguments; its answer is a traceback, or nothing.
KERAS = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what Keras prints is no answer
import keras, numpy as np
for line in sys.stdin:
    program, arguments = json.loads(line)
    keras.utils.clear_session()  # so that names of layers do not depend on earlier programs
    try:
        exec(program, {"keras": keras, "np": np, "arguments": arguments})
        told = ""
    except Exception:
        told = traceback.format_exc()
    print(json.dumps(told), file=answers, flush=True)
"""
RunKeras = Callable[..., None]

# Loads and writes fedcli's models.
PROGRAM = """
whole, weights, images, folder = arguments
images = np.load(images)
model = keras.models.load_model(whole)
np.save(f"{folder}/loaded.npy", model.predict(images, verbose=0))
for each in model.weights:
    each.assign(np.zeros(each.shape))
model.load_weights(weights)
np.save(f"{folder}/weights.npy", model.predict(images, verbose=0))
model.save(f"{folder}/again.keras")
model.save(f"{folder}/again.h5")
model.save_weights(f"{folder}/again.weights.h5")
start = keras.Input(model.input_shape[1:])
keras.Model(start, model(start)).save(f"{folder}/nested.keras")
end = start
for layer in model.layers if isinstance(model, keras.Sequential) else [model]:
    end = layer(end)
keras.Model(start, end).save(f"{folder}/functional.keras")
keras.Model(start, end).save(f"{folder}/functional.h5")
"""


def _residual() -> Node:
    """Returns blocks whose layers Keras numbers in another order than fedcli."""
    x = Activation("relu")(GroupNorm(2)(Conv2D(6, 3, padding="same", name="start")(Input())))
    y = Activation("relu")(GroupNorm(3)(Conv2D(6, 3, padding="same", use_bias=False)(x)))
    x = Activation("relu")(Add()(Conv2D(6, 3, padding="same")(y), x))
    y = Conv2D(8, 3, 2, "same", "relu")(x)
    y = GroupNorm(4)(Conv2D(8, 3, padding="same")(y))
    x = Activation("relu")(Add()(y, GroupNorm(4)(Conv2D(8, 1, 2, name="short")(x))))
    x = Concatenate()(Concatenate()(x, Conv2D(3, 2, padding="same")(x)), y)
    return Dense(5)(GlobalAveragePool2D()(x))


def _residual_with_batch_norms() -> Node:
    x = Activation("relu")(BatchNorm()(Conv2D(6, 3, padding="same", name="start")(Input())))
    y = Activation("relu")(BatchNorm()(Conv2D(6, 3, padding="same", use_bias=False)(x)))
    x = Activation("relu")(Add()(BatchNorm()(Conv2D(6, 3, padding="same")(y)), x))
    y = BatchNorm()(Conv2D(8, 3, 2, "same", "relu")(x))
    x = Activation("relu")(Add()(y, BatchNorm()(Conv2D(8, 1, 2, name="short")(x))))
    return Dense(5)(GlobalAveragePool2D()(x))


MODELS: dict[str, tuple[tuple[int, ...], list[Spec]]] = {
    "softmax regression": ((28, 28), [Dense(10)]),
    "mlp": ((5, 4), [Dense(7, "tanh"), Dropout(0.5), Dense(6, "sigmoid"), Dense(3)]),
    "vector": ((9,), [Dense(4, use_bias=False), Activation("relu"), Dense(3)]),
    "cnn": (
        (12, 11),
        [
            *(Conv2D(8, 5, padding="same", activation="relu"), MaxPool2D(), Conv2D(4, (3, 2))),
            *(Dropout(0.25), Flatten(), Dense(6, "relu"), Dense(10, "softmax")),
        ],
    ),
    "colours": (
        (9, 8, 3),
        [
            *(Conv2D(6, 3, 2, "same"), GroupNorm(3), Activation("relu")),
            *(AveragePool2D(2, 1, "same"), Conv2D(4, 2, use_bias=False), GroupNorm(-1, 0.01)),
            *(MaxPool2D(3, 2, "same"), Dense(5)),
        ],
    ),
    "depthwise": (
        (9, 8, 3),
        [
            *(DepthwiseConv2D(3, 2, "same"), Conv2D(6, 1, activation="relu")),
            *(DepthwiseConv2D((3, 2), use_bias=False, activation="tanh"), Dense(5)),
        ],
    ),
    "activations, separable convolutions, padding, layer norms": (
        (9, 8, 3),
        [
            *(ZeroPad2D((1, 2, 0, 1)), SeparableConv2D(6, 3, 2, activation="relu6"), LayerNorm()),
            *(Conv2D(8, 2, activation="silu"), ELU(0.5), Activation("gelu"), LeakyReLU(0.1)),
            *(SeparableConv2D(7, (2, 3), padding="same", use_bias=False), ZeroPad2D(1)),
            *(Activation("hard_silu"), LayerNorm(0.1, scale=False), Flatten()),
            *(Dense(9, "leaky_relu"), Dense(9, "elu"), Dense(9, "gelu"), Dense(9, "hard_silu")),
            *(Dense(9, "silu"), LayerNorm(), Dense(5)),
        ],
    ),
    "no dense layer": ((9, 8, 3), [Conv2D(6, 3, 2, activation="relu"), Conv2D(5, (4, 3))]),
    "average last": ((9, 8, 3), [Conv2D(5, 3, 2), AveragePool2D((4, 3))]),
    "residual network": ((9, 8, 3), specs_of(_residual())),
    "batch norms": (
        (7, 6, 3),
        [
            *(BatchNorm(center=False, scale=False), Conv2D(6, 3, 2, "same"), BatchNorm(0.9, 1e-5)),
            *(Activation("relu"), Conv2D(6, 2), BatchNorm(0.5, scale=False), Flatten()),
            *(Dense(6, use_bias=False), BatchNorm(center=False), Activation("tanh"), Dense(5)),
        ],
    ),
    "residual network with batch norms": ((9, 8, 3), specs_of(_residual_with_batch_norms())),
}


def _backend() -> str:
    """Returns a backend of Keras 3 that is installed here."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras 3 is not installed")
    wanted = os.environ.get("KERAS_BACKEND")
    found = [each for each in BACKENDS if importlib.util.find_spec(each) is not None]
    if not found and wanted is None:
        pytest.skip(f"no backend of Keras is installed: {', '.join(BACKENDS)}")
    return wanted or found[0]


@pytest.fixture(scope="module")
def run_keras() -> Iterator[RunKeras]:
    """Runs a program with its arguments in the process that has imported Keras."""
    environment = {**os.environ, "KERAS_BACKEND": _backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KERAS], env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def run(program: str, *arguments: object) -> None:
            print(json.dumps([program, list(map(str, arguments))]), file=requests, flush=True)
            assert json.loads(answers.readline()) == ""

        yield run
        requests.close()


def _with_variances(layout: ParamLayout, params: NDArray[np.float32]) -> NDArray[np.float32]:
    """Makes the moving variances positive."""
    for tensor, values in zip(layout.tensors, layout.split(params), strict=True):
        if tensor.name.endswith("/moving_variance"):
            values[:] = 0.5 + np.abs(values)
    return params


@pytest.mark.parametrize("name", MODELS)
def test_keras_predicts_what_fedcli_computes(
    tmp_path: Path, run_keras: RunKeras, name: str
) -> None:
    shape, specs = MODELS[name]
    layout = lay_out(specs, shape)
    rng = np.random.RandomState(1)
    params = _with_variances(layout, rng.normal(0, 0.3, layout.num_params).astype(np.float32))
    images = rng.uniform(0, 1, (5, *shape)).astype(np.float32)
    needs_channels = name == "cnn"  # Keras's convolutions need a channel axis
    given = images[..., None] if needs_channels else images
    files = [tmp_path / each for each in ("m.keras", "m.weights.h5", "images.npy")]
    formats.write_keras(files[0], layout, params)
    formats.write_weights(files[1], layout, params)
    np.save(files[2], given)
    run_keras(PROGRAM, *files, tmp_path)
    weights = layout.split(params)
    expected = reference_net.softmax(reference_net.logits(layout, weights, images))
    for file in ("loaded.npy", "weights.npy"):
        # Each layer adds float32 errors, of about 1e-7 in the probabilities.
        np.testing.assert_allclose(np.load(tmp_path / file), expected, rtol=0, atol=1e-5)
    for file in ("again.keras", "again.h5", "nested.keras", "functional.keras", "functional.h5"):
        model = formats.read_model(tmp_path / file)
        found = reference_net.logits(
            lay_out(model.specs, model.input_shape), model.weights or [], images
        )
        np.testing.assert_allclose(reference_net.softmax(found), expected, rtol=0, atol=1e-12)
    for array, wanted in zip(
        formats.read_weights(tmp_path / "again.weights.h5", layout), weights, strict=True
    ):
        np.testing.assert_array_equal(array, wanted)


def test_keras_predicts_from_images_that_it_crops_and_normalizes(
    tmp_path: Path, run_keras: RunKeras
) -> None:
    shape = (9, 8, 3)
    inputs = [RandomCrop(6, 5, 2), RandomFlip(), Normalization((0.1, 0.2, 0.3), 0.4)]
    model = models.sequential(
        [*inputs, Conv2D(4, 3, activation="relu"), Flatten(), Dense(5)], shape
    )
    images = np.random.default_rng(1).random((7, *shape), np.float32)
    files = [tmp_path / each for each in ("m.keras", "m.weights.h5", "images.npy")]
    formats.write_keras(files[0], model.layout, model.initial_params)
    formats.write_weights(files[1], model.layout, model.initial_params)
    np.save(files[2], images)
    run_keras(PROGRAM, *files, tmp_path)
    data = from_arrays(images, np.zeros(7, np.int32))
    for each in (model, models.load(files[0]), models.load(tmp_path / "again.keras")):
        scores = ThreadEngine(1).predict(each.layout, each.initial_params, [data])
        for file in ("loaded.npy", "weights.npy"):
            expected = reference_net.softmax(scores.values.astype(np.float64))
            np.testing.assert_allclose(np.load(tmp_path / file), expected, rtol=0, atol=1e-5)


# SGD on batches of 6, without shuffling.
TRAINING = """
whole, images, labels, weights = arguments
model = keras.models.load_model(whole)
model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy())
images, labels = np.load(images), np.load(labels)
for first in range(0, len(labels), 6):
    model.train_on_batch(images[first:first + 6], labels[first:first + 6])
model.save_weights(weights)
"""


@pytest.mark.parametrize("name", ["batch norms", "residual network with batch norms"])
def test_keras_trains_batch_norms_to_the_same_weights(
    tmp_path: Path, run_keras: RunKeras, name: str
) -> None:
    shape, specs = MODELS[name]
    model = models.sequential(specs, shape, seed=3)
    rng = np.random.default_rng(5)
    images = rng.random((16, *shape), np.float32)
    labels = rng.integers(0, 5, 16, np.int32)
    files = [tmp_path / each for each in ("m.keras", "images.npy", "labels.npy", "m.weights.h5")]
    formats.write_keras(files[0], model.layout, model.initial_params)
    np.save(files[1], images)
    np.save(files[2], labels)
    run_keras(TRAINING, *files)
    data = from_arrays(images, labels).client.preprocess(1, shuffle_buffer=1, batch_size=6)
    rows = ((StepKind.SGD, (0.1, 0.0, 0.0)),)
    task = ClientTask(rows, model.initial_params, round_num=0, weighting="uniform")
    trained = ThreadEngine(1).train(model.layout, task, [data])
    ours = model.layout.split(model.initial_params + trained.delta_sum.astype(np.float32))
    theirs = formats.read_weights(files[3], model.layout)
    for tensor, mine, their in zip(model.layout.tensors, ours, theirs, strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-5, atol=1e-5, err_msg=tensor.name)
