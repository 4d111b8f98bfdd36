"""A model in plain float32 NumPy: forward and backward passes, whose matrix products use BLAS.

Values and their gradients are numbered as in the core: 0 is the image, l + 1 the output of layer l.

Convolutions gather their windows into a matrix (im2col). Values are [examples, height, width,
channels]; gradients are of the mean loss of the batch.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.models.layers.contract import Layer
from fedcli.models.model import Model

Values = NDArray[np.float32]


class Net:
    """A model in NumPy. It keeps the values of its last forward pass."""

    def __init__(self, model: Model, stream: Stream) -> None:
        """Takes the layers.

        Args:
            model: Its layers are dense, conv2d with strides 1, max_pooling2d, dropout and add.
            stream: The random stream for dropout.

        Raises:
            ConfigError: A layer is of another kind.
        """
        self.layers = [_part(layer, stream) for layer in model.layout.layers]
        self.sources = model.layout.sources

    def logits(self, x: Values, tensors: Sequence[Values], *, is_training: bool = False) -> Values:
        """Returns the logits [n, classes] of images [n, ...].

        `tensors` are the parameters as `ParamLayout.split` returns them.
        """
        place = 0
        values = [x]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            mine = tensors[place : place + layer.num_tensors]
            place += layer.num_tensors
            inputs = [values[source] for source in sources]
            values.append(layer.forward(_summed(inputs), mine, is_training))
        return values[-1].reshape(len(x), -1)

    def gradients(self, x: Values, labels: NDArray[np.int32], tensors: Sequence[Values]) -> Any:
        """Returns the gradients of the mean loss, one array per tensor."""
        logit_gradients = softmax(self.logits(x, tensors, is_training=True))
        logit_gradients[np.arange(len(logit_gradients)), labels] -= 1
        logit_gradients /= np.float32(len(logit_gradients))
        place = len(tensors)
        found: list[Values] = []
        # For each value, a gradient from each layer that reads it.
        terms: list[list[Values]] = [[] for _ in self.layers] + [[logit_gradients]]
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            place -= layer.num_tensors
            mine = tensors[place : place + layer.num_tensors]
            out_gradients = _summed(terms.pop())
            in_gradients, gradients = layer.backward(out_gradients, mine, place > 0)
            for source in self.sources[index]:
                terms[source].append(in_gradients)
            found[:0] = gradients
        return found


def _summed(values: Sequence[Values]) -> Values:
    """The sum of values with equal numbers of elements, whose shapes may differ."""
    total = values[0]
    for each in values[1:]:
        total = total + each.reshape(total.shape)
    return total


def softmax(logits: Values) -> Values:
    """Returns the probabilities [n, classes]."""
    probabilities: Values = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


@dataclass
class _Part(abc.ABC):
    """One layer; values and gradients are float32 [n, ...]."""

    layer: Layer
    num_tensors: int = 0

    @abc.abstractmethod
    def forward(self, x: Values, tensors: Sequence[Values], is_training: bool) -> Values:
        """Returns its outputs."""

    @abc.abstractmethod
    def backward(
        self, out_gradients: Values, tensors: Sequence[Values], has_before: bool
    ) -> tuple[Values, list[Values]]:
        """Returns the gradients of its inputs and its tensors from the gradients of its outputs."""


class _Product(_Part):
    """A dense layer: a matrix of inputs times the kernel. Also the base class of convolutions."""

    def forward(self, x: Values, tensors: Sequence[Values], is_training: bool) -> Values:
        self.in_shape = x.shape
        self.rows = self.gather(x)
        out = self.rows @ tensors[0].reshape(self.rows.shape[1], -1)
        if len(tensors) == 2:
            out += tensors[1]
        if self.layer.activation == "relu":
            np.maximum(out, 0, out=out)
        self.out = out
        return out.reshape(len(x), *self.layer.out_shape)

    def backward(
        self, out_gradients: Values, tensors: Sequence[Values], has_before: bool
    ) -> tuple[Values, list[Values]]:
        out_gradients = out_gradients.reshape(self.out.shape)
        if self.layer.activation == "relu":
            out_gradients = out_gradients * (self.out > 0)
        gradients = [(self.rows.T @ out_gradients).reshape(tensors[0].shape)]
        if len(tensors) == 2:
            gradients.append(out_gradients.sum(axis=0))
        if not has_before:
            return out_gradients, gradients
        return self.scatter(out_gradients @ tensors[0].reshape(self.rows.shape[1], -1).T), gradients

    def gather(self, x: Values) -> Values:
        """Returns the matrix that is multiplied by the kernel."""
        return x.reshape(len(x), -1)

    def scatter(self, rows: Values) -> Values:
        """Returns the gradient of the inputs from the gradient of the rows."""
        return rows.reshape(self.in_shape)


class _Convolution(_Product):
    def gather(self, x: Values) -> Values:
        (height, width), (out_height, out_width, _) = self.layer.window, self.layer.out_shape
        padded = np.pad(x, self._padding(x.shape))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
        windows = windows.transpose(0, 1, 2, 4, 5, 3)[:, :out_height, :out_width]
        return windows.reshape(-1, height * width * x.shape[3])

    def scatter(self, rows: Values) -> Values:
        (height, width), (out_height, out_width, _) = self.layer.window, self.layer.out_shape
        num, in_height, in_width, channels = self.in_shape
        padding = self._padding(self.in_shape)
        padded_gradients = np.zeros(
            [size + sum(pads) for size, pads in zip(self.in_shape, padding, strict=True)],
            np.float32,
        )
        each = rows.reshape(num, out_height, out_width, height, width, channels)
        for row in range(height):
            for column in range(width):
                padded_gradients[:, row : row + out_height, column : column + out_width] += each[
                    :, :, :, row, column
                ]
        (_, (top, _), (left, _), _) = padding
        return padded_gradients[:, top : top + in_height, left : left + in_width]

    def _padding(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after, along each axis."""
        before = self.layer.pads
        after = [
            max(0, out + window - 1 - size - pad)
            for out, window, size, pad in zip(
                self.layer.out_shape, self.layer.window, shape[1:3], before, strict=False
            )
        ]
        return [(0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)]


class _MaxPool(_Part):
    """A max-pool whose windows tile the image without a remainder."""

    def forward(self, x: Values, tensors: Sequence[Values], is_training: bool) -> Values:
        (height, width), (out_height, out_width, channels) = self.layer.window, self.layer.out_shape
        self.in_shape = x.shape
        blocks = x.reshape(len(x), out_height, height, out_width, width, channels)
        blocks = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(-1, height * width)
        self.best = blocks.argmax(axis=1)
        out: Values = blocks[np.arange(len(blocks)), self.best]
        return out.reshape(len(x), *self.layer.out_shape)

    def backward(
        self, out_gradients: Values, tensors: Sequence[Values], has_before: bool
    ) -> tuple[Values, list[Values]]:
        (height, width), (out_height, out_width, channels) = self.layer.window, self.layer.out_shape
        blocks = np.zeros((out_gradients.size, height * width), np.float32)
        blocks[np.arange(out_gradients.size), self.best] = out_gradients.ravel()
        shape = (-1, out_height, out_width, channels, height, width)
        return blocks.reshape(shape).transpose(0, 1, 4, 2, 5, 3).reshape(self.in_shape), []


class _Dropout(_Part):
    stream: Stream

    def forward(self, x: Values, tensors: Sequence[Values], is_training: bool) -> Values:
        if not is_training:
            return x
        is_kept = self.stream.uniform(x.size).reshape(x.shape) >= self.layer.rate
        self.scale = is_kept * np.float32(1 / (1 - self.layer.rate))
        return x * self.scale

    def backward(
        self, out_gradients: Values, tensors: Sequence[Values], has_before: bool
    ) -> tuple[Values, list[Values]]:
        return out_gradients.reshape(self.scale.shape) * self.scale, []


class _Add(_Part):
    """The sum of two inputs. `Net` adds them before it calls the layer."""

    def forward(self, x: Values, tensors: Sequence[Values], is_training: bool) -> Values:
        self.in_shape = x.shape
        self.out = np.maximum(x, 0) if self.layer.activation == "relu" else x
        return self.out

    def backward(
        self, out_gradients: Values, tensors: Sequence[Values], has_before: bool
    ) -> tuple[Values, list[Values]]:
        in_gradients = out_gradients.reshape(self.in_shape)
        if self.layer.activation == "relu":
            in_gradients = in_gradients * (self.out > 0)
        return in_gradients, []


def _part(layer: Layer, stream: Stream) -> _Part:
    num_tensors = len(layer.tensors)
    is_plain = layer.activation in ("linear", "relu")
    if layer.kind == "dense" and is_plain:
        return _Product(layer, num_tensors)
    if layer.kind == "conv2d" and is_plain and layer.strides == (1, 1):
        return _Convolution(layer, num_tensors)
    if layer.kind == "max_pooling2d" and _is_tiled(layer):
        return _MaxPool(layer)
    if layer.kind == "add" and is_plain:
        return _Add(layer)
    if layer.kind == "dropout":
        dropout = _Dropout(layer)
        dropout.stream = stream
        return dropout
    raise ConfigError(
        f"layer {layer.name}: the NumPy program has no {layer.kind} of this form; leave numpy "
        "out of --compare for this job"
    )


def _is_tiled(layer: Layer) -> bool:
    """Whether the windows of a pool tile the image."""
    whole = (layer.out_shape[0] * layer.window[0], layer.out_shape[1] * layer.window[1])
    return layer.window == layer.strides and whole == layer.in_shape[:2] and layer.pads == (0, 0)
