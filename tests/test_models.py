from __future__ import annotations

import numpy as np
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


def test_2nn_has_the_published_layers_and_counts() -> None:
    model = models.build("mlp-2nn")
    assert [tensor.shape for tensor in model.layout.tensors] == [
        *((784, 200), (200,)),
        *((200, 200), (200,)),
        *((200, 10), (10,)),
    ]
    assert [layer.activation for layer in model.layout.layers] == ["relu", "relu", "linear"]
    assert model.layout.num_params == 199_210
    assert models.build("mlp-2nn", num_classes=62).layout.num_params == 209_662


def test_kernels_start_glorot_uniform_and_biases_0() -> None:
    tensors = models.build("mlp-2nn").layout.split(models.build("mlp-2nn").initial_params)
    limits = [0.0781, 0.1225, 0.1690]  # as published, to four digits
    for kernel, bias, limit in zip(tensors[::2], tensors[1::2], limits, strict=True):
        assert not bias.any()
        assert np.abs(kernel).max() == pytest.approx(limit, rel=5e-3)
        # Uniform: variance limit^2 / 3, off by 2 / sqrt(5 n) of itself (n >= 2000 values): 2 %.
        assert kernel.var() == pytest.approx(limit**2 / 3, rel=0.07)
        assert abs(kernel.mean()) < 4 * limit / np.sqrt(3 * kernel.size)


def test_initial_weights_follow_the_seed() -> None:
    first, again, other = (models.build("mlp-2nn", seed=seed).initial_params for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert (first != other).any()
    kernels = models.mlp_2nn((200,), 200).layout  # two kernels of one shape
    first_kernel, _, second_kernel, *_ = kernels.split(models.glorot_uniform(kernels, 0))
    assert (first_kernel != second_kernel).any()


def test_a_model_follows_the_data_s_shape_and_classes() -> None:
    layout = fedcli.models.softmax_regression((32, 32, 3), 62).layout
    assert layout.input_shape == (32, 32, 3)
    assert (layout.num_inputs, layout.num_classes) == (3072, 62)
    assert layout.num_params == 3072 * 62 + 62


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="unknown model 'cnn'; choose one of mlp-2nn, softmax-regression"
    ):
        models.build("cnn")
    with pytest.raises(ConfigError, match="softmax-regression has no option 'depth'"):
        models.build("softmax-regression", options={"depth": 2})
    with pytest.raises(ConfigError, match="784 inputs and 0 outputs; both must be at least 1"):
        models.softmax_regression((28, 28), 0)
