from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcli import models
from fedcli.errors import ConfigError
from fedcli.models.keras.graphs import to_snake_case
from fedcli.models.layers import (
    ELU,
    Activation,
    Add,
    AveragePool2D,
    BatchNorm,
    CenterCrop,
    ColorJitter,
    Concatenate,
    Conv2D,
    Cutout,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    GlobalMaxPool2D,
    GroupNorm,
    ImageStandardization,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    MixUp,
    Normalization,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    SeparableConv2D,
    Spec,
    ZeroPad2D,
)
from fedcli.models.layers.contract import KERAS_READERS, KINDS, Incoming, from_dict
from fedcli.models.layers.fields import check_name, pair
from fedcli.models.layers.keras_options import Options

EVERY_KIND: list[Spec] = [
    Dense(5, "relu", use_bias=False, name="hidden"),
    Conv2D(8, (3, 5), (1, 2), "same", "tanh", use_bias=False, name="conv"),
    MaxPool2D((2, 3), (1, 2), "same", "pool"),
    AveragePool2D((3, 2), None, "valid", "mean"),
    Flatten("flat"),
    Dropout(0.3, "drop"),
    GroupNorm(2, 0.01, center=False, scale=True, name="norm"),
    BatchNorm(0.9, 0.01, center=True, scale=False, name="by channel"),
    Activation("sigmoid", "act"),
    Add("sum", ("conv", "pool")),
    Concatenate("both of them", ("conv", "pool")),
    GlobalAveragePool2D("mean of all"),
    GlobalMaxPool2D("largest of all"),
    DepthwiseConv2D((3, 5), (1, 2), "same", "tanh", use_bias=False, name="depth"),
    SeparableConv2D(4, (3, 5), (1, 2), "same", "silu", use_bias=False, name="both"),
    LayerNorm(0.01, center=True, scale=False, name="by pixel"),
    ZeroPad2D((1, 0, 2, 3), "frame"),
    LeakyReLU(0.1, "leaky"),
    ELU(0.5, "exponential"),
]
# Layers that Keras lacks or has under other names.
INPUT_LAYERS: list[Spec] = [
    Normalization(0.5, 0.25, name="scaled"),
    ImageStandardization("standard"),
    RandomFlip(name="flipped"),
    RandomCrop(4, 5, 1, "cropped"),
    CenterCrop(4, 5, "middle"),
    RandomRotation(10.0, "turned"),
    Cutout(2, "cut"),
    ColorJitter(0.1, 0.2, 0.3, "jittered"),
    MixUp(0.5, "mixed"),
]


@pytest.mark.parametrize("spec", [*EVERY_KIND, *INPUT_LAYERS], ids=lambda spec: spec.kind)
def test_a_dict_of_a_layer_gives_it_back(spec: Spec) -> None:
    assert from_dict(spec.to_dict()) == spec
    spec.check("layer")


def test_every_kind_is_tested() -> None:
    assert {spec.kind for spec in [*EVERY_KIND, *INPUT_LAYERS]} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_class_defines_checks_tensors_and_names_of_its_kind(kind: type[Spec]) -> None:
    fields = [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]
    assert [*kind.checks, "name", "inputs"] == fields
    assert {each.field for each in kind.tensors if each.field} <= set(fields)
    assert kind.kind == to_snake_case(kind.keras_class)
    assert kind.keras_class in KERAS_READERS


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: spec.kind)
def test_what_is_written_for_keras_is_read_as_the_same_layer(spec: Spec) -> None:
    options = Options(spec.keras_class, {"config": json.loads(json.dumps(spec.to_keras()))})
    shape = (6,) if spec.takes_vector else (6, 6, 2)
    ((read, _),) = KERAS_READERS[spec.keras_class](options, shape, spec.name)
    assert (type(read), read.name, read.starts()) == (type(spec), spec.name, spec.starts())
    incoming = Incoming((6, 6, 2), is_image=True, second=(6, 6, 3))
    assert read.parts(incoming) == spec.parts(incoming)


def test_a_layer_has_the_tensors_that_its_fields_ask_for() -> None:
    assert Conv2D(2, 3).starts() == {"kernel": "GlorotUniform", "bias": 0.0}
    assert Dense(2, use_bias=False).starts() == {"kernel": "GlorotUniform"}
    assert GroupNorm(1).starts() == {"gamma": 1.0, "beta": 0.0}
    assert GroupNorm(1, scale=False).starts() == {"beta": 0.0}
    assert MaxPool2D().starts() == {}


def test_an_initializer_gives_the_initial_value_of_its_tensor() -> None:
    stack = [
        Conv2D(2, 3, kernel_initializer="ones", bias_initializer="ones"),
        Dense(4, "tanh"),
        Dense(3, kernel_initializer="zeros"),
    ]
    model = models.sequential(stack, (5, 4), seed=1)
    usual = models.sequential([Conv2D(2, 3), Dense(4, "tanh"), Dense(3)], (5, 4), seed=1)
    (kernel, bias, *hidden, last, _), (*_, drawn, _) = (
        each.layout.split(each.initial_params) for each in (model, usual)
    )
    assert (kernel == 1).all()
    assert (bias == 1).all()
    assert not last.any()
    assert drawn.any()
    for mine, other in zip(hidden, usual.layout.split(usual.initial_params)[2:4], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_stated_initializer_is_kept_in_descriptions_and_the_usual_one_is_left_out() -> None:
    zeros = Dense(3, kernel_initializer="zeros", name="d")
    assert from_dict(json.loads(json.dumps(zeros.to_dict()))) == zeros
    assert "kernel_initializer" not in Dense(3, kernel_initializer="glorot_uniform").to_dict()
    options = Options("Dense", {"config": json.loads(json.dumps(zeros.to_keras()))})
    assert options.starts(Dense(3).starts()) == (0.0, 0.0)
    assert "bias_initializer" not in zeros.to_keras()


@pytest.mark.parametrize("value", ["he_normal", "Zeros", None, ["zeros"], 0])
def test_another_initializer_is_refused_with_what_gives_any_weights(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"choose glorot_uniform, zeros, ones, or give any wei"):
        models.sequential([Dense(3, kernel_initializer=value)], (2, 2))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (None, "linear"),
        ("swish", "silu"),
        ("ReLU", "relu"),
        (np.tanh, "tanh"),
        (Activation("elu"), "elu"),
    ],
)
def test_another_form_of_an_activation_is_refused_with_its_name(activation: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"or softmax at the end; write '{name}' here$"):
        Dense(3, activation).check("layer")


def test_a_number_of_numpy_is_refused_with_what_makes_it_an_int() -> None:
    count: Any = np.int64(3)
    with pytest.raises(ConfigError, match=r"16777216; write int\(...\) around this int64$"):
        Dense(count).check("layer")


def test_one_number_is_a_pair() -> None:
    assert pair(3) == (3, 3)
    assert pair((2, 5)) == (2, 5)
    Conv2D(1, 3, 2).check("layer")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Dense(0), "layer: units 0: choose a whole number from 1 to 16777216"),
        (Dense(True), "layer: units True: choose a whole number"),
        (Dense(2.0), "layer: units 2.0: choose a whole number"),  # type: ignore[arg-type]
        (Dense(3, "selu"), "layer: activation 'selu': choose linear, .*, hard_silu, or softmax at"),
        (LeakyReLU(-0.1), "layer: negative_slope -0.1: choose a finite number from 0 to 100"),
        (ZeroPad2D((1, 2, 3)), r"padding \(1, 2, 3\): give one number, height and width, or top"),  # type: ignore[arg-type]
        (ZeroPad2D(-1), "layer: padding -1: choose a whole number from 0 to 16777216"),
        (ZeroPad2D(((1, 1), (2, 2))), r"padding \(\(1, 1\), \(2, 2\)\): give one number"),  # type: ignore[arg-type]
        (LayerNorm(0.0), "layer: epsilon 0.0: equal values would cause a division by 0"),
        (Dense(3, use_bias=1), "layer: use_bias 1: choose true or false"),  # type: ignore[arg-type]
        (Conv2D(3, (3, 0)), "layer: kernel_size 0: choose a whole number"),
        (Conv2D(3, (3, 3, 3)), r"kernel_size \(3, 3, 3\): give one number, or height and width"),  # type: ignore[arg-type]
        (Conv2D(3, 3, padding="full"), "layer: padding 'full': choose valid or same"),
        (MaxPool2D(strides=(1, -1)), "layer: strides -1: choose a whole number"),
        (Dropout(1.0), "layer: rate 1.0: all values would become 0; choose a number below 1"),
        (Dropout(float("nan")), "layer: rate nan: choose a finite number from 0 to 1"),
        (GroupNorm(0), "layer: groups 0: choose a whole number"),
        (GroupNorm(-1.0), "layer: groups -1.0: choose a whole number"),  # type: ignore[arg-type]
        (Dense(3, inputs="conv"), "layer: inputs 'conv': give a tuple of the names of earlier"),  # type: ignore[arg-type]
        (GroupNorm(1, epsilon=0.0), "layer: epsilon 0.0: equal values would cause a division by 0"),
    ],
)
def test_values_that_no_layer_may_have_are_refused(spec: Spec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec.check("layer")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "a layer is of kind None; choose one of activation, add, average_pooling2d"),
        ({"kind": "lstm"}, "a layer is of kind 'lstm'; choose one of activation"),
        ({"kind": ["dense"]}, "a layer is of kind .'dense'"),
        ({"kind": "dense", "size": 3}, "a layer of kind dense has the wrong fields 'size'; write"),
        ({"kind": "dense"}, "a layer of kind dense has the wrong fields ''; write"),
    ],
)
def test_dicts_that_describe_no_layer_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_no_values_of_fields_raise_anything_else(kind: str, data: st.DataObject) -> None:
    example = next(spec for spec in [*EVERY_KIND, *INPUT_LAYERS] if spec.kind == kind)
    values = {name: data.draw(_JSON) for name in example.to_dict()}
    refusal = None
    try:
        spec = from_dict({**values, "kind": kind})
        spec.check("layer")
    except ConfigError as err:
        refusal = str(err)
    assert "\n" not in (refusal or "")
    assert refusal or from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("name", ["a/b", "", "..", "x" * 101, "a\nb", 3, None])
def test_names_that_files_cannot_hold_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"layer name .*: give up to 100 characters that can be"):
        check_name(name)


def test_names_of_other_languages_are_fine() -> None:
    for name in ("schön_1 (a)", "卷积", "x" * 100):
        assert replace(Dense(3), name=name).to_dict()["name"] == name
        check_name(name)
