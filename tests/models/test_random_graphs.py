"""Random graphs of every kind of layer: gradients and scores against a float64 reference.

FEDCLI_TEST_GRAPHS is the number of graphs; the number of a graph is its seed. A thousand graphs
take minutes; FEDCLI_ISA chooses the instruction set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from fedcli import learning, models
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
    GlobalMaxPool2D,
    GroupNorm,
    Input,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Node,
    SeparableConv2D,
    Spec,
    ZeroPad2D,
)
from fedcli.models.layers.contract import Incoming
from fedcli.models.model import Model
from tests.kit import one_step, reference_net

pytestmark = pytest.mark.numeric

NUM_GRAPHS = int(os.environ.get("FEDCLI_TEST_GRAPHS", "100"))
NUM_CLASSES = 3
SMOOTH = ("tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
# Layers with a kink come only after sums with a bias: elsewhere zeros would be at the kink.
KINKED = ("relu", "relu6", "leaky_relu", "elu", "hard_silu")
KINK_MARGIN = 7.5e-6  # as in test_networks.py

Random = np.random.Generator


class Value(NamedTuple):
    """The output of a layer of an unfinished graph."""

    node: Node
    incoming: Incoming


def _grown(random: Random) -> tuple[list[Spec], tuple[int, int, int]]:
    """The layers of a graph, and the shape of its images."""
    height, width = (int(each) for each in random.integers(1, 9, 2))
    shape = (height, width, int(random.integers(1, 5)))
    values = [Value(Input(), Incoming(shape, is_image=True))]
    for _ in range(int(random.integers(1, 10))):
        # Mostly the last value, so that paths are long; branches may be joined again.
        source = values[-1] if random.random() < 0.75 else values[random.integers(len(values))]
        values.append(_applied(_layer(random, source.incoming), source))
        if random.random() < 0.5:
            values += _met(random, values)
    return specs_of(_ended(random, values[-1])), shape


def _met(random: Random, values: list[Value]) -> list[Value]:
    """The sum or concatenation of the last value and an earlier one that fits, if there is one."""
    *others, last = values
    alike = [each for each in others if each.incoming == last.incoming]
    if alike and random.random() < 0.7:
        return [last._replace(node=Add()(last.node, alike[random.integers(len(alike))].node))]
    height, width, channels = last.incoming.shape
    is_flat = not last.incoming.is_image
    beside = [
        each
        for each in others
        if each.incoming.shape[:2] == (height, width) and each.incoming.is_image != is_flat
    ]
    if not beside:
        return []
    other = beside[random.integers(len(beside))]
    shape = (height, width, channels + other.incoming.shape[2])
    return [Value(Concatenate()(last.node, other.node), Incoming(shape, not is_flat))]


def _applied(layers: list[Spec], value: Value) -> Value:
    """The output of layers, one after the other."""
    for layer in layers:
        parts = layer.changed(name="x").parts(value.incoming)
        shape = parts[-1].out_shape if parts else value.incoming.shape
        is_image = value.incoming.is_image and not layer.gives_vector
        value = Value(layer(value.node), Incoming(shape, is_image))
    return value


def _ended(random: Random, last: Value) -> Node:
    """The logits of a value."""
    ends: list[Spec] = [Flatten()]
    if last.incoming.is_image and random.random() < 0.3:
        ends = [random.choice([GlobalAveragePool2D(), GlobalMaxPool2D()])]  # type: ignore[arg-type]
    node = last.node
    for layer in (*ends, Dense(NUM_CLASSES)):
        node = layer(node)
    return node


def _layer(random: Random, incoming: Incoming) -> list[Spec]:
    """A layer that fits; an activation with kinks may follow it."""
    kinds = _OF_IMAGES if incoming.is_image else _OF_VECTORS
    return kinds[random.integers(len(kinds))](random, incoming)


def _size(random: Random) -> int:
    """A width near those of SIMD vectors and panels, or one that makes a layer run by batch."""
    return int(random.choice([1, 3, 8, 15, 16, 17, 33, 90], p=[0.1, *[0.15] * 5, 0.1, 0.05]))


def _activation(random: Random) -> str:
    return str(random.choice(["linear", *SMOOTH, *KINKED]))


def _window(random: Random, incoming: Incoming) -> tuple[tuple[int, int], tuple[int, int], str]:
    """Size and strides of a window that fits, and the padding."""
    window = tuple(int(random.integers(1, min(5, side) + 1)) for side in incoming.shape[:2])
    strides = tuple(int(each) for each in random.choice([1, 1, 2, 3], 2))
    padding = str(random.choice(["same", "valid"]))
    return (window[0], window[1]), (strides[0], strides[1]), padding


def _conv(random: Random, incoming: Incoming) -> list[Spec]:
    window, strides, padding = _window(random, incoming)
    if random.random() < 0.5:  # the form that Winograd's convolutions need
        window, strides, padding = (3, 3), (1, 1), "same"
    return [Conv2D(_size(random), window, strides, padding, _activation(random))]


def _depthwise(random: Random, incoming: Incoming) -> list[Spec]:
    return [DepthwiseConv2D(*_window(random, incoming), _activation(random))]


def _separable(random: Random, incoming: Incoming) -> list[Spec]:
    return [SeparableConv2D(_size(random), *_window(random, incoming), _activation(random))]


def _pool(random: Random, incoming: Incoming) -> list[Spec]:
    kind = MaxPool2D if random.random() < 0.5 else AveragePool2D
    return [kind(*_window(random, incoming))]


def _padding(random: Random, incoming: Incoming) -> list[Spec]:
    top, bottom, left, right = (int(each) for each in random.integers(0, 3, 4))
    return [ZeroPad2D((top, bottom, left, right))]


def _group_norm(random: Random, incoming: Incoming) -> list[Spec]:
    channels = incoming.shape[2]
    groups = [each for each in range(1, channels + 1) if channels % each == 0]
    center, scale = bool(random.random() < 0.8), bool(random.random() < 0.8)
    return [GroupNorm(int(random.choice(groups)), 0.1, center, scale), *_smooth(random)]


def _batch_norm(random: Random, incoming: Incoming) -> list[Spec]:
    center, scale = bool(random.random() < 0.8), bool(random.random() < 0.8)
    return [BatchNorm(float(random.random()), 0.1, center, scale), *_smooth(random)]


def _layer_norm(random: Random, incoming: Incoming) -> list[Spec]:
    center, scale = bool(random.random() < 0.8), bool(random.random() < 0.8)
    return [LayerNorm(0.1, center, scale), *_smooth(random)]


def _dense(random: Random, incoming: Incoming) -> list[Spec]:
    constant = float(random.random())
    own: list[list[Spec]] = [[], [LeakyReLU(constant)], [ELU(constant)]]
    activation = _activation(random)
    more = own[random.integers(3)] if activation == "linear" else []
    return [Dense(_size(random), activation), *more]


def _flat_dense(random: Random, incoming: Incoming) -> list[Spec]:
    return [Flatten(), *_dense(random, incoming)]


def _dropout(random: Random, incoming: Incoming) -> list[Spec]:
    return [Dropout(float(random.choice([0.1, 0.5])))]


def _smooth(random: Random) -> list[Spec]:
    return [Activation(str(random.choice(SMOOTH)))] if random.random() < 0.4 else []


def _alone(random: Random, incoming: Incoming) -> list[Spec]:
    return [Activation(str(random.choice(SMOOTH)))]


_Kind = Callable[[Random, Incoming], list[Spec]]
_OF_ALL: list[_Kind] = [_layer_norm, _group_norm, _batch_norm, _dropout, _alone]
_OF_VECTORS: list[_Kind] = [_dense, _dense, _dense, *_OF_ALL]
_OF_IMAGES: list[_Kind] = [
    *(_conv, _conv, _conv, _conv, _depthwise, _separable, _pool, _pool, _padding, _flat_dense),
    *_OF_ALL,
]


def _model(number: int) -> Model:
    random = np.random.default_rng(number)
    specs, shape = _grown(random)
    model = models.sequential(specs, shape, NUM_CLASSES, seed=number)
    noise = random.normal(0, 0.1, model.layout.num_params)
    return Model(model.name, model.layout, (model.initial_params + noise).astype(np.float32))


def _clear_of_kinks(number: int) -> tuple[Model, one_step.Drawn]:
    """A graph and a batch without values so near a kink that rounding decides the slope.

    In a graph with constants, such as windows of zeros, equal values may meet in a max pool,
    whatever the batch; then another graph is drawn.
    """
    for seed in range(number, number + 10**7, 10**6):
        model = _model(seed)
        params = model.initial_params.astype(np.float64)
        for data_seed in range(10):
            drawn = one_step.draw(model, 7, data_seed)
            distance = reference_net.kink_distance(model.layout, params, drawn.batch, drawn.masks)
            if distance >= KINK_MARGIN:
                return model, drawn
    raise reference_net.NearKinkError(f"graph {number}: all batches are near a kink")


@pytest.mark.parametrize("number", range(NUM_GRAPHS))
def test_a_random_graph_follows_the_reference_on_any_number_of_threads(number: int) -> None:
    model, drawn = _clear_of_kinks(number)
    params = model.initial_params.astype(np.float64)
    _, expected = reference_net.score(model.layout, params, drawn.batch, drawn.masks)
    found = [one_step.gradient(model, drawn, num_threads) for num_threads in (1, 2, 3, 7)]
    assert len({each.tobytes() for each in found}) == 1
    largest = np.abs(expected).max()
    for tensor in model.layout.tensors:
        if not tensor.is_trained:
            continue
        own = slice(tensor.offset, tensor.offset + tensor.size)
        # Each layer has an error of 1e-7, with Winograd 1e-5; errors grow with the depth.
        atol = 5e-5 * np.abs(expected[own]).max() + 5e-6 * largest
        np.testing.assert_allclose(
            found[0][own], expected[own], rtol=0, atol=atol, err_msg=tensor.name
        )
    first = model.layout.num_trained
    moved = reference_net.moved_statistics(model.layout, params, drawn.batch, drawn.masks)
    change = -found[0][first:] * one_step.RATE
    np.testing.assert_allclose(params[first:] + change, moved, rtol=2e-5, atol=2e-5)
    evaluator = learning.build_fed_eval(model)
    metrics = evaluator.next(evaluator.initialize(), [drawn.dataset]).metrics
    loss = metrics["client_work"]["eval"]["current_round_metrics"]["loss"]
    stats, _ = reference_net.score(model.layout, params, drawn.batch)
    assert math.isclose(loss, stats.loss_sum / stats.num_examples, rel_tol=2e-5)


def test_the_graphs_have_every_kind_of_layer_and_activation() -> None:
    """The graphs are those of the test above; they are not trained."""
    layouts = [_model(number).layout for number in range(100)]
    kinds = {layer.kind for layout in layouts for layer in layout.layers}
    assert kinds >= {
        *("conv2d", "depthwise_conv2d", "dense", "max_pooling2d", "average_pooling2d", "add"),
        "concatenate",
        *("group_normalization", "layer_normalization", "batch_normalization", "zero_padding2d"),
        *("dropout", "activation"),
    }
    activations = {layer.activation for layout in layouts for layer in layout.layers}
    assert activations == {"linear", *SMOOTH, *KINKED}
