"""Graphs of layers: calls of layers on each other's outputs, and their order and sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedcli.errors import ConfigError
from fedcli.models import functional, sequential
from fedcli.models.layer_graphs import specs_of
from fedcli.models.layers import (
    IMAGE,
    Activation,
    Add,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Input,
    Node,
    Spec,
)
from fedcli.models.layout import from_description, lay_out


def _residual() -> Node:
    image = Input()
    block = Conv2D(4, 3, padding="same", activation="relu")(image)
    main = Conv2D(4, 3, padding="same")(block)
    shortcut = Conv2D(4, 1)(block)
    return Dense(3)(Activation("relu")(Add()(main, shortcut)))


def test_calls_of_layers_become_a_list_that_names_their_inputs() -> None:
    specs = specs_of(_residual())
    assert [(spec.name, spec.inputs) for spec in specs] == [
        ("conv2d", ()),
        ("conv2d_1", ()),
        ("conv2d_2", ("conv2d",)),
        ("add", ("conv2d_1", "conv2d_2")),
        ("activation", ()),
        ("dense", ()),
    ]
    layout = functional(_residual(), (6, 5), 3).layout
    assert layout.sources == ((0,), (1,), (1,), (2, 3), (4,))
    assert layout.layers[3].activation == "relu"


def test_a_chain_of_calls_is_the_sequential_model() -> None:
    specs: list[Spec] = [Conv2D(4, 3), Flatten(), Dropout(0.5), Dense(5, "relu"), Dense(3)]
    node = Input()
    for spec in specs:
        node = spec(node)
    called, listed = functional(node, (6, 6), seed=3), sequential(specs, (6, 6), seed=3)
    assert called.layout == listed.layout
    np.testing.assert_array_equal(called.initial_params, listed.initial_params)


def test_descriptions_of_graphs_give_them_back() -> None:
    layout = functional(_residual(), (6, 5)).layout
    assert from_description(layout.description()) == layout
    chain = lay_out([Dense(3)], (2,)).description()
    assert chain["layers"] == [
        {"kind": "dense", "units": 3, "activation": "linear", "use_bias": True, "name": "dense"}
    ]


def test_an_activation_joins_only_a_layer_without_other_readers() -> None:
    image = Input()
    conv = Conv2D(3, 3, padding="same")(image)
    relu = Activation("relu")(conv)
    layout = functional(Dense(2)(Add()(relu, conv)), (4, 4)).layout
    assert [layer.kind for layer in layout.layers] == ["conv2d", "activation", "add", "dense"]
    assert layout.layers[0].activation == "linear"
    assert layout.sources == ((0,), (1,), (2, 1), (3,))


def test_layers_that_compute_nothing_are_replaced_by_their_input() -> None:
    image = Input()
    conv = Conv2D(3, 3, padding="same")(image)
    kept = Dropout(0.0)(conv)
    relu = Activation("relu")(kept)
    layout = functional(Dense(2)(Add()(relu, kept)), (4, 4)).layout
    assert [layer.kind for layer in layout.layers] == ["conv2d", "activation", "add", "dense"]
    assert layout.sources == ((0,), (1,), (2, 1), (3,))


def test_a_graph_deeper_than_the_limit_of_recursion_is_read() -> None:
    node = Input()
    for _ in range(1001):
        node = Dense(1)(node)
    with pytest.raises(ConfigError, match="has 1001 layers; give at most 512"):
        sequential(specs_of(Activation("relu")(node))[:1001], (1,))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [Dense(2), Add()],
            r"layer add: it reads 'dense', but a layer of kind add has 2 inputs; name",
        ),
        (
            [Dense(2, inputs=("a", "b"))],
            "layer dense: it reads 'a, b', but a layer of kind dense has 1 input",
        ),
        (
            [Dense(2, inputs=("later",)), Dense(2, name="later")],
            "dense: it reads 'later', which is",
        ),
        ([Dense(2, inputs=("dense",))], "dense: it reads 'dense', which is not a layer before it"),
        (
            [Dense(2, name="lost"), Dense(2, inputs=(IMAGE,))],
            "layer lost: no layer reads its output; name it in the inputs of another",
        ),
        (
            [Dense(2, name="a"), Dense(3, name="b"), Add(inputs=("a", "b"))],
            r"layer add: its inputs have shapes \[1, 1, 2\], \[1, 1, 3\]; give it inputs of",
        ),
        (
            [
                Dense(2, name="a"),
                Concatenate(inputs=("a", IMAGE)),
                Add(inputs=("a", "concatenate")),
            ],
            r"layer add: its inputs have shapes \[1, 1, 2\], \[1, 1, 6\]; give it inputs of",
        ),
        (
            [Dense(2, name="a"), Dense(2), Add(inputs=("a", "dense")), Flatten(inputs=("a",))],
            "layer add: no layer reads its output",
        ),
        ([Dense(2, inputs=["a"])], "layer dense: inputs .*: give a tuple of the names"),  # type: ignore[arg-type]
    ],
)
def test_graphs_that_do_not_hold_together_are_refused(specs: list[Spec], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lay_out(specs, (4,))


def test_only_images_of_one_size_or_vectors_are_put_together() -> None:
    layers: list[Spec] = [Conv2D(2, 2), Concatenate(inputs=("conv2d", IMAGE)), Dense(3)]
    with pytest.raises(
        ConfigError, match=r"layer concatenate: its inputs have shapes \[3, 3, 2\],"
    ):
        lay_out(layers, (4, 4, 5))
    layers[0] = Conv2D(2, 3, padding="same")
    assert lay_out(layers, (4, 4, 5)).layers[1].out_shape == (4, 4, 7)
    layers = [Flatten(), Concatenate(inputs=("flatten", "flatten")), Dense(3)]
    with pytest.raises(ConfigError, match="layer concatenate: a concatenate of a flattened image"):
        lay_out(layers, (4, 4, 5))
    assert lay_out(layers, (5,)).layers[0].out_shape == (1, 1, 10)


def test_calls_on_other_things_are_refused() -> None:
    image = Input()
    with pytest.raises(ConfigError, match="layer add is called on 1 value; call it on 2, each"):
        Add()(image)
    with pytest.raises(
        ConfigError, match=r"layer conv is called on a value of type ndarray; call it on layers\.I"
    ):
        Conv2D(1, 3, name="conv")(np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="logits is not the output of a layer"):
        functional(image, (2, 2))
    with pytest.raises(ConfigError, match="the graph reads 2 inputs; call Input\\(\\) once"):
        functional(Add()(Dense(2)(image), Dense(2)(Input())), (2, 2))


def test_the_input_may_state_its_shape() -> None:
    image = Input((6, 4))
    model = functional(Dense(3)(image), seed=2)
    expected = sequential([Dense(3)], (6, 4), seed=2)
    assert model.layout == expected.layout
    np.testing.assert_array_equal(model.initial_params, expected.initial_params)
    assert sequential([Input(shape=(6, 4)), Dense(3)]).layout == expected.layout
    assert sequential([Input((24,)), Dense(3)]).layout.input_shape == (24,)
    assert functional(Dense(3)(image), (6, 4)).layout == expected.layout
    assert sequential([Input(), Dense(3)], [6, 4]).layout == expected.layout


IMAGE_OF_4: Any = Input((4,))


@pytest.mark.parametrize(
    ("specs", "shape", "message"),
    [
        ([Dense(3)], None, "input_shape is missing; give .*, or start from layers.Input"),
        ([Input(), Dense(3)], None, "input_shape is missing"),
        ([], None, "input_shape is missing"),
        ([IMAGE_OF_4, Dense(3)], (2, 2), r"input_shape is given as \(2, 2\) and as \(4,\); leave"),
        ([Dense(3)], 784, "examples have shape 784; give whole numbers from 1 without the batch's"),
        ([IMAGE_OF_4], None, "the model has no layers"),
        ([Dense(3)(IMAGE_OF_4)], (4,), "layer 1 of the model is of type Node"),
        (IMAGE_OF_4, (4,), "the layers are of type Node; give a list of layers"),
    ],
)
def test_a_stack_needs_one_shape(specs: Any, shape: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sequential(specs, shape)


def test_a_graph_needs_one_shape() -> None:
    with pytest.raises(ConfigError, match="input_shape is missing; give the shape of one example"):
        functional(Dense(3)(Input()))
    with pytest.raises(ConfigError, match=r"given as \(2, 2\) and as \(4,\); leave one out"):
        functional(Dense(3)(IMAGE_OF_4), (2, 2))


@pytest.mark.parametrize("shape", [784, (None, 28), "784", (), (0, 3), (2.0, 2)])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(ConfigError, match=r"^examples have shape .*; give .* or \(784,\)"):
        Input(shape)


def test_options_of_keras_that_an_input_does_not_have_are_named() -> None:
    with pytest.raises(TypeError, match="Input has no argument 'batch_shape'; it takes shape"):
        Input(batch_shape=(None, 784))  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"write models.sequential\(\[layers.Input\(shape\), ...\]\)"
    ):
        Dense(10, input_shape=(784,))  # type: ignore[call-arg]
