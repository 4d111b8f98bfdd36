from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli import models
from fedcli.core import _core, native
from fedcli.core.native import MAX_LAYERS
from fedcli.errors import ConfigError
from fedcli.models.layers import (
    Activation,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    MaxPool2D,
    Spec,
)
from fedcli.models.layers.contract import GLOROT_UNIFORM
from fedcli.models.layout import ParamLayout, Tensor, from_description, lay_out
from fedcli.settings import tables


def _stack(*sizes: int) -> ParamLayout:
    return lay_out([Dense(size) for size in sizes[1:]], (sizes[0],))


def test_tensors_fill_the_vector_in_layer_order() -> None:
    layout = _stack(6, 4, 3)
    assert layout.tensors == (
        Tensor("dense/kernel", (6, 4), 0, GLOROT_UNIFORM),
        Tensor("dense/bias", (4,), 24, 0.0),
        Tensor("dense_1/kernel", (4, 3), 28, GLOROT_UNIFORM),
        Tensor("dense_1/bias", (3,), 40, 0.0),
    )
    assert (layout.num_params, layout.num_inputs, layout.num_classes) == (43, 6, 3)


def test_tensors_of_every_kind_have_keras_s_shapes_and_order() -> None:
    specs: list[Spec] = [
        Conv2D(8, (3, 2), use_bias=False),
        GroupNorm(4),
        GroupNorm(2, scale=False),
        GroupNorm(2, center=False),
        GroupNorm(1, center=False, scale=False),
        Conv2D(5, 1),
        Dense(3, use_bias=False),
        Dense(2),
    ]
    layout = lay_out(specs, (4, 4, 3))
    assert [(tensor.name, tensor.shape) for tensor in layout.tensors] == [
        ("conv2d/kernel", (3, 2, 3, 8)),
        ("group_normalization/gamma", (8,)),
        ("group_normalization/beta", (8,)),
        ("group_normalization_1/beta", (8,)),
        ("group_normalization_2/gamma", (8,)),
        ("conv2d_1/kernel", (1, 1, 8, 5)),
        ("conv2d_1/bias", (5,)),
        ("dense/kernel", (2 * 3 * 5, 3)),
        ("dense_1/kernel", (3, 2)),
        ("dense_1/bias", (2,)),
    ]
    offsets = itertools.accumulate((tensor.size for tensor in layout.tensors), initial=0)
    assert [*(tensor.offset for tensor in layout.tensors), layout.num_params] == list(offsets)


def test_core_rows_hold_the_fields_of_the_core_s_struct_in_order() -> None:
    specs: list[Spec] = [
        Conv2D(4, (3, 5), (1, 2), "same", "relu"),
        MaxPool2D(2),
        AveragePool2D((2, 1), (1, 1)),
        GroupNorm(2, 0.5, scale=False),
        Dropout(0.25),
        Activation("tanh"),
        Flatten(),
        Dense(3),
    ]
    # The first 18 columns: kind, activation, in, out, offset; skips, scale, bias; window, strides,
    # pads; groups, epsilon, rate.
    none, no_window = (0, 0, 0, 0), (0, 0, 0, 0, 0, 0)
    small = (2, 2, 4)
    rows = lay_out(specs, (6, 8)).core_rows()
    assert {row[18:21] for row in rows} == {(0.0, 0, 119)}  # the columns of batch norms
    assert {row[21:] for row in rows} == {(0.0,) * 8}  # the columns of input layers
    assert [row[:18] for row in rows] == [
        ("conv2d", 1, (6, 8, 1), (6, 4, 4), 0, *(0, 0, 0, 1), *(3, 5, 1, 2, 1, 1), 0, 0.0, 0.0),
        ("max_pooling2d", 0, (6, 4, 4), (3, 2, 4), 64, *none, *(2, 2, 2, 2, 0, 0), 0, 0.0, 0.0),
        ("average_pooling2d", 0, (3, 2, 4), small, 64, *none, *(2, 1, 1, 1, 0, 0), 0, 0.0, 0.0),
        ("group_normalization", 0, small, small, 64, *(0, 0, 0, 1), *no_window, 2, 0.5, 0.0),
        ("dropout", 0, small, small, 68, *none, *no_window, 0, 0.0, 0.25),
        ("activation", 2, small, small, 68, *none, *no_window, 0, 0.0, 0.0),
        ("dense", 0, small, (1, 1, 3), 68, *(0, 0, 0, 1), *no_window, 0, 0.0, 0.0),
    ]


def test_moving_statistics_follow_all_trained_tensors() -> None:
    specs = [
        BatchNorm(0.5, 0.25, scale=False, name="first"),
        Conv2D(4, 1, name="conv"),
        BatchNorm(frozen=True, name="second"),
        Dense(3, name="last"),
    ]
    layout = lay_out(specs, (2, 2, 2))
    assert [(each.name, each.offset) for each in layout.tensors] == [
        ("first/beta", 0),
        *(("conv/kernel", 2), ("conv/bias", 10)),
        *(("second/gamma", 14), ("second/beta", 18)),
        *(("last/kernel", 22), ("last/bias", 70)),
        *(("first/moving_mean", 73), ("first/moving_variance", 75)),
        *(("second/moving_mean", 77), ("second/moving_variance", 81)),
    ]
    assert (layout.num_trained, layout.num_params) == (73, 85)
    assert [tensor.is_trained for tensor in layout.tensors] == [True] * 7 + [False] * 4
    # Columns: offset; epsilon; momentum, whether it is frozen, offset of moving statistics.
    picked = [(row[4], row[16], *row[18:21]) for row in layout.core_rows()]
    assert picked == [
        (0, 0.25, 0.5, 0, 73),
        (2, 0.0, 0.0, 0, 77),
        (14, 1e-3, 0.99, 1, 77),
        (22, 0.0, 0.0, 0, 85),
    ]
    native.Model(layout.core_rows(), layout.num_params)
    values = range(len(layout.tensors))
    assert layout.in_order(value for _, _, value in layout.by_layer(values)) == list(values)


@pytest.mark.parametrize("wrong", [72, 74, 0])
def test_the_core_refuses_statistics_elsewhere(wrong: int) -> None:
    layout = lay_out([BatchNorm(), Dense(3)], (2, 2, 2))
    rows = layout.core_rows()
    native.Model(rows, layout.num_params)
    with pytest.raises(_core.CoreError):
        native.Model([layout.layers[0].core_row(0, wrong), rows[1]], layout.num_params)


# Number of outputs and padding before the input, by TensorFlow's documentation.
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "outputs", "pad"),
    [
        (28, 5, 1, "same", 28, 2),
        (28, 2, 2, "same", 14, 0),
        (7, 2, 2, "same", 4, 0),  # the padding of 1 is at the end
        (7, 3, 2, "same", 4, 1),
        (8, 3, 2, "same", 4, 0),
        (5, 4, 1, "same", 5, 1),
        (2, 5, 1, "same", 2, 2),
        (5, 1, 3, "same", 2, 0),
        (7, 2, 2, "valid", 3, 0),
        (28, 5, 1, "valid", 24, 0),
        (5, 5, 9, "valid", 1, 0),
    ],
)
def test_windows_are_placed_as_tensorflow_does(
    size: int, window: int, stride: int, padding: str, outputs: int, pad: int
) -> None:
    specs: list[Spec] = [Conv2D(3, window, stride, padding), Dense(2)]
    conv = lay_out(specs, (size, size)).layers[0]
    pool = lay_out([MaxPool2D(window, stride, padding), Dense(2)], (size, size, 3)).layers[0]
    for layer in (conv, pool):
        assert layer.out_shape == (outputs, outputs, 3)
        assert layer.pads == (pad, pad)


def test_a_pool_without_strides_steps_by_its_window() -> None:
    layer = lay_out([AveragePool2D((3, 2)), Dense(2)], (6, 6)).layers[0]
    assert (layer.strides, layer.out_shape) == ((3, 2), (2, 3, 1))


def test_activations_become_part_of_the_layer_before_where_it_has_none() -> None:
    specs: list[Spec] = [
        Activation("relu", "first"),
        Conv2D(2, 3),
        Activation("relu"),
        GroupNorm(1),
        Flatten(),
        Activation("tanh"),
        Activation("sigmoid", "second"),
        Dropout(0.5),
        Activation("relu", "third"),
        Activation("linear"),
        Dense(3),
    ]
    layers = lay_out(specs, (5, 5)).layers
    assert [(layer.name, layer.activation) for layer in layers] == [
        ("first", "relu"),
        ("conv2d", "relu"),
        ("group_normalization", "tanh"),
        ("second", "sigmoid"),
        ("dropout", "linear"),
        ("third", "relu"),
        ("dense", "linear"),
    ]


def test_a_softmax_at_the_end_belongs_to_the_loss() -> None:
    models_of: list[list[Spec]] = [[Dense(3, "softmax")], [Dense(3), Activation("softmax")]]
    for specs in models_of:
        layout = lay_out(specs, (4,))
        assert [layer.activation for layer in layout.layers] == ["linear"]
        assert layout.core_rows() == _stack(4, 3).core_rows()
    models_of = [[Dense(3, "softmax"), Dense(2)], [Activation("softmax"), Dense(2)]]
    for specs in models_of:
        with pytest.raises(ConfigError, match="a softmax is allowed only at the end of a model"):
            lay_out(specs, (4,))


def test_dropout_of_rate_0_is_no_layer_of_the_core() -> None:
    layout = lay_out([Dropout(0), Dense(3)], (4,))
    assert [layer.kind for layer in layout.layers] == ["dense"]


def test_names_are_counted_by_kind_around_those_given() -> None:
    specs: list[Spec] = [Dense(4), Dense(4, name="dense_1"), Dense(4), Dense(4, name="last")]
    assert [spec.name for spec in lay_out(specs, (2,)).specs] == [
        *("dense", "dense_1", "dense_2", "last")
    ]


@pytest.mark.parametrize("name", sorted(tables.MODELS))
def test_a_description_survives_json(name: str) -> None:
    layout = models.build_layout(name)
    assert from_description(json.loads(json.dumps(layout.description()))) == layout


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "must have two keys, input_shape and layers"),
        ({"layers": []}, "must have two keys"),
        ({"input_shape": 3, "layers": []}, "must be lists"),
        ({"input_shape": [2, "2"], "layers": []}, r"examples have shape \[2, '2'\]; give whole"),
        ({"input_shape": [10**30, 2], "layers": []}, "at most 67,108,864 values"),
        ({"input_shape": [2, 2], "layers": []}, "has no layer"),
        ({"input_shape": [2, 2], "layers": [3]}, "a layer is of kind None"),
        (
            {"input_shape": [2, 2], "layers": [{"kind": "dense", "units": 2, "name": [[]]}]},
            r"layer name \(\[\],\): give up to 100 characters",
        ),
        (
            {"input_shape": [2, 2], "layers": [{"kind": "dense", "units": 10**9}]},
            "layer dense: units 1000000000: choose a whole number",
        ),
    ],
)
def test_invalid_descriptions_are_refused(description: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_description(description)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_join_undoes_split(sizes: list[int]) -> None:
    layout = _stack(*sizes)
    flat = np.arange(layout.num_params, dtype=np.float32)
    tensors = layout.split(flat)
    assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in layout.tensors]
    np.testing.assert_array_equal(layout.join(tensors), flat)


def test_split_gives_views_and_join_a_copy() -> None:
    layout = _stack(2, 2)
    flat = np.zeros(6, np.float32)
    kernel, bias = layout.split(flat)
    kernel[1, 0], bias[1] = 5.0, 7.0
    np.testing.assert_array_equal(flat, [0, 0, 5, 0, 0, 7])
    assert not np.shares_memory(layout.join([kernel, bias]), flat)


def test_join_takes_any_real_dtype_and_memory_order() -> None:
    kernel = np.asfortranarray(np.arange(6).reshape(3, 2))
    joined = _stack(3, 2).join([kernel, np.array([6.0, 7.0])])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.arange(8))


def test_join_shows_both_lists_of_shapes() -> None:
    with pytest.raises(ConfigError) as error:
        _stack(3, 2).join([np.zeros((2, 3)), np.zeros(2)])
    assert str(error.value) == (
        "weights have shapes [2, 3], [2], but the model needs [3, 2], [2]; "
        "give one array per tensor in layer order, kernel before bias"
    )
    with pytest.raises(ConfigError, match="weights have shapes none, but the model needs"):
        _stack(3, 2).join([])


def test_join_refuses_what_is_not_a_real_number() -> None:
    with pytest.raises(ConfigError, match="weights have types complex128, <U1; give arrays of"):
        _stack(1, 1).join([np.zeros((1, 1), complex), np.array(["a"])])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "has no layer"),
        ([Flatten()], "has no layer"),
        ([Dense(0)], "layer dense: units 0: choose a whole number"),
        (
            [Dense(3, name="a"), Dense(3, name="a")],
            "several layers are called a, a; give each its own name",
        ),
        ([Conv2D(3, 3), MaxPool2D(7), Dense(2)], "layer max_pooling2d: its window of 7 x 7 is lar"),
        ([Flatten(), Conv2D(3, 3), Dense(2)], "a conv2d takes an image, but its input is a vector"),
        ([Dense(9), MaxPool2D(1), Dense(2)], "a max_pooling2d takes an image, but its input is a"),
        ([Conv2D(6, 3), GroupNorm(4), Dense(2)], "4 groups do not divide the 6 channels of the"),
        ([Flatten(), GroupNorm(1), Dense(2)], "a group_normalization of a flattened image; put it"),
        ([Dense(3, "relu")], "layer dense: its outputs are logits, to which the loss applies"),
        ([Dense(3), Activation("relu")], "layer dense: its outputs are logits, to which the loss"),
        (
            [Conv2D(3, 7)],
            "layer conv2d: it gives 2 x 2 x 3 values, but the last layer must give one ",
        ),
        ([MaxPool2D(2), Flatten()], "layer max_pooling2d: it gives 4 x 4 x 1 values, but the last"),
        ([MaxPool2D(8)], "the model has no parameters; give at least one layer with parameters"),
        ([Dense(2)] * (MAX_LAYERS + 1), f"has {MAX_LAYERS + 1} layers; give at most {MAX_LAYERS}"),
        ([Dense(1 << 24)] * 2, "the model has .* parameters; choose sizes that give fewer"),
        ([Conv2D(1 << 24, 3), Dense(2)], "layer conv2d gives .* values per example; choose sizes"),
        (
            [Dense(2), "dense"],
            "layer 2 of the model is of type str; give layers of fedcli.layers, such",
        ),
        (
            [Dense],
            "layer 1 of the model is of type type; give layers of fedcli.layers, such as Dense",
        ),
        (Dense(2), "the layers are of type Dense; give a list of layers"),
        (None, "the layers are of type NoneType; give a list of layers"),
    ],
)
def test_layers_that_do_not_fit_are_refused(specs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lay_out(specs, (8, 8))


@pytest.mark.parametrize("shape", [(), (0, 3), (2.0, 3), (True, 3), (1 << 20, 1 << 20)])
def test_shapes_that_no_example_has_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="examples have shape"):
        lay_out([Dense(2)], shape)


def test_the_core_takes_as_many_layers_as_a_model_may_have() -> None:
    layout = lay_out([Dense(1, use_bias=False)] * MAX_LAYERS, (1,))
    native.Model(layout.core_rows(), layout.num_params)
    rows = [
        layer.core_row(offset, 0) for offset, layer in enumerate([*layout.layers, *layout.layers])
    ]
    with pytest.raises(_core.CoreError):
        native.Model(rows[: MAX_LAYERS + 1], MAX_LAYERS + 1)


def test_the_memory_of_a_thread_grows_with_the_batch_and_holds_its_values() -> None:
    layout = models.build_layout("vgg9", input_shape=(32, 32, 3))
    rows, num_params = layout.core_rows(), layout.num_params
    small, large = (native.batch_bytes(rows, num_params, size) for size in (10, 20))
    values = 4 * sum(layer.num_outputs for layer in layout.layers)
    assert large - small > 10 * values
    assert large - small < 30 * values
    with pytest.raises(_core.CoreError, match="batches of 0 examples"):
        native.batch_bytes(rows, num_params, 0)


def test_a_network_that_takes_batches_in_parts_has_memory_for_a_part() -> None:
    layout = models.build_layout("resnet20", input_shape=(32, 32, 3))
    rows, num_params = layout.core_rows(), layout.num_params
    small, large = (native.batch_bytes(rows, num_params, size) for size in (10, 20))
    values = 4 * sum(layer.num_outputs for layer in layout.layers)
    # Beyond one part, only an index for each example and a score for each part are stored.
    assert 0 < large - small < 1024
    assert 2 * values < large < 10 * values


def test_kinds_of_layers_that_the_core_does_not_have_are_refused() -> None:
    layout = _stack(4, 3)
    (row,) = layout.core_rows()
    native.Model([row], layout.num_params)
    with pytest.raises(_core.CoreError, match="kind"):
        native.Model([("flatten", *row[1:])], layout.num_params)
