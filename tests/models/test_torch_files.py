"""Weights for PyTorch: names, order of axes, and the outputs of modules that load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcli import layers, learning, models
from fedcli.datasets.batches import from_arrays
from fedcli.errors import ConfigError
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models import torch_files, weights_files
from fedcli.models.model import Model
from fedcli.settings import tables
from tests.kit.command_line import Fedcli

pytestmark = pytest.mark.numeric


def named(name: str) -> Model:
    """A model of the table, with random values in all of its tensors."""
    entry = tables.MODELS[name]
    model = models.build(name, input_shape=entry.example_shape)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.05, model.layout.num_params)
    return Model(name, model.layout, (model.initial_params + noise).astype(np.float32))


def separable(name: str) -> Model:
    """A model with a layer whose module in PyTorch has parts, with random values in all tensors."""
    specs = [layers.SeparableConv2D(4, 3, name="s"), layers.GroupNorm(2, name="g")]
    model = models.sequential([*specs, layers.Flatten(), layers.Dense(2, name="d")], (4, 4, 3))
    values = np.random.default_rng(5).normal(0, 0.5, model.layout.num_params)
    return Model(name, model.layout, values.astype(np.float32))


@pytest.mark.parametrize("name", [*tables.MODELS, "separable"])
def test_a_module_of_the_same_layers_computes_the_same(name: str, tmp_path: Path) -> None:
    """The PyTorch module is that of `fedcli bench --compare torch`, with the layers' names."""
    torch = pytest.importorskip("torch")
    from fedcli.benchmarks import torch_peer

    model = named(name) if name in tables.MODELS else separable(name)
    tensors = model.layout.split(model.initial_params)
    names = [each.name for each in model.layout.tensors]
    file = tmp_path / "weights.pt"
    shapes = weights_files.save(file, dict(zip(names, tensors, strict=True)), model.layout)
    state = torch.load(file, weights_only=True)
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    module = torch_peer.build(Model(name, model.layout, np.zeros_like(model.initial_params)))
    module.load_state_dict(state)  # it checks every name and shape
    module.eval()
    images = np.random.default_rng(4).random((3, *model.layout.input_shape), np.float32)
    shaped = images.reshape(3, *(*model.layout.input_shape, 1)[:3])
    with torch.inference_mode():
        theirs = module(torch.from_numpy(shaped.transpose(0, 3, 1, 2).copy())).numpy()
    ours = logits(model, images)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


def logits(model: Model, images: Any) -> Any:
    """The core's logits of each image."""
    client = from_arrays(images, np.zeros(len(images), np.int32))
    return ThreadEngine(1).predict(model.layout, model.initial_params, [client]).values


def test_a_dense_layer_after_an_image_reads_channels_before_rows() -> None:
    """`state` needs no PyTorch, so this test runs without it."""
    model = models.sequential(
        [layers.Conv2D(5, (2, 1), name="c"), layers.Flatten(), layers.Dense(2, name="d")], (4, 3, 2)
    )
    kernel, bias, dense, last = (
        np.arange(size, dtype=np.float32).reshape(shape)
        for size, shape in zip((20, 5, 90, 2), model.layout.shapes, strict=True)
    )
    state = torch_files.state(model.layout, [kernel, bias, dense, last])
    assert list(state) == ["c.weight", "c.bias", "d.weight", "d.bias"]
    assert state["c.weight"].shape == (5, 2, 2, 1)
    assert state["c.weight"][4, 1, 1, 0] == kernel[1, 0, 1, 4]
    image = np.arange(45.0).reshape(3, 3, 5)  # an output of the convolution
    np.testing.assert_array_equal(
        state["d.weight"] @ image.transpose(2, 0, 1).ravel(), image.ravel() @ dense
    )
    back = torch_files.reordered(model.layout, list(state.values()), is_back=True)
    for one, other in zip(back, [kernel, bias, dense, last], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_convolutions_of_a_separable_one_have_their_own_names() -> None:
    model = separable("s")
    state = torch_files.state(model.layout, model.layout.split(model.initial_params))
    assert {name: array.shape for name, array in state.items()} == {
        "s.depthwise.weight": (3, 1, 3, 3),
        "s.pointwise.weight": (4, 3, 1, 1),
        "s.pointwise.bias": (4,),
        "g.weight": (4,),
        "g.bias": (4,),
        "d.weight": (2, 16),
        "d.bias": (2,),
    }


def test_without_torch_nothing_is_read(
    fedcli: Fedcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs PyTorch: run pip install 'fedcli\[torch\]'"):
        weights_files.format_of(tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="needs PyTorch: run pip install"):
        weights_files.format_of(tmp_path / "weights", "torch")


def test_a_format_goes_before_the_name(tmp_path: Path) -> None:
    model = learning.build_fed_eval("softmax-regression").model
    tensors = model.layout.split(model.initial_params)
    named = {"kernel": tensors[0], "bias": tensors[1]}
    weights_files.save(tmp_path / "weights", named, model.layout, "npz")
    assert [each.shape for each in weights_files.load(tmp_path / "weights", model.layout)] == [
        (784, 10),
        (10,),
    ]
    with pytest.raises(ConfigError, match=r"end in .npz, .keras, .weights.h5, .pt, .pth; choose"):
        weights_files.format_of(tmp_path / "weights")
