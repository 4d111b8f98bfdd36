"""Weights for PyTorch: a state_dict, with PyTorch's names and order of axes.

A tensor's name consists of its layer's name, a dot and PyTorch's name: `conv2d.weight`. Axes are
those of `Linear` [out, in], `Conv2d` [out, in, height, width] and `GroupNorm`. The inputs of a
dense layer after an image are in the order of PyTorch's Flatten, [C, H, W], not in Keras's [H, W,
C]. A batch norm also has PyTorch's count of batches, `num_batches_tracked`, which is 0; PyTorch
uses it only if the momentum is None.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError
from fedcli.models.layers.contract import Layer
from fedcli.models.layout import ParamLayout
from fedcli.outputs import write_output

Tensor = NDArray[np.float32]

# Keras's name of a tensor, and PyTorch's name.
_NAMES: Mapping[str, str] = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The order of a convolution's axes: [height, width, in, out] to PyTorch's, and back.
_AXES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "conv2d": ((3, 2, 0, 1), (2, 3, 1, 0)),
    "depthwise_conv2d": ((2, 3, 0, 1), (2, 3, 0, 1)),
}


def require() -> None:
    """Checks that PyTorch is installed.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("torch") is None:
        raise ConfigError("a file for PyTorch needs PyTorch: run pip install 'fedcli[torch]'")


def save(path: Path, tensors: Sequence[Tensor], layout: ParamLayout) -> dict[str, tuple[int, ...]]:
    """Writes a state_dict by `torch.save`; `torch.load(path, weights_only=True)` reads it.

    Args:
        path: The file; an existing regular file is replaced.
        tensors: One array for each tensor of the layout, in order and in Keras's shape.
        layout: The model's layout.

    Returns:
        The shape of each tensor in the file, by name and in order.

    Raises:
        ConfigError: PyTorch is not installed, or has no counterpart of a tensor.
        RunError: The file cannot be written, or `path` is not a regular file.
    """
    require()
    import torch  # lazy: it takes seconds, and only this format needs it

    arrays = state(layout, tensors)
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, content)
    write_output(path, content.getvalue())
    return {name: array.shape for name, array in arrays.items()}


def state(layout: ParamLayout, tensors: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """Returns the tensors by PyTorch's names and with its order of axes.

    They are float32, except for a batch norm's `num_batches_tracked`, which is int64 [].

    Args:
        layout: The model's layout.
        tensors: One array for each of its tensors, in order and in Keras's shape.

    Raises:
        ConfigError: PyTorch has no counterpart of a tensor.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for layer, each, array in layout.by_layer(reordered(layout, tensors)):
        arrays[_name(layer, each.name)] = array
        if each.name == "moving_variance":
            arrays[f"{module_name(layer)}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def reordered(
    layout: ParamLayout, tensors: Sequence[Tensor], *, is_back: bool = False
) -> list[Tensor]:
    """Converts tensors from Keras's order of axes to PyTorch's, or back.

    Args:
        layout: The model's layout.
        tensors: One array for each of its tensors, in order.
        is_back: Whether to convert from PyTorch's order to Keras's.
    """
    return layout.in_order(
        _reordered(layer, each.name, each.shape, tensor, is_back=is_back)
        for layer, each, tensor in layout.by_layer(tensors)
    )


def module_name(layer: Layer) -> str:
    """Returns the name of the PyTorch module that holds the layer's tensors.

    The two parts of a separable convolution `x` are modules `x.depthwise` and `x.pointwise`.
    """
    part = _part(layer)
    return f"{layer.name}.{part}" if part else layer.name


def _part(layer: Layer) -> str:
    kernels = (each.name for each in layer.tensors if each.name.endswith("kernel"))
    return next(kernels, "").removesuffix("kernel").removesuffix("_")


def _name(layer: Layer, tensor: str) -> str:
    known = _NAMES.get(tensor.removeprefix(f"{_part(layer)}_"))
    if known is None:
        raise ConfigError(
            f"layer {layer.name}: PyTorch has no {tensor} of a {layer.kind}; choose another "
            "--format"
        )
    return f"{module_name(layer)}.{known}"


def _reordered(
    layer: Layer, name: str, shape: tuple[int, ...], tensor: Tensor, *, is_back: bool
) -> Tensor:
    if not name.endswith("kernel"):
        return tensor
    if layer.kind in _AXES:
        return tensor.transpose(_AXES[layer.kind][is_back])
    height, width, channels = layer.in_shape
    if is_back:
        return tensor.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(shape)
    wide = tensor.reshape(height, width, channels, -1)
    return wide.transpose(3, 2, 0, 1).reshape(shape[1], shape[0])
