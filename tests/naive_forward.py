"""A model's outputs, slowly and plainly in float64: what readers of model files are held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcli.params import ParamLayout
from fedcli.stacks import Layer


def logits(layout: ParamLayout, weights: list, images: Any) -> Any:
    """Returns float64 [N, K] for images [N, ...]; dropout is off."""
    values = np.asarray(images, np.float64).reshape(len(images), *layout.layers[0].in_shape)
    left = [np.asarray(each, np.float64) for each in weights]
    for layer in layout.layers:
        num_tensors = len(layer.tensor_shapes())
        values = _activate(layer.activation, _apply(layer, left[:num_tensors], values))
        left = left[num_tensors:]
    assert not left
    return values.reshape(len(values), -1)


def softmax(values: Any) -> Any:
    grown = np.exp(values - values.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def _apply(layer: Layer, tensors: list, values: Any) -> Any:
    if layer.kind == "dense":
        out = values.reshape(len(values), -1) @ tensors[0]
        return (out + sum(tensors[1:])).reshape(-1, *layer.out_shape)
    if layer.kind == "group_normalization":
        return _group_norm(layer, tensors, values)
    if layer.kind in ("dropout", "activation"):
        return values
    out = np.zeros((len(values), *layer.out_shape))
    for row in range(layer.out_shape[0]):
        for column in range(layer.out_shape[1]):
            out[:, row, column] = _window(layer, tensors, values, row, column)
    return out


def _window(layer: Layer, tensors: list, values: Any, row: int, column: int) -> Any:
    top = row * layer.strides[0] - layer.pads[0]
    left = column * layer.strides[1] - layer.pads[1]
    rows = range(max(top, 0), min(top + layer.window[0], values.shape[1]))
    columns = range(max(left, 0), min(left + layer.window[1], values.shape[2]))
    seen = values[:, rows.start : rows.stop, columns.start : columns.stop]
    if layer.kind == "max_pooling2d":
        return seen.max(axis=(1, 2))
    if layer.kind == "average_pooling2d":
        return seen.mean(axis=(1, 2))
    kernel = tensors[0][rows.start - top : rows.stop - top, columns.start - left :][
        :, : len(columns)
    ]
    return np.tensordot(seen, kernel, 3) + sum(tensors[1:])


def _group_norm(layer: Layer, tensors: list, values: Any) -> Any:
    height, width, channels = layer.in_shape
    grouped = values.reshape(len(values), height * width, layer.num_groups, -1)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + layer.epsilon)).reshape(values.shape)
    left = list(tensors)
    gamma = left.pop(0) if layer.has_scale else np.ones(channels)
    return normal * gamma + (left.pop(0) if layer.has_bias else 0)


def _activate(name: str, values: Any) -> Any:
    if name == "relu":
        return np.maximum(values, 0)
    if name == "tanh":
        return np.tanh(values)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-values))
    assert name == "linear"
    return values
