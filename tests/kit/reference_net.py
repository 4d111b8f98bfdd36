"""Slow and simple training of any model in float64, as the reference for tests.

Values between layers are [B, height, width, channels]. Convolutions and pooling read their windows
from `_windows`, and their gradients go back to the image by `_sum_windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.seeds import StreamKey
from fedcli.models.layers.contract import Layer
from fedcli.models.layout import ParamLayout
from tests.kit.reference import Batch, Optimizer, Stats, Vector

DROPOUT_STEPS = 65536  # a dropout rate is rounded to a multiple of 1 / 65536
VISIT_BLOCKS = 1 << 20  # blocks of the dropout stream for each visit
# Where the slope of an activation jumps.
KINKS = {"relu": (0,), "relu6": (0, 6), "leaky_relu": (0,), "elu": (0,), "hard_silu": (-3, 3)}
NORMS = ("group_normalization", "layer_normalization", "batch_normalization")
FAR = 1e-3  # rounding to float32 moves values of order 1 by less, so never across a kink so far off

# A layer, its trained tensors, its inputs, its outputs before and after the activation, and a last
# item: a dropout's mask, the moving mean and variance if a batch norm uses them, else None.
Seen = tuple[Layer, list[Vector], Vector, Vector, Vector, Any]


@dataclass(frozen=True)
class Client:
    """A client's batches, and the key of the stream from which its dropout masks are drawn."""

    batches: Sequence[Batch]
    dropout_key: StreamKey


class NearKinkError(Exception):
    """A value is so near a kink of the loss that rounding decides on which side it is."""


def fedavg_round(
    layout: ParamLayout,
    params: Vector,
    cohort: Sequence[Client],
    client_optimizer: Optimizer,
    kink_margin: float = 0.0,
) -> tuple[Vector, Stats]:
    """Returns the mean of the clients' models, weighted by their examples, and the online stats.

    Raises:
        NearKinkError: In some local step `kink_distance` is less than kink_margin.
    """
    total, stats = np.zeros_like(params), Stats()
    for client in cohort:
        local, own = _train_client(layout, params, client, client_optimizer, kink_margin)
        total += own.num_examples * (local - params)
        stats.add(own)
    return params + total / stats.num_examples, stats


def _train_client(
    layout: ParamLayout, params: Vector, client: Client, optimizer: Optimizer, kink_margin: float
) -> tuple[Vector, Stats]:
    local, state, stats = params.copy(), optimizer.start(params), Stats()
    for batch in client.batches:
        visits = range(stats.num_examples, stats.num_examples + len(batch[1]))
        drawn = [draw_masks(layout, client.dropout_key, visit) for visit in visits]
        masks = [np.stack(each) for each in zip(*drawn, strict=True)]
        seen = list(_layer_by_layer(layout, local, batch[0], masks))
        distance = _kink_distance(layout, seen) if kink_margin else math.inf
        if distance < kink_margin:
            raise NearKinkError(f"{distance:.1e} from a kink; at least {kink_margin} is wanted")
        own, gradient = _score(layout, seen, batch[1])
        stats.add(own)
        moved = _moved_statistics(layout, local, seen)
        local, state = optimizer.step(local, state, gradient)
        local[layout.num_trained :] = moved
    return local, stats


def moved_statistics(
    layout: ParamLayout, params: Vector, batch: Batch, masks: Sequence[Vector]
) -> Vector:
    """Returns the moving statistics of the batch norms after a training step on a batch."""
    return _moved_statistics(layout, params, list(_layer_by_layer(layout, params, batch[0], masks)))


def _moved_statistics(layout: ParamLayout, params: Vector, seen: Sequence[Seen]) -> Vector:
    moved = [np.zeros(0)]
    named = _by_name(layout, params)
    for layer, _, inputs, _, _, _ in seen:
        if layer.kind == "batch_normalization":
            of_batch = inputs.mean(axis=(0, 1, 2)), inputs.var(axis=(0, 1, 2))
            kept = 1.0 if layer.is_frozen else layer.momentum
            moving = _moving(layer, named)
            moved += [
                kept * old + (1 - kept) * new for old, new in zip(moving, of_batch, strict=True)
            ]
    return np.concatenate(moved)


def draw_masks(layout: ParamLayout, key: StreamKey, visit: int) -> list[Vector]:
    """Returns the factors of each dropout layer for one visit, [height, width, channels] each.

    Each 64-bit word gives four values, from its lowest bits up. Each layer begins with a new word.
    """
    counter = visit * VISIT_BLOCKS + (key.round_num << 64) + (key.purpose << 128)
    counter += key.occurrence << 192
    # NumPy increments its counter before it draws.
    philox = np.random.Philox(counter=(counter - 1) % (1 << 256), key=key.seed + (key.client << 64))
    masks = []
    for layer in layout.layers:
        if layer.kind == "dropout":
            words = philox.random_raw(math.ceil(layer.num_inputs / 4))
            values = (words[:, None] >> np.arange(0, 64, 16, dtype=np.uint64) & 0xFFFF).ravel()
            share = math.floor(layer.rate * DROPOUT_STEPS + 0.5)
            is_kept = values[: layer.num_inputs].reshape(layer.in_shape) >= share
            masks.append(np.where(is_kept, DROPOUT_STEPS / (DROPOUT_STEPS - share), 0.0))
    return masks


def logits(layout: ParamLayout, tensors: Sequence[Any], images: Any) -> Vector:
    """Returns float64 [N, K] for images [N, ...], without dropout."""
    params = np.concatenate([np.asarray(each, np.float64).ravel() for each in tensors])
    *_, (_, _, _, _, outputs, _) = _layer_by_layer(
        layout, params, np.asarray(images, np.float64), None
    )
    return outputs.reshape(len(images), -1)


def softmax(values: Vector) -> Vector:
    """Returns the probabilities of logits, both [N, K]."""
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def score(
    layout: ParamLayout, params: Vector, batch: Batch, masks: Sequence[Vector] | None = None
) -> tuple[Stats, Vector]:
    """Returns the stats of one batch, and the gradient of its mean loss.

    Without masks, the batch is computed as in evaluation. Moving statistics have a gradient of 0.
    """
    return _score(layout, list(_layer_by_layer(layout, params, batch[0], masks)), batch[1])


def _score(layout: ParamLayout, seen: Sequence[Seen], y: NDArray[np.int64]) -> tuple[Stats, Vector]:
    last, sources = seen[-1][4], layout.sources
    scores = last.reshape(len(y), -1)
    shifted = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]
    error = softmax(scores)
    error[np.arange(len(y)), y] -= 1.0
    error = (error / len(y)).reshape(last.shape)
    gradients: list[Vector] = []
    errors: list[Any] = [0.0] * len(seen) + [error]  # for the image, then each layer's outputs
    for place in reversed(range(len(seen))):
        layer, tensors, inputs, sums, _, mask = seen[place]
        error = errors[place + 1] * _slope(layer, sums)
        below, own = _backward(layer, tensors, inputs, error, mask)
        parts = [below] * 2
        if layer.kind == "concatenate":
            parts = np.split(below, [layer.in_shape[2]], axis=-1)
        for source, part in zip(sources[place], parts, strict=False):
            errors[source] = errors[source] + part
        gradients = [*(each.ravel() for each in own), *gradients]
    num_correct = int((scores.argmax(axis=1) == y).sum())
    gradients.append(np.zeros(layout.num_params - layout.num_trained))
    return Stats(float(losses.sum()), num_correct, len(y), 1), np.concatenate(gradients)


def kink_distance(
    layout: ParamLayout, params: Vector, batch: Batch, masks: Sequence[Vector] | None = None
) -> float:
    """Returns the smallest distance of a value from a kink of the loss; infinity without kinks.

    The loss has a kink where a ReLU's input is 0, and where the two greatest values of a max pool's
    window are equal. There the gradient jumps by more than a rounding error. A value counts only if
    the gradient depends on it. It does not if the window of a max pool has a much larger value, if
    the input of a ReLU is far below 0, or if dropout drops the value.
    """
    return _kink_distance(layout, list(_layer_by_layer(layout, params, batch[0], masks)))


def _kink_distance(layout: ParamLayout, applied: Sequence[Seen]) -> float:
    nearest, sources = math.inf, layout.sources
    seen: list[NDArray[np.bool_]] = [np.zeros(1, np.bool_)] * len(applied) + [np.ones(1, np.bool_)]
    for place in reversed(range(len(applied))):
        layer, _, inputs, sums, _, mask = applied[place]
        is_seen = np.broadcast_to(seen[place + 1], sums.shape)
        for kink in KINKS.get(layer.activation, ()):
            nearest = min(nearest, np.abs(sums[is_seen] - kink).min(initial=math.inf))
        if layer.activation in ("relu", "relu6"):
            is_seen = is_seen & (sums > -FAR)
        if layer.kind == "max_pooling2d":
            gap, is_seen = _pool_kinks(layer, inputs, sums, is_seen)
            nearest = min(nearest, gap)
        elif layer.kind == "dropout" and mask is not None:
            is_seen = is_seen & (mask > 0)
        elif layer.kind not in ("dropout", "activation", "add"):
            is_seen = np.ones(1, np.bool_)  # all inputs; some may not be needed
        for source in sources[place]:
            seen[source] = seen[source] | is_seen
    return nearest


def _pool_kinks(
    layer: Layer, inputs: Vector, greatest: Vector, is_seen: NDArray[np.bool_]
) -> tuple[float, NDArray[np.bool_]]:
    """Returns the least gap of any window's two top values, and which inputs are near a top value.

    Two zeros do not count: they are outputs of a ReLU, whose own kink is counted.
    """
    parts = _windows(layer, inputs, -math.inf)
    values = parts.reshape(*greatest.shape, -1)
    if values.shape[-1] == 1:  # a window of one value has no second one
        seconds = np.full_like(greatest, -math.inf)
    else:
        seconds = -np.partition(-values, 1)[..., 1]
    is_lead = is_seen & ((greatest != 0) | (seconds != 0))
    gaps = (greatest - seconds)[is_lead]
    near = is_seen[..., None, None] & (greatest[..., None, None] - parts < FAR)
    return gaps.min(initial=math.inf), _sum_windows(layer, near.astype(np.float64)) > 0


def _layer_by_layer(
    layout: ParamLayout, params: Vector, images: Vector, masks: Sequence[Vector] | None
) -> Iterator[Seen]:
    """Yields each layer with its values; without masks, as in evaluation."""
    values = [images.reshape(len(images), *layout.layers[0].in_shape)]
    named = _by_name(layout, params)
    left = list(masks or [])
    for layer, sources in zip(layout.layers, layout.sources, strict=True):
        own = [each for each in layer.tensors if each.is_trained]
        tensors: list[Vector] = [named[f"{layer.name}/{each.name}"] for each in own]
        mask: Any = left.pop(0) if left and layer.kind == "dropout" else None
        inputs = values[sources[0]]
        if layer.kind == "batch_normalization":
            mask = _moving(layer, named) if masks is None or layer.is_frozen else None
        sums = _forward(layer, tensors, inputs, mask)
        if layer.kind == "add":
            sums = sums + values[sources[1]]
        elif layer.kind == "concatenate":
            sums = np.concatenate([sums, values[sources[1]]], axis=-1)
        values.append(_activate(layer, sums))
        yield layer, tensors, inputs, sums, values[-1], mask


def _by_name(layout: ParamLayout, params: Vector) -> dict[str, Vector]:
    parts: Any = layout.split(params)  # type: ignore[arg-type]  # of float64
    return dict(zip((each.name for each in layout.tensors), parts, strict=True))


def _moving(layer: Layer, named: dict[str, Vector]) -> tuple[Vector, Vector]:
    """Returns the moving mean and the moving variance of a batch norm."""
    return named[f"{layer.name}/moving_mean"], named[f"{layer.name}/moving_variance"]


def _activate(layer: Layer, x: Vector) -> Vector:
    return _ACTIVATIONS[layer.activation][0](x, layer.activation_constant)


def _slope(layer: Layer, x: Vector) -> Vector:
    return _ACTIVATIONS[layer.activation][1](x, layer.activation_constant)


def _sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-x))


def _normal_share(x: Vector) -> Vector:
    return np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)) / 2


def _gelu_tanh_of(x: Vector) -> Vector:
    return np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _gelu_tanh_slope(x: Vector) -> Vector:
    t, inner_slope = _gelu_tanh_of(x), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner_slope


def _hard_silu_slope(x: Vector) -> Vector:
    return np.where(np.abs(x) < 3, (2 * x + 3) / 6, (x > 0).astype(np.float64))


# Each activation's output and slope, as functions of its input x and its constant a.
_Function = Callable[[Any, float], Any]
_ACTIVATIONS: dict[str, tuple[_Function, _Function]] = {
    "linear": (lambda x, a: x, lambda x, a: np.ones_like(x)),
    "relu": (lambda x, a: np.maximum(x, 0.0), lambda x, a: np.where(x > 0, 1.0, 0.0)),
    "relu6": (lambda x, a: np.clip(x, 0.0, 6.0), lambda x, a: np.where((x > 0) & (x < 6), 1.0, 0)),
    "leaky_relu": (lambda x, a: np.where(x < 0, a * x, x), lambda x, a: np.where(x > 0, 1.0, a)),
    "elu": (
        lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0.0)), x),
        lambda x, a: np.where(x > 0, 1.0, a * np.exp(np.minimum(x, 0.0))),
    ),
    "tanh": (lambda x, a: np.tanh(x), lambda x, a: 1 - np.tanh(x) ** 2),
    "sigmoid": (lambda x, a: _sigmoid(x), lambda x, a: _sigmoid(x) * _sigmoid(-x)),
    "silu": (lambda x, a: x * _sigmoid(x), lambda x, a: _sigmoid(x) * (1 + x * _sigmoid(-x))),
    "gelu": (
        lambda x, a: x * _normal_share(x),
        lambda x, a: _normal_share(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (lambda x, a: 0.5 * x * (1 + _gelu_tanh_of(x)), lambda x, a: _gelu_tanh_slope(x)),
    "hard_silu": (
        lambda x, a: x * np.clip(x + 3, 0.0, 6.0) / 6,
        lambda x, a: _hard_silu_slope(x),
    ),
}


def _windows(layer: Layer, values: Vector, outside: float) -> Vector:
    """Returns each output pixel's window, [B, out height, out width, channels, height, width].

    `outside` is the value of what is outside the image.
    """
    padded = np.pad(values, _borders(layer), constant_values=outside)
    by_place = np.lib.stride_tricks.sliding_window_view(padded, layer.window, axis=(1, 2))
    return by_place[:, :: layer.strides[0], :: layer.strides[1]]


def _sum_windows(layer: Layer, windows: Vector) -> Vector:
    """Returns for each value of the image the sum of what all windows have in its place."""
    size, num_rows, num_columns, num_channels = windows.shape[:4]
    (_, (top, bottom), (left, right), _), shape = _borders(layer), layer.in_shape
    sums = np.zeros((size, top + shape[0] + bottom, left + shape[1] + right, num_channels))
    for up, across in np.ndindex(*layer.window):
        rows = slice(up, up + num_rows * layer.strides[0], layer.strides[0])
        columns = slice(across, across + num_columns * layer.strides[1], layer.strides[1])
        sums[:, rows, columns] += windows[..., up, across]
    return sums[:, top : top + shape[0], left : left + shape[1]]


def _borders(layer: Layer) -> list[tuple[int, int]]:
    """Returns, for each axis of [B, height, width, channels], what windows read on both sides."""
    borders = [(0, 0)]
    for size, places, length, stride, pad in zip(
        layer.in_shape, layer.out_shape, layer.window, layer.strides, layer.pads, strict=False
    ):
        borders.append((pad, max((places - 1) * stride + length - pad - size, 0)))
    return [*borders, (0, 0)]


def _forward(layer: Layer, tensors: list[Vector], values: Vector, mask: Any) -> Vector:
    size = len(values)
    if layer.kind == "dense":
        outputs = values.reshape(size, -1) @ tensors[0]
        return (outputs + sum(tensors[1:])).reshape(size, *layer.out_shape)
    if layer.kind == "dropout":
        return values if mask is None else values * mask
    if layer.kind in NORMS:
        scaled, _ = _normalized(layer, values, mask)
        gamma, beta = _gamma_beta(layer, tensors)
        return scaled * gamma + beta
    if layer.kind in ("activation", "add", "concatenate"):  # the caller adds the second input
        return values
    if layer.kind == "zero_padding2d":
        outputs = np.zeros((size, *layer.out_shape))
        rows, columns = _interior(layer)
        outputs[:, rows, columns] = values
        return outputs
    if layer.kind == "max_pooling2d":
        return _windows(layer, values, -math.inf).max(axis=(4, 5))
    windows = _windows(layer, values, 0.0)
    if layer.kind == "conv2d":
        return np.tensordot(windows, tensors[0], ((4, 5, 3), (0, 1, 2))) + sum(tensors[1:])
    if layer.kind == "depthwise_conv2d":
        return np.einsum("byxchw,hwc->byxc", windows, tensors[0][..., 0]) + sum(tensors[1:])
    return windows.sum(axis=(4, 5)) / _num_averaged(layer)


def _backward(
    layer: Layer, tensors: list[Vector], values: Vector, error: Vector, mask: Any
) -> tuple[Vector, list[Vector]]:
    """Returns the gradients of a layer's inputs and tensors, given the gradient of its outputs."""
    size = len(values)
    if layer.kind == "dense":
        by_outputs: Vector = error.reshape(size, -1)
        kernel_gradient: Vector = values.reshape(size, -1).T @ by_outputs
        bias_gradient: Vector = by_outputs.sum(axis=0)
        below = (by_outputs @ tensors[0].T).reshape(values.shape)
        return below, [kernel_gradient, bias_gradient][: len(tensors)]
    if layer.kind in ("dropout", "activation", "add", "concatenate"):
        return error if mask is None else error * mask, []
    if layer.kind in NORMS:
        return _normalize_backward(layer, tensors, values, error, mask)
    if layer.kind == "zero_padding2d":
        rows, columns = _interior(layer)
        return error[:, rows, columns], []
    own = [error.sum(axis=(0, 1, 2))][: len(tensors) - 1]  # of the bias
    if layer.kind == "conv2d":
        kernel_gradient = np.tensordot(_windows(layer, values, 0.0), error, ((0, 1, 2),) * 2)
        own = [kernel_gradient.transpose(1, 2, 0, 3), *own]
        windows = np.tensordot(error, tensors[0].transpose(2, 0, 1, 3), ((3,), (3,)))
    elif layer.kind == "depthwise_conv2d":
        kernel = tensors[0][..., 0]
        kernel_gradient = np.einsum("byxchw,byxc->hwc", _windows(layer, values, 0.0), error)
        own = [kernel_gradient[..., None], *own]
        windows = np.einsum("byxc,hwc->byxchw", error, kernel)
    elif layer.kind == "max_pooling2d":
        seen = _windows(layer, values, -math.inf)
        seen = seen.reshape(*error.shape, -1)
        is_first = np.arange(seen.shape[-1]) == seen.argmax(axis=-1)[..., None]
        windows = (is_first * error[..., None]).reshape(*error.shape, *layer.window)
    else:
        windows = (error / _num_averaged(layer))[..., None, None] * np.ones(layer.window)
    return _sum_windows(layer, windows), own


def _num_averaged(layer: Layer) -> Vector:
    """Returns how many pixels of the image are in each window, [1, out height, out width, 1]."""
    return _windows(layer, np.ones((1, *layer.in_shape[:2], 1)), 0.0).sum(axis=(4, 5))


def _gamma_beta(layer: Layer, tensors: list[Vector]) -> tuple[Any, Any]:
    left = list(tensors)
    gamma: Any = left.pop(0) if layer.has_scale else 1.0
    return gamma, left.pop(0) if layer.has_bias else 0.0


def _interior(layer: Layer) -> tuple[slice, slice]:
    """Returns the slices of the image inside the border of a zero padding."""
    (top, left), (height, width) = layer.pads, layer.in_shape[:2]
    return slice(top, top + height), slice(left, left + width)


def _grouped(layer: Layer, values: Vector) -> Vector:
    """Reshapes values to [B, pixels, groups, values of a group]; a group is axes 1 and 3.

    A group of a layer norm is a pixel; a group of a batch norm is a channel in all examples.
    """
    if layer.kind == "batch_normalization":
        return values.reshape(1, -1, values.shape[-1], 1)
    if layer.kind == "layer_normalization":
        return values.reshape(len(values), 1, -1, values.shape[-1])
    return values.reshape(len(values), -1, layer.num_groups, values.shape[-1] // layer.num_groups)


def _normalized(
    layer: Layer, values: Vector, moving: tuple[Vector, Vector] | None
) -> tuple[Vector, NDArray[np.float64]]:
    """Returns values of mean 0 and variance near 1 in each group, and their divisors."""
    grouped = _grouped(layer, values)
    if moving is None:
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        variance = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    else:
        mean, variance = (each[:, None] for each in moving)
    root = np.sqrt(variance + layer.epsilon)
    return ((grouped - mean) / root).reshape(values.shape), root


def _normalize_backward(
    layer: Layer,
    tensors: list[Vector],
    values: Vector,
    error: Vector,
    moving: tuple[Vector, Vector] | None,
) -> tuple[Vector, list[Vector]]:
    scaled, root = _normalized(layer, values, moving)
    gamma, _ = _gamma_beta(layer, tensors)
    own = [(error * scaled).sum(axis=(0, 1, 2))] if layer.has_scale else []
    own += [error.sum(axis=(0, 1, 2))] if layer.has_bias else []
    inner, unit = _grouped(layer, error * gamma), _grouped(layer, scaled)
    if moving is not None:  # moving statistics do not depend on the values
        return (inner / root).reshape(values.shape), own
    mean = inner.mean(axis=(1, 3), keepdims=True)
    along = (inner * unit).mean(axis=(1, 3), keepdims=True)
    return ((inner - mean - unit * along) / root).reshape(values.shape), own
