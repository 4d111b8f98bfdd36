from __future__ import annotations

import pytest

import fedcli
from fedcli import models
from fedcli.errors import ConfigError


def test_softmax_regression_is_one_dense_layer_of_zeros() -> None:
    model = models.build("softmax-regression")
    assert [(tensor.name, tensor.shape) for tensor in model.layout.tensors] == [
        ("dense/kernel", (784, 10)),
        ("dense/bias", (10,)),
    ]
    assert model.initial_params.shape == (7850,)
    assert model.initial_params.dtype == "float32"
    assert not model.initial_params.any()


def test_a_model_follows_the_data_s_shape_and_classes() -> None:
    layout = fedcli.models.softmax_regression((32, 32, 3), 62).layout
    assert layout.input_shape == (32, 32, 3)
    assert (layout.num_inputs, layout.num_classes) == (3072, 62)
    assert layout.num_params == 3072 * 62 + 62


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown model 'cnn'; choose one of softmax-regression"):
        models.build("cnn")
    with pytest.raises(ConfigError, match="softmax-regression has no option 'depth'"):
        models.build("softmax-regression", options={"depth": 2})
    with pytest.raises(ConfigError, match="784 inputs and 0 outputs; both must be at least 1"):
        models.softmax_regression((28, 28), 0)
