"""Slow and simple federated averaging of dense models in float64, as the reference for tests.

A client is a list of batches (x, y), with x float64 [b, I] and y int [b]. `hidden` has the widths
of the hidden layers, which have ReLU; it is empty for softmax regression. Parameters are one
vector: for each layer the kernel [I, O] row by row, then the bias [O].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Batch = tuple[NDArray[np.float64], NDArray[np.int64]]

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Optimizer(Protocol):
    def start(self, params: Vector) -> Any:
        """Returns the state before the first step."""

    def step(self, params: Vector, state: Any, gradient: Vector) -> tuple[Vector, Any]:
        """Returns parameters and state after one step."""


@dataclass(frozen=True)
class Sgd:
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False

    def start(self, params: Vector) -> Vector:
        return np.zeros_like(params)

    def step(self, params: Vector, velocity: Vector, gradient: Vector) -> tuple[Vector, Vector]:
        velocity = self.momentum * velocity + gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return params - self.learning_rate * direction, velocity


@dataclass(frozen=True)
class Adam:
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    initial = 0.0

    def start(self, params: Vector) -> tuple[int, Vector, Vector]:
        return 0, np.zeros_like(params), np.full_like(params, self.initial)

    def step(
        self, params: Vector, state: tuple[int, Vector, Vector], gradient: Vector
    ) -> tuple[Vector, tuple[int, Vector, Vector]]:
        count, mean, squares = state
        count += 1
        mean = self.beta_1 * mean + (1 - self.beta_1) * gradient
        squares = self.next_squares(squares, gradient**2)
        rate = self.learning_rate * (1 - self.beta_2**count) ** 0.5 / (1 - self.beta_1**count)
        return params - rate * mean / (squares**0.5 + self.epsilon), (count, mean, squares)

    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        return self.beta_2 * squares + (1 - self.beta_2) * square


@dataclass(frozen=True)
class Yogi(Adam):
    epsilon: float = 1e-3

    initial = 1e-6

    def next_squares(self, squares: Vector, square: Vector) -> Vector:
        return np.where(
            square > squares,
            squares + (1 - self.beta_2) * square,
            squares - (1 - self.beta_2) * square,
        )


@dataclass(frozen=True)
class AdamW(Adam):
    weight_decay: float = 0.004

    def step(
        self, params: Vector, state: tuple[int, Vector, Vector], gradient: Vector
    ) -> tuple[Vector, tuple[int, Vector, Vector]]:
        moved, state = super().step(params, state, gradient)
        return moved - self.learning_rate * self.weight_decay * params, state


@dataclass(frozen=True)
class Adagrad:
    learning_rate: float
    epsilon: float = 1e-7
    initial: float = 0.1

    def start(self, params: Vector) -> Vector:
        return np.full_like(params, self.initial)

    def step(self, params: Vector, squares: Vector, gradient: Vector) -> tuple[Vector, Vector]:
        squares = squares + gradient**2
        return params - self.learning_rate * gradient / (squares + self.epsilon) ** 0.5, squares


@dataclass(frozen=True)
class RmsProp:
    learning_rate: float
    decay: float = 0.9
    epsilon: float = 1e-7

    def start(self, params: Vector) -> Vector:
        return np.zeros_like(params)

    def step(self, params: Vector, squares: Vector, gradient: Vector) -> tuple[Vector, Vector]:
        squares = self.decay * squares + (1 - self.decay) * gradient**2
        return params - self.learning_rate * gradient / (squares**0.5 + self.epsilon), squares


@dataclass(frozen=True)
class Adafactor:
    """Algorithms 4 and 5 of Shazeer and Stern 2018, with sums as in the paper, not means."""

    learning_rate: float
    shapes: tuple[tuple[int, ...], ...]

    def start(self, params: Vector) -> tuple[int, list[list[Any]]]:
        return 0, [[0.0] * len(shape) for shape in self.shapes]

    def step(
        self, params: Vector, state: tuple[int, list[list[Any]]], gradient: Vector
    ) -> tuple[Vector, tuple[int, list[list[Any]]]]:
        count = state[0] + 1
        decay, rate = 1 - count**-0.8, min(self.learning_rate, count**-0.5)
        moved, kept, first = params.copy(), [], 0
        for shape, sums in zip(self.shapes, state[1], strict=True):
            at = slice(first, first + math.prod(shape))
            first = at.stop
            slope = gradient[at].reshape(shape)
            square = slope**2 + 1e-30
            new = [square.sum(axis=1), square.sum(axis=0)] if len(shape) == 2 else [square]
            sums = [decay * old + (1 - decay) * each for old, each in zip(sums, new, strict=True)]
            update = slope / (np.outer(*sums) / sums[0].sum() if len(sums) == 2 else sums[0]) ** 0.5
            update = update / max(1.0, np.mean(update**2) ** 0.5)
            moved[at] -= max(1e-3, np.mean(params[at] ** 2) ** 0.5) * rate * update.ravel()
            kept.append(sums)
        return moved, (count, kept)


@dataclass
class Stats:
    loss_sum: float = 0.0
    num_correct: int = 0
    num_examples: int = 0
    num_batches: int = 0

    def add(self, other: Stats) -> None:
        self.loss_sum += other.loss_sum
        self.num_correct += other.num_correct
        self.num_examples += other.num_examples
        self.num_batches += other.num_batches


@dataclass
class Round:
    params: Vector
    server_state: Any
    stats: Stats
    num_non_finite_clients: int
    update_non_finite: int


def make_batches(
    x: NDArray[np.generic], y: NDArray[np.generic], order: Sequence[int], batch_size: int
) -> list[Batch]:
    batches = []
    for start in range(0, len(order), batch_size):
        index = list(order[start : start + batch_size])
        batches.append((x[index].reshape(len(index), -1).astype(np.float64), y[index].astype(int)))
    return batches


def score(
    params: Vector,
    batch: Batch,
    num_classes: int,
    hidden: Sequence[int] = (),
    class_weights: Vector | None = None,
    smoothing: float = 0.0,
) -> tuple[Stats, Vector]:
    """Returns the stats of one batch, and the gradient of its mean loss.

    With weights, an example's loss is multiplied by the weight of its label. The mean still divides
    by the number of examples. `smoothing` is the share of each label that is spread over all
    classes.
    """
    x, y = batch
    size = len(y)
    layers = split_layers(params, [x.shape[1], *hidden, num_classes])
    inputs = [x]
    for kernel, bias in layers[:-1]:
        inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0.0))
    logits = inputs[-1] @ layers[-1][0] + layers[-1][1]
    # float32 cannot hold larger values, so they become infinite, as in the core.
    logits = np.where(np.abs(logits) > FLOAT32_MAX, np.copysign(np.inf, logits), logits)
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    losses = np.log(totals[:, 0]) - shifted[np.arange(size), y]
    if smoothing:
        means = np.log(totals[:, 0]) - shifted.mean(axis=1)
        losses = (1.0 - smoothing) * losses + smoothing * means
    correct = (logits.argmax(axis=1) == y) & np.isfinite(losses)
    error = exponentials / totals
    error[np.arange(size), y] -= 1.0 - smoothing
    error -= smoothing / num_classes
    error /= size
    if class_weights is not None:
        losses = losses * class_weights[y]
        error *= class_weights[y][:, np.newaxis]
    gradients: list[Vector] = []
    for (kernel, _), layer_inputs in zip(reversed(layers), reversed(inputs), strict=True):
        gradients = [(layer_inputs.T @ error).ravel(), error.sum(axis=0), *gradients]
        error = (error @ kernel.T) * (layer_inputs > 0)  # not needed for the first layer
    stats = Stats(float(losses.sum()), int(correct.sum()), size, 1)
    return stats, np.concatenate(gradients)


def split_layers(params: Vector, widths: Sequence[int]) -> list[tuple[Vector, Vector]]:
    """Returns kernel [I, O] and bias [O] of each layer, given all widths from pixels to logits."""
    layers = []
    for num_inputs, num_outputs in pairwise(widths):
        size = num_inputs * num_outputs
        kernel, bias = params[:size], params[size : size + num_outputs]
        layers.append((kernel.reshape(num_inputs, num_outputs), bias))
        params = params[size + num_outputs :]
    assert params.size == 0
    return layers


def clip(gradient: Vector, clip_norm: float) -> Vector:
    return gradient * min(1.0, clip_norm / float(np.linalg.norm(gradient)))


def train_client(
    params: Vector,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    num_classes: int,
    proximal_strength: float = 0.0,
    hidden: Sequence[int] = (),
    clip_norm: float = np.inf,
) -> tuple[Vector, Stats]:
    """Returns a client's model delta and its online stats."""
    local, state, stats = params.copy(), optimizer.start(params), Stats()
    for batch in batches:
        batch_stats, gradient = score(local, batch, num_classes, hidden)
        stats.add(batch_stats)
        gradient = clip(gradient, clip_norm)
        gradient = gradient + proximal_strength * (local - params)
        local, state = optimizer.step(local, state, gradient)
    return local - params, stats


def fedavg_round(
    params: Vector,
    server_state: Any,
    cohort: Sequence[Sequence[Batch]],
    *,
    num_classes: int,
    client: Optimizer,
    server: Optimizer,
    is_weighted: bool = True,
    proximal_strength: float = 0.0,
    hidden: Sequence[int] = (),
    clip_norm: float = np.inf,
) -> Round:
    """Computes a round. A client without examples, or with a delta beyond float32, has weight 0."""
    total, weight_sum = np.zeros_like(params), 0.0
    stats, num_non_finite = Stats(), 0
    for batches in cohort:
        delta, client_stats = train_client(
            params, batches, client, num_classes, proximal_strength, hidden, clip_norm
        )
        if not np.all(np.abs(delta) <= FLOAT32_MAX):
            num_non_finite += 1
            continue
        stats.add(client_stats)
        if client_stats.num_examples > 0:
            weight = float(client_stats.num_examples) if is_weighted else 1.0
            total += weight * delta
            weight_sum += weight
    if weight_sum == 0.0:
        return Round(params, server_state, stats, num_non_finite, 1)
    mean_delta = total / weight_sum
    params, server_state = server.step(params, server_state, -mean_delta)
    return Round(params, server_state, stats, num_non_finite, 0)


def evaluate(params: Vector, cohort: Sequence[Sequence[Batch]], num_classes: int) -> Stats:
    stats = Stats()
    for batches in cohort:
        for batch in batches:
            stats.add(score(params, batch, num_classes)[0])
    return stats
