from __future__ import annotations

import contextlib
import os
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.datasets.batches import from_arrays
from fedcli.errors import ConfigError, FedcliError, RunError
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models import weights_files
from fedcli.models.keras import formats
from fedcli.models.layer_graphs import specs_of
from fedcli.models.layers import (
    ELU,
    IMAGE,
    Activation,
    Add,
    AveragePool2D,
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
    Spec,
    ZeroPad2D,
)
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.models.sources import open_model
from tests.kit import reference_net
from tests.kit.keras_samples import (
    archive,
    call3,
    counted,
    functional,
    hdf5,
    image_input,
    layer,
    legacy,
    put,
    sequential,
)

HIDDEN = layer("Dense", "z", units=3, activation="relu", use_bias=True)
LOGITS = layer("Dense", "a", units=2, activation="softmax", use_bias=True)
MLP = sequential(image_input(4), HIDDEN, LOGITS)
WEIGHTS: list[Any] = [
    np.arange(12, dtype=np.float32).reshape(4, 3),
    np.array([1, 2, 3], np.float32),
    np.arange(6, dtype=np.float32).reshape(3, 2) / 4,
    np.array([-1, 1], np.float32),
]
COUNTED = {"dense": WEIGHTS[:2], "dense_1": WEIGHTS[2:]}
NAMED = {
    "z": {"z/kernel:0": WEIGHTS[0], "z/bias:0": WEIGHTS[1]},
    "a": {"a/kernel:0": WEIGHTS[2], "a/bias:0": WEIGHTS[3]},
}
LAYOUT = lay_out([Dense(3, "relu"), Dense(2)], [4])


def check_weights(found: Sequence[Any] | None, expected: Sequence[Any] = WEIGHTS) -> None:
    assert found is not None
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted)


def fault_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        formats.read_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # so it is one line
    assert len(message) < 800
    return message


@pytest.mark.parametrize("container", ["layers", "_layers", "_layer_checkpoint_dependencies"])
def test_keras_archives_go_by_counted_class_names(tmp_path: Path, container: str) -> None:
    path = put(tmp_path / "any.name", archive(MLP, counted(COUNTED, container)))
    model = formats.read_model(path)
    assert model.specs == (Dense(3, "relu", name="z"), Dense(2, "softmax", name="a"))
    assert (model.name, model.input_shape) == ("sequential", (4,))
    check_weights(model.weights)
    check_weights(formats.read_weights(path, LAYOUT))
    bare = put(tmp_path / "bare", counted(COUNTED, container))
    check_weights(formats.read_weights(bare, LAYOUT))


@pytest.mark.parametrize("fixed", [True, False])
def test_legacy_files_go_by_layer_names(tmp_path: Path, fixed: bool) -> None:
    named = {"z": NAMED["z"], "drop": {}, "a": NAMED["a"]}
    path = put(tmp_path / "whole", legacy(named, MLP, fixed=fixed))
    check_weights(formats.read_model(path).weights)
    check_weights(formats.read_weights(path, LAYOUT))
    bare = put(tmp_path / "bare", legacy(named, fixed=fixed))
    check_weights(formats.read_weights(bare, LAYOUT))
    assert "holds weights without a model" in fault_of(bare)


def test_json_alone_has_no_weights(tmp_path: Path) -> None:
    model = formats.read_model(put(tmp_path / "m.json", MLP))
    assert model.weights is None
    assert model.starts == ("GlorotUniform", 0.0, "GlorotUniform", 0.0)
    with pytest.raises(ConfigError, match="describes a model without weights"):
        formats.read_weights(tmp_path / "m.json", LAYOUT)


@pytest.mark.parametrize("keras", [2, 3])
def test_straight_graphs_are_read_in_the_order_of_their_calls(tmp_path: Path, keras: int) -> None:
    sources = {"z": "input_layer", "a": "z"}
    graph = functional([LOGITS, image_input(4), HIDDEN], sources, keras)
    path = put(tmp_path / "m", archive(graph, counted(COUNTED)))
    check_weights(formats.read_model(path).weights)


@pytest.mark.parametrize("keras", [2, 3])
def test_sums_are_read_with_their_inputs(tmp_path: Path, keras: int) -> None:
    layers = [
        image_input(4),
        layer("Dense", "z", units=4),
        layer("Dense", "y", units=4, activation="tanh"),
        layer("Add", "sum"),
        layer("Add", "all"),
        LOGITS,
    ]
    sources = {"z": "input_layer", "y": "z", "sum": "z y", "all": "sum y input_layer", "a": "all"}
    model = formats.read_model(put(tmp_path / "m", functional(layers, sources, keras)))
    assert [(spec.name, spec.inputs) for spec in model.specs] == [
        ("z", ()),
        ("y", ()),
        ("sum", ("z", "y")),
        ("all", ("sum", "y")),
        ("all_1", ("all", IMAGE)),
        ("a", ()),
    ]


@pytest.mark.parametrize("keras", [2, 3])
def test_channels_of_several_layers_are_put_together(tmp_path: Path, keras: int) -> None:
    layers = [
        image_input(5, 4, 2),
        layer("Conv2D", "z", filters=4, kernel_size=3, padding="same"),
        layer("Conv2D", "y", filters=3, kernel_size=1),
        layer("Concatenate", "all", axis=-1),
        layer("GlobalAveragePooling2D", "g"),
        LOGITS,
    ]
    sources = {"z": "input_layer", "y": "z", "all": "z y input_layer", "g": "all", "a": "g"}
    model = formats.read_model(put(tmp_path / "m", functional(layers, sources, keras)))
    assert [(spec.name, spec.inputs) for spec in model.specs[2:4]] == [
        ("all", ("z", "y")),
        ("all_1", ("all", IMAGE)),
    ]
    assert lay_out(model.specs, model.input_shape).tensors[-2].shape == (9, 2)
    for axis, fault in ((1, "axis is 1"), (0, "axis is 0")):
        layers[3] = layer("Concatenate", "all", axis=axis)
        assert fault in fault_of(put(tmp_path / "n", functional(layers, sources, keras)))
    layers[2] = layer("Conv2D", "y", filters=3, kernel_size=2)
    fault = fault_of(put(tmp_path / "n", functional(layers, sources, keras)))
    assert "inputs of shapes [5, 4, 4], [4, 3, 3]" in fault
    assert fault.endswith("two or more inputs whose shapes differ only in channels")


def test_graphs_with_weights_there_and_back(tmp_path: Path) -> None:
    image = Input()
    start = Conv2D(4, 3, padding="same", activation="relu", name="start")(image)
    short = Conv2D(6, 1, 2, name="short")(start)
    main = GroupNorm(2)(Conv2D(6, 3, 2, "same", use_bias=False)(start))
    main = Conv2D(6, 3, padding="same", name="main")(Activation("relu")(main))
    total = Activation("relu")(Add()(main, short))
    layout = lay_out(specs_of(Dense(3)(total)), (6, 6, 2))
    params = np.random.RandomState(2).normal(size=layout.num_params).astype(np.float32)
    whole, bare = tmp_path / "m.keras", tmp_path / "m.weights.h5"
    formats.write_keras(whole, layout, params)
    formats.write_weights(bare, layout, params)
    check_weights(formats.read_weights(whole, layout), layout.split(params))
    check_weights(formats.read_weights(bare, layout), layout.split(params))
    model = formats.read_model(whole)
    images = np.random.RandomState(3).normal(size=(3, 6, 6, 2))
    np.testing.assert_array_equal(
        reference_net.logits(lay_out(model.specs, model.input_shape), model.weights or [], images),
        reference_net.logits(layout, layout.split(params), images),
    )


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        (
            {"z": "input_layer", "a": "input_layer"},
            "has 2 outputs and 2 layers that no",
        ),
        ({"z": "a", "a": "z"}, "layer z is not connected to the model's input"),
        ({"z": "input_layer", "a": "other"}, "layer a is not connected"),
        ({"a": "input_layer"}, "has 2 inputs"),
    ],
)
@pytest.mark.parametrize("keras", [2, 3])
def test_other_graphs_are_refused(
    tmp_path: Path, sources: Mapping[str, str], fault: str, keras: int
) -> None:
    graph = functional([image_input(4), HIDDEN, LOGITS], sources, keras)
    assert fault in fault_of(put(tmp_path / "m", graph))


@pytest.mark.parametrize(
    ("nodes", "fault"),
    [
        ([call3("z"), call3("z")], "layer a is used more than once"),
        ([call3("z", training=True)], "is called with"),
        ([[["z", 0, 0, {"training": True}]]], "is called with"),
        ([[["z", 0, 0, {}], ["input_layer", 0, 0, {}]]], "takes 2 inputs"),
        ([[["z", 0, 1, {}]]], "takes 1 inputs"),
        ([{"args": [7], "kwargs": {}}], "takes 1 inputs"),
        ([7], "takes 0 inputs"),
        ([{"args": 7, "kwargs": 7}], "takes 0 inputs"),
    ],
)
def test_unusual_calls_are_refused(tmp_path: Path, nodes: list, fault: str) -> None:
    graph = functional([image_input(4), HIDDEN, LOGITS], {"z": "input_layer", "a": "z"}, 3)
    graph["config"]["layers"][2]["inbound_nodes"] = nodes
    assert fault in fault_of(put(tmp_path / "m", graph))


def test_the_defaults_of_a_call_are_no_options_of_it(tmp_path: Path) -> None:
    graph = functional([image_input(4), HIDDEN, LOGITS], {"z": "input_layer", "a": "z"}, 3)
    graph["config"]["layers"][2]["inbound_nodes"] = [call3("z", training=False, mask=None)]
    assert len(formats.read_model(put(tmp_path / "m", graph)).specs) == 2


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_batch_norm_that_is_called_for_inference_is_refused(
    tmp_path: Path, is_nested: bool
) -> None:
    norm = layer("BatchNormalization", "z")
    if is_nested:
        norm = sequential(image_input(4), norm, name="z")
    graph = functional([image_input(4), norm, LOGITS], {"z": "input_layer", "a": "z"}, 3)
    assert len(formats.read_model(put(tmp_path / "m", graph)).specs) == 2
    graph["config"]["layers"][1]["inbound_nodes"] = [call3("input_layer", training=False)]
    assert "layer z is called with {'training': False}" in fault_of(put(tmp_path / "m", graph))


def test_models_within_models_are_flattened(tmp_path: Path) -> None:
    inner = sequential(image_input(4), HIDDEN, name="inner")
    inner["config"]["layers"][1] = layer("Dense", "a", units=3, activation="relu")
    whole = sequential(image_input(4), inner, LOGITS)
    tensors = {"sequential/dense": WEIGHTS[:2], "dense": WEIGHTS[2:]}
    path = put(tmp_path / "m", archive(whole, counted(tensors)))
    model = formats.read_model(path)
    assert [spec.name for spec in model.specs] == ["a", "a_1"]
    check_weights(model.weights)
    named = {"inner": {"a/kernel:0": WEIGHTS[0], "a/bias:0": WEIGHTS[1]}, "a": NAMED["a"]}
    check_weights(formats.read_model(put(path, legacy(named, whole))).weights)
    for _ in range(9):
        whole = sequential(whole)
    assert "more than 8 deep" in fault_of(put(path, whole))


def test_a_nested_model_has_its_moving_statistics_last_in_legacy_files(tmp_path: Path) -> None:
    norms = [layer("BatchNormalization", name) for name in ("b", "c")]
    inner = sequential(image_input(4), *norms, name="inner")
    whole = sequential(image_input(4), inner, layer("Dense", "a", units=2))
    kinds = (("gamma", "beta"), ("moving_mean", "moving_variance"))
    names = [f"{norm}/{each}:0" for kind in kinds for norm in ("b", "c") for each in kind]
    vectors = [np.full(4, number, np.float32) for number in range(1, 9)]  # all of the same shape
    dense = [np.ones((4, 2), np.float32), np.zeros(2, np.float32)]
    named: dict[str, dict[str, Any]] = {
        "inner": dict(zip(names, vectors, strict=True)),
        "a": dict(zip(("a/kernel:0", "a/bias:0"), dense, strict=True)),
    }
    model = formats.read_model(put(tmp_path / "m", legacy(named, whole)))
    check_weights(model.weights, [*vectors[:4], *dense, *vectors[4:]])


def test_each_layer_of_keras_becomes_the_same_layer_of_fedcli(tmp_path: Path) -> None:
    pool = {"pool_size": [2, 2], "strides": None, "data_format": "channels_last"}
    model = sequential(
        image_input(13, 10, 1),
        layer("Conv2D", "c", filters=4, kernel_size=[3, 2], strides=[2, 1], padding="same"),
        layer("GroupNormalization", "g", groups=2, epsilon=0.01, center=False, axis=-1),
        layer("DepthwiseConv2D", "w", kernel_size=3, depth_multiplier=1, strides=[1, 1], groups=1),
        layer("ReLU", "r", max_value=None, negative_slope=0.0, threshold=0),
        layer("MaxPooling2D", "m", **pool, padding="same"),
        layer("AveragePooling2D", "v", **{**pool, "strides": 1}),
        layer("Dropout", "o", rate=0.5, seed=3, noise_shape=None),
        layer("GlobalAveragePooling2D", "e", keepdims=False, data_format="channels_last"),
        layer("Dense", "d", units=2, use_bias=False),
        layer("Softmax", "s", axis=-1),
    )
    found = formats.read_model(put(tmp_path / "m.json", model)).specs
    assert found[:4] == (
        Conv2D(4, (3, 2), (2, 1), "same", name="c"),
        GroupNorm(2, 0.01, center=False, name="g"),
        DepthwiseConv2D((3, 3), (1, 1), name="w"),
        Activation("relu", "r"),
    )
    assert found[6:] == (
        Dropout(0.5, "o"),
        GlobalAveragePool2D("e"),
        Dense(2, use_bias=False, name="d"),
        Activation("softmax", "s"),
    )


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (layer("ReLU", "x", max_value=6), Activation("relu6", "x")),
        (layer("ReLU", "x", negative_slope=0.1, max_value=None), LeakyReLU(0.1, "x")),
        (layer("LeakyReLU", "x", alpha=0.2), LeakyReLU(0.2, "x")),  # Keras 2
        (layer("LeakyReLU", "x"), LeakyReLU(0.3, "x")),
        (layer("ELU", "x", alpha=2), ELU(2.0, "x")),
        (layer("Activation", "x", activation="swish"), Activation("silu", "x")),
        (layer("Activation", "x", activation="hard_swish"), Activation("hard_silu", "x")),
        (layer("LayerNormalization", "x", axis=[3], rms_scaling=False), LayerNorm(name="x")),
        (layer("ZeroPadding2D", "x", padding=[[0, 1], [2, 3]]), ZeroPad2D((0, 1, 2, 3), "x")),
        (layer("ZeroPadding2D", "x", padding=2, data_format="channels_last"), ZeroPad2D(2, "x")),
        (layer("GlobalMaxPooling2D", "x", keepdims=False), GlobalMaxPool2D("x")),
        (
            layer("GlobalAveragePooling2D", "x", keepdims=True),
            AveragePool2D((5, 5), (5, 5), name="x"),
        ),
    ],
    ids=str,
)
def test_forms_of_a_layer_that_mean_the_same(
    tmp_path: Path, given: dict[str, Any], read: Spec
) -> None:
    model = sequential(image_input(5, 5, 2), given, layer("Flatten", "f"), LOGITS)
    assert formats.read_model(put(tmp_path / "m.json", model)).specs[0] == read


@pytest.mark.parametrize("target", [[2, 3, 1], [2, -1, 1], {"class_name": "__tuple__"}])
def test_reshaping_the_input_sets_the_form_of_pixels(tmp_path: Path, target: Any) -> None:
    if isinstance(target, dict):
        target["items"] = [2, 3, 1]
    flat = layer("Flatten", "f", data_format="channels_last")
    reshape = layer("Reshape", "r", target_shape=target)
    back = layer("Reshape", "b", target_shape=[-1])
    path = put(tmp_path / "m", sequential(image_input(6), flat, reshape, back, LOGITS))
    model = formats.read_model(path)
    assert model.input_shape == (2, 3, 1)
    assert model.specs[0] == Flatten("b")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"data_format": "channels_first"}, "layer c (Conv2D): data_format is channels_first"),
        ({"dilation_rate": [2, 1]}, "dilation_rate is [2, 1]"),
        ({"groups": 2}, "groups is 2"),
        ({"groups": True}, "groups is True"),
        ({"kernel_regularizer": {"class_name": "L2"}}, "kernel_regularizer is"),
        ({"bias_constraint": {"class_name": "NonNeg"}}, "bias_constraint is"),
        ({"lora_rank": 4}, "lora_rank is 4"),
        ({"trainable": False}, "trainable is False"),
        ({"dtype": "mixed_float16"}, "dtype is mixed_float16"),
        ({"dtype": {"class_name": "QuantizedDTypePolicy", "config": {}}}, "dtype is"),
        ({"activation": "selu"}, "activation selu; fedcli supports linear, relu, tanh"),
        ({"activation": {"class_name": "Custom"}}, "activation {'class_name': 'Custom'}"),
        ({"padding": "causal"}, "padding 'causal'"),
        ({"filters": 0}, "filters 0"),
        ({"filters": "4"}, "filters '4'"),
        ({"filters": 10**30}, "filters 1000"),
        ({"kernel_size": [3]}, "kernel_size is [3]"),
        ({"kernel_size": [9, 9]}, "a window of [9, 9] does not fit an image of [5, 5]"),
        ({"strides": [0, 1]}, "strides is [0, 1]"),
        ({"use_bias": 1}, "use_bias 1"),
        ({"activation": "softmax"}, "a softmax is allowed only at the end"),
        ({"filters\x1b": 1}, "is 1, which fedcli does not support"),
    ],
)
def test_options_that_are_not_computed_are_refused(
    tmp_path: Path, options: Mapping[str, Any], fault: str
) -> None:
    given = {"filters": 2, "kernel_size": [3, 3], "strides": [1, 1], **options}
    model = sequential(image_input(5, 5, 1), layer("Conv2D", "c", **given), LOGITS)
    model["config"]["layers"].insert(2, layer("Flatten", "f"))
    assert fault in fault_of(put(tmp_path / "m", model))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (layer("LSTM", "x", units=3), "layer x is a LSTM, which fedcli does not support; it"),
        (layer("Lambda", "x", function=["4wEAAAA=", None, None]), "x is a Lambda"),
        (
            {**layer("Multiply", "x"), "build_config": {"input_shape": [[None, 3], [None, 3]]}},
            "layer x is a Multiply, which fedcli does not support",
        ),
        (
            layer("UpSampling2D", "x", size=2),
            "it supports Activation, Add, AveragePooling2D, BatchNormalization, ",
        ),
        ({**layer("Dense", "x"), "registered_name": "mine>Dense"}, "is custom code"),
        ({**layer("Dense", "x"), "module": "os.path"}, "is custom code"),
        (layer("Reshape", "x", target_shape=[7]), "target_shape [7] does not have 3 values"),
        (layer("Reshape", "x", target_shape=[1, 3]), "has target_shape [1, 3] inside the model"),
        (layer("Conv2D", "x", filters=1, kernel_size=1), "takes an image [height, width, ch"),
        (layer("DepthwiseConv2D", "x", kernel_size=1, depth_multiplier=2), "depth_multiplier is 2"),
        (layer("Dropout", "x", rate=1.0), "rate 1.0"),
        (layer("Dropout", "x", rate="0.5"), "rate '0.5'"),
        (layer("Dropout", "x", rate=0.5, noise_shape=[1]), "noise_shape is [1]"),
        (layer("ReLU", "x", max_value=5.0), "max_value is 5.0 and negative_slope 0.0"),
        (layer("ReLU", "x", max_value=6.0, negative_slope=0.1), "and negative_slope 0.1"),
        (layer("ReLU", "x", negative_slope=-0.1), "negative_slope -0.1"),
        (layer("ReLU", "x", threshold=1.0), "threshold is 1.0"),
        (layer("LeakyReLU", "x", negative_slope="a"), "negative_slope 'a'"),
        (layer("LayerNormalization", "x", axis=[1, 2]), "axis is [1, 2]"),
        (layer("LayerNormalization", "x", rms_scaling=True), "rms_scaling is True"),
        (layer("ZeroPadding2D", "x", padding=[[1, 2], [1]]), "padding (1, 2, 1)"),
        (layer("SeparableConv2D", "x", filters=1, kernel_size=1, depth_multiplier=2), "depth_mul"),
        (layer("GroupNormalization", "x", groups=2), "groups"),
        (layer("Softmax", "x", axis=0), "axis is 0"),
        (layer("Dense", "x"), "has no units"),
        (image_input(5), "declares the input shape [5], but its input has [3]"),
        ({"class_name": "Dense"}, "has no config"),
        ({"class_name": 7}, "has no class_name"),
        (7, "has no list of layers"),
    ],
)
def test_layers_that_are_not_computed_are_refused(tmp_path: Path, given: Any, fault: str) -> None:
    model = sequential(image_input(4), HIDDEN, given, LOGITS)
    assert fault in fault_of(put(tmp_path / "m", model))


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ({"class_name": "MyModel", "config": {}}, "holds a MyModel; fedcli reads Sequential"),
        ([], "is not a Keras file"),
        (sequential(), "the model has no layer"),
        (sequential(HIDDEN), "does not state the shape of its input"),
        (sequential(image_input(4)), "the model has no layer"),
        (sequential(layer("InputLayer", "i", batch_shape=[None, None, 3])), "a fixed size"),
        (sequential(image_input(4, 4), LOGITS), "put a Flatten before it"),
        (sequential(image_input(4), HIDDEN), "its outputs are logits"),
        (sequential(image_input(4), *[HIDDEN] * 1001), "more than 1000 layers"),
        (sequential(image_input(4), *[HIDDEN] * 600, LOGITS), "has 601 layers"),
        (b'{"class_name": ' * 100_000, "nested too deeply"),
        (b'{"class_name"', "is not valid JSON"),
        (b'{"config": 1' + b"0" * 5000 + b"}", "is not valid JSON"),
        (b"{" + b" " * (9 << 20), "has a model description of"),
        (b"", "is not a Keras file"),
        (b"PK\x03\x04", "is damaged or not a Keras file"),
        (b"\x89HDF\r\n\x1a\n", "is damaged or not a Keras file"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, model: Any, fault: str) -> None:
    assert fault in fault_of(put(tmp_path / "m", model))


def test_sizes_of_a_description_are_bounded(tmp_path: Path) -> None:
    wide = layer("Dense", "w", units=1 << 20)
    model = sequential(image_input(4), wide, layer("Dense", "x", units=1 << 20), LOGITS)
    assert "1,099,5" in fault_of(put(tmp_path / "m", model))
    assert "is not a file" in fault_of(tmp_path)
    assert "is not a file" in fault_of(tmp_path / "none")
    with (tmp_path / "m").open("wb") as file:
        file.truncate((4 << 30) + 1)  # a sparse file
    assert "is larger than 4,294,967,296 bytes" in fault_of(tmp_path / "m")


def test_archives_are_not_unpacked_beyond_the_model(tmp_path: Path) -> None:
    deflated = zipfile.ZIP_DEFLATED
    image = counted(COUNTED)
    path = put(tmp_path / "m", archive(MLP, image, deflated))
    check_weights(formats.read_model(path).weights)
    put(path, archive(MLP, image + bytes(100_000_000), deflated))
    assert "but at most 67," in fault_of(path)
    put(path, archive(b"{" + b" " * 100_000_000, image, deflated))
    assert "has 100,000,001 bytes" in fault_of(path)
    put(path, archive(MLP, image, zipfile.ZIP_LZMA))
    assert "compressed by an unusual method" in fault_of(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        put(path, archive(MLP, image, more={"config.json": b"{}"}))
    assert "config.json occurs 2 times" in fault_of(path)
    put(path, archive(MLP, image, more={"../../outside": b"text"}))
    check_weights(formats.read_model(path).weights)
    assert list(tmp_path.iterdir()) == [path]
    assert not (tmp_path.parent.parent / "outside").exists()


def change(what: str) -> bytes:
    """A `.weights.h5` of the MLP with one fault."""

    def fill(file: Any) -> None:
        for name, arrays in COUNTED.items():
            for index, array in enumerate(arrays):
                file[f"layers/{name}/vars/{index}"] = array
        del file[BIAS]
        if what in ODD:
            file[BIAS] = ODD[what]
        else:
            FILLERS[what](file)

    return hdf5(fill)


BIAS = "layers/dense/vars/1"


def link_softly(file: Any) -> None:
    file["elsewhere"] = WEIGHTS[1]
    file[BIAS] = h5py.SoftLink("/elsewhere")


def make_virtual(file: Any) -> None:
    virtual = h5py.VirtualLayout((3,), np.float32)
    virtual[:] = h5py.VirtualSource("other.h5", "x", (3,), np.float32)
    file.create_virtual_dataset(BIAS, virtual)


def add_layer(file: Any) -> None:
    file[BIAS] = WEIGHTS[1]
    file["layers/dense_2/vars/0"] = WEIGHTS[0]


FILLERS: dict[str, Callable[[Any], Any]] = {
    "soft link": link_softly,
    "external link": lambda file: file.update({BIAS: h5py.ExternalLink("other.h5", "/x")}),
    "external storage": lambda file: file.create_dataset(
        BIAS, (3,), np.float32, external=[(__file__, 0, 12)]
    ),
    "virtual": make_virtual,
    "chunks": lambda file: file.create_dataset(BIAS, (3,), np.float32, compression="gzip"),
    "references": lambda file: file.create_dataset(BIAS, (3,), h5py.ref_dtype),
    "group": lambda file: file.create_group(BIAS),
    "huge": lambda file: file.create_dataset(BIAS, (1 << 40,), np.float32),
    "more": add_layer,
}
ODD: dict[str, Any] = {
    "texts": np.array(["a", "b", "c"], object),
    "integers": np.array([1, 2, 3]),
    "complex": np.zeros(3, complex),
    "NaN": np.array([1, np.nan, 3], np.float32),
    "beyond float32": np.array([1, 1e300, 3]),
    "other shape": np.zeros((3, 1), np.float32),
}


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("soft link", "'1' in it is a link, and links are never followed"),
        ("external link", "is a link"),
        ("external storage", "is not a plain array"),
        ("virtual", "is not a plain array"),
        ("chunks", "is not a plain array"),
        ("group", "has no '1' among the model's weights"),
        ("huge", "is larger than the file itself"),
        ("more", "has weights of layer 'dense_2', which the model does not have"),
        ("texts", "is not a plain array of floating point numbers"),
        ("references", "is not a plain array"),
        ("integers", "is not a plain array"),
        ("complex", "is not a plain array"),
        ("NaN", "holds NaN or infinity"),
        ("beyond float32", "holds NaN or infinity"),
        ("other shape", "shapes [4, 3], [3, 1] in dense, but the model needs [4, 3], [3]"),
    ],
)
def test_weights_that_are_no_plain_arrays_are_refused(
    tmp_path: Path, what: str, fault: str
) -> None:
    image = change(what)
    assert fault in fault_of(put(tmp_path / "m", archive(MLP, image)))
    with pytest.raises(ConfigError, match=r"^[ -~]+$") as caught:
        formats.read_weights(put(tmp_path / "w", image), LAYOUT)
    assert fault in str(caught.value)


@pytest.mark.parametrize("name", ["../z/kernel:0", "./kernel:0", "z//kernel:0"])
def test_names_that_are_paths_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    def fill(file: Any) -> None:
        file.attrs["layer_names"] = np.array(["z"], "S")
        file["z/z/kernel:0"] = WEIGHTS[0]
        file["z"].attrs["weight_names"] = np.array([name], "S")

    with pytest.raises(ConfigError, match=r"is not a layer's name|has no "):
        formats.read_weights(put(tmp_path / "w", hdf5(fill)), LAYOUT)


@pytest.mark.parametrize(
    "names",
    [np.zeros(3), np.zeros((1, 1), "S3"), np.array(["a\nb"], "S3"), np.zeros(5000, "S1")],
)
def test_lists_of_names_that_are_not_text_are_refused(tmp_path: Path, names: Any) -> None:
    def fill(file: Any) -> None:
        file.attrs["layer_names"] = names

    with pytest.raises(ConfigError, match="layer_names in it"):
        formats.read_weights(put(tmp_path / "w", hdf5(fill)), LAYOUT)


def test_other_hdf5_files_are_no_weights(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["examples/f0001/label"] = np.zeros(3, np.int32)

    path = put(tmp_path / "m", hdf5(fill))
    assert "contains no Keras weights, only 'examples'" in fault_of(path)
    with pytest.raises(ConfigError, match="contains no Keras weights, only 'examples'"):
        formats.read_weights(path, LAYOUT)


def test_a_heap_that_would_be_walked_for_ever_is_refused(tmp_path: Path) -> None:
    image = bytearray(legacy(NAMED, MLP, fixed=False))
    first = image.index(b"GCOL") + 16
    image[first : first + 16] = bytes(
        16
    )  # a free object of length 0, so a reader makes no progress
    assert "garbled heap" in fault_of(put(tmp_path / "m", bytes(image)))


def test_weights_of_another_model_show_both_lists(tmp_path: Path) -> None:
    small = lay_out([Dense(3, "relu"), Dense(2), Dense(2)], [4])
    for content in (counted(COUNTED), archive(MLP, counted(COUNTED)), legacy(NAMED)):
        path = put(tmp_path / "w", content)
        with pytest.raises(ConfigError, match=r"has no 'dense_2'|the model needs .*\[2, 2\]"):
            formats.read_weights(path, small)
    fewer = lay_out([Dense(3)], [4])
    for content in (counted(COUNTED), archive(MLP, counted(COUNTED)), legacy(NAMED)):
        with pytest.raises(
            ConfigError, match=r"the model does not have|the model needs|more weights"
        ):
            formats.read_weights(put(path, content), fewer)


def test_fresh_weights_keep_the_constants_of_the_file(tmp_path: Path) -> None:
    zeros = {"class_name": "Zeros", "config": {}}
    half = {"class_name": "Constant", "config": {"value": 0.5}}
    hidden = layer("Dense", "z", units=3, kernel_initializer=zeros, bias_initializer=half)
    path = put(tmp_path / "m", sequential(image_input(4), hidden, LOGITS))
    fresh = formats.read_model(path).fresh_params(np.full(23, 7, np.float32))
    np.testing.assert_array_equal(fresh, [0] * 12 + [0.5] * 3 + [7] * 6 + [0] * 2)
    ones = layer("DepthwiseConv2D", "z", kernel_size=2, depthwise_initializer="Ones")
    image = put(path, sequential(image_input(2, 2, 1), ones, LOGITS))
    fresh = formats.read_model(image).fresh_params(np.full(9, 7, np.float32))
    np.testing.assert_array_equal(fresh, [1] * 4 + [0] + [7] * 2 + [0] * 2)
    other = layer("Dense", "z", units=3, kernel_initializer={"class_name": "HeNormal"})
    model = formats.read_model(put(path, sequential(image_input(4), other, LOGITS)))
    with pytest.raises(ConfigError, match="z/kernel is initialised by 'HeNormal'"):
        model.fresh_params(np.zeros(23, np.float32))


def small_cnn() -> tuple[ParamLayout, Any]:
    specs: list[Spec] = [
        Conv2D(3, 2, 2, "same", "tanh"),
        DepthwiseConv2D((2, 1), padding="same", use_bias=False),
        GroupNorm(3, scale=False),
        AveragePool2D(2, 1),
        Activation("sigmoid"),
        Dropout(0.25),
        Dense(4, "relu"),
        Dense(3, use_bias=False),
    ]
    layout = lay_out(specs, [7, 6])
    params = np.random.RandomState(0).uniform(-1, 1, layout.num_params).astype(np.float32)
    return layout, params


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    layout, params = small_cnn()
    path = tmp_path / "m.keras"
    formats.write_keras(path, layout, params)
    model = formats.read_model(path)
    assert model.input_shape == (7, 6, 1)
    names = [spec.name for spec in model.specs]
    assert names == [*(spec.name for spec in layout.specs[:6]), "flatten", "dense", "dense_1"]
    assert model.specs[-1] == Dense(3, "softmax", use_bias=False, name="dense_1")
    check_weights(model.weights, layout.split(params))
    again = lay_out(model.specs, model.input_shape)
    images = np.arange(84.0).reshape(2, 7, 6) / 84
    np.testing.assert_array_equal(
        reference_net.logits(again, model.weights or [], images),
        reference_net.logits(layout, layout.split(params), images),
    )
    first = path.read_bytes()
    formats.write_keras(path, layout, params)
    assert path.read_bytes() == first
    formats.write_weights(tmp_path / "w.weights.h5", layout, params)
    check_weights(formats.read_weights(tmp_path / "w.weights.h5", layout), layout.split(params))


@pytest.mark.parametrize(
    ("last", "kinds"),
    [
        ([Conv2D(3, (3, 3))], ["Conv2D", "Flatten", "Activation"]),
        ([Conv2D(3, (3, 3), activation="softmax")], ["Conv2D", "Flatten", "Activation"]),
        ([Conv2D(3, 1), AveragePool2D(3)], ["Conv2D", "AveragePool2D", "Flatten", "Activation"]),
        ([Conv2D(3, 3), Flatten()], ["Conv2D", "Flatten", "Activation"]),
        ([Conv2D(3, 3), Activation("softmax")], ["Conv2D", "Flatten", "Activation"]),
    ],
)
def test_a_model_without_dense_layers_is_written_with_flat_probabilities(
    tmp_path: Path, last: list[Spec], kinds: list[str]
) -> None:
    layout = lay_out([Conv2D(4, 3, 2, activation="relu"), *last], [7, 7])
    params = np.random.RandomState(0).uniform(-1, 1, layout.num_params).astype(np.float32)
    path = tmp_path / "m.keras"
    formats.write_keras(path, layout, params)
    model = formats.read_model(path)
    assert [type(spec).__name__ for spec in model.specs] == ["Conv2D", *kinds]
    assert model.specs[-1].activation == "softmax"  # type: ignore[attr-defined]
    again = lay_out(model.specs, model.input_shape)
    images = np.arange(98.0).reshape(2, 7, 7) / 98
    np.testing.assert_array_equal(
        reference_net.logits(again, model.weights or [], images),
        reference_net.logits(layout, layout.split(params), images),
    )


def test_the_suffix_of_a_file_decides_its_format(tmp_path: Path) -> None:
    layout, params = small_cnn()
    tensors = dict(enumerate(layout.split(params)))
    arrays = {str(name): array for name, array in tensors.items()}
    for suffix in (".npz", ".keras", ".weights.h5"):
        path = tmp_path / f"m{suffix}"
        weights_files.save(path, arrays, layout)
        check_weights(weights_files.load(path, layout), layout.split(params))
    with pytest.raises(ConfigError, match=r"m\.h5: files of weights end in \.npz, \.keras"):
        weights_files.save(tmp_path / "m.h5", arrays, layout)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    layout, params = small_cnn()
    path = put(tmp_path / "m.keras", b"old")
    monkeypatch.setattr(os, "replace", refuse)
    for write in (formats.write_keras, formats.write_weights):
        with pytest.raises(RunError, match="No space left"):
            write(path, layout, params)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_not_suffix_says_what_a_file_is(tmp_path: Path) -> None:
    yes = [archive(MLP, b""), counted(COUNTED), MLP, b"\xef\xbb\xbf\n {}"]
    for content in yes:
        assert formats.is_keras(put(tmp_path / "m.py", content))
    np.savez(tmp_path / "w.npz", WEIGHTS[0])
    assert not formats.is_keras(tmp_path / "w.npz")
    for content in (b"", b"PK\x03\x04", b"def build(): ...", b"PK\x03\x04" + bytes(99)):
        assert not formats.is_keras(put(tmp_path / "m.keras", content))
    assert not formats.is_keras(tmp_path / "none")
    assert not formats.is_keras(tmp_path)


def garble(content: bytes, rng: random.Random) -> bytes:
    """The content, cut or with some bytes changed."""
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    garbled = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(content))
        garbled[place] = rng.choice([0, 255, garbled[place] ^ 1 << rng.randrange(8)])
    return bytes(garbled)


def read_anyhow(path: Path, layout: ParamLayout) -> None:
    """Reads a damaged file; this must succeed, or fail with a message of one line."""
    messages: list[str] = []
    with contextlib.suppress(FedcliError), recording_errors(messages):
        formats.read_model(path)
    with contextlib.suppress(FedcliError), recording_errors(messages):
        formats.read_weights(path, layout)
    for message in messages:
        assert message.isprintable()
        assert len(message) < 1000


@contextlib.contextmanager
def recording_errors(messages: list[str]) -> Iterator[None]:
    """Appends the message of an error to `messages`, and raises the error again."""
    try:
        yield
    except FedcliError as err:
        messages.append(str(err))
        raise


@pytest.mark.parametrize(
    "content",
    [archive(MLP, counted(COUNTED)), legacy(NAMED, MLP, fixed=False), legacy(NAMED)],
    ids=["keras", "legacy", "legacy weights"],
)
def test_messages_of_damage_have_one_line(tmp_path: Path, content: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        read_anyhow(put(tmp_path / "m", garble(content, rng)), LAYOUT)


FIXTURES = [
    "small_cnn.keras2",
    "small_mlp.keras2",
    "softmax_regression.keras2",
    "small_cnn.keras3",
    "softmax_regression.keras3",
]


def fixtures(folder: Path, name: str) -> list[Path]:
    found = [folder / f"{name}{suffix}" for suffix in (".keras", ".h5", ".json", ".weights.h5")]
    return [path for path in found if path.exists()]


@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_real_keras_give_its_outputs(shared_data: Path, name: str) -> None:
    folder = shared_data / "keras"
    images = np.load(folder / "inputs_20x28x28.npy")
    expected = np.load(folder / f"{name}.outputs.npy")
    found = fixtures(folder, name)
    assert len(found) == (4 if "keras2" in name else 2)
    for path in found:
        whole = found[0] if path.name.endswith(".weights.h5") else path
        model = formats.read_model(whole)
        layout = lay_out(model.specs, model.input_shape)
        weights = model.weights
        if weights is None or whole is not path:
            weights = formats.read_weights(found[-1], layout)
        outputs = reference_net.logits(layout, weights, images)
        if "mlp" not in name:
            outputs = reference_net.softmax(outputs)
        # Keras computes in float32, with errors of about 1e-7 for outputs around 1.
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("name", FIXTURES)
def test_the_core_gives_the_outputs_of_real_keras(shared_data: Path, name: str) -> None:
    folder = shared_data / "keras"
    images = np.load(folder / "inputs_20x28x28.npy").astype(np.float32)
    expected = np.load(folder / f"{name}.outputs.npy")
    if "mlp" in name:
        expected = reference_net.softmax(expected)
    # The loss of an image with label k is -log of its k-th output.
    clients = [
        from_arrays(images[index : index + 1], np.array([label])).client.preprocess()
        for index, label in np.ndindex(expected.shape)
    ]
    for path in fixtures(folder, name):
        if path.name.endswith(".weights.h5"):
            continue
        model = open_model(str(path), input_shape=(28, 28), num_classes=10)
        params = model.initial_params
        if path.suffix == ".json":
            weights = folder / f"{name}.weights.h5"
            params = model.layout.join(weights_files.load(weights, model.layout))
        stats = ThreadEngine(1).evaluate(model.layout, params, clients)
        outputs = np.exp(-stats["loss_sum"]).reshape(expected.shape)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FIXTURES)
def test_messages_of_damaged_files_of_real_keras_have_one_line(
    shared_data: Path, tmp_path: Path, name: str, seed: int
) -> None:
    rng = random.Random(seed)
    found = fixtures(shared_data / "keras", name)
    model = formats.read_model(found[0])
    layout = lay_out(model.specs, model.input_shape)
    for path in found:
        content = path.read_bytes()
        for _ in range(25):
            read_anyhow(put(tmp_path / "m", garble(content, rng)), layout)
