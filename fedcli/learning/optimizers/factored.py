"""Adafactor: of the mean of squared gradients, only row means and column means are stored.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018,
https://arxiv.org/abs/1804.04235; TFF learning/optimizers/adafactor.py, which is Keras's form.

Step t = 1, 2, ... updates each tensor x with gradient g separately, with d = 1 - t^beta_2_decay:

    q = g^2 + epsilon_1
    r = d r + (1 - d) mean of q over the last axis,  c likewise over the last but one,
    v = outer(r / mean of r over its last axis, c);  with fewer than two axes v = d v + (1 - d) q
    u = g / sqrt(v);   u = u / max(1, rms(u) / clip_threshold)
    x <- x - max(epsilon_2, rms(x)) * rate * u,      rate = min(learning_rate, 1 / sqrt(t))

or rate = learning_rate without `relative_step`. This module is the server's optimizer. The client's
is in csrc/step/adafactor.c; there t starts at 1 in each round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]
Shapes = Sequence[tuple[int, ...]]


def init(shapes: Shapes, params: Vector) -> dict[str, Any]:
    """Returns the state before the first step; `params` holds the tensors one after another."""
    rows = sum(math.prod(shape[:-1]) for shape in shapes if len(shape) > 1)
    columns = sum(math.prod(_column_shape(shape)) for shape in shapes if len(shape) > 1)
    rest = sum(math.prod(shape) for shape in shapes if len(shape) < 2)
    sizes = {"rows": rows, "columns": columns, "preconditioner": rest}
    return {"step": 0, **{name: np.zeros(size, params.dtype) for name, size in sizes.items()}}


def step(
    shapes: Shapes,
    learning_rate: float,
    options: Mapping[str, Any],
    gradient: Vector,
    state: Mapping[str, Any],
    params: Vector,
) -> tuple[Vector, dict[str, Any]]:
    """Returns the decrease to subtract from the parameters, and the next state.

    It does not change its arguments.
    """
    step_num = state["step"] + 1
    decay = 1.0 - float(step_num) ** options["beta_2_decay"]
    rate = min(learning_rate, step_num**-0.5) if options["relative_step"] else learning_rate
    following = {name: state[name].copy() for name in ("rows", "columns", "preconditioner")}
    following["step"] = step_num
    decrease = np.empty_like(params)
    for shape, at, slots in _tensors(shapes, following):
        tensor, slope = params[at].reshape(shape), gradient[at].reshape(shape)
        squares = _mean_of_squares(slope, decay, options["epsilon_1"], slots)
        update = slope / np.sqrt(squares)
        update /= max(1.0, _rms(update) / options["clip_threshold"])
        scale = max(options["epsilon_2"], _rms(tensor)) * rate
        decrease[at] = (scale * update).reshape(-1)
    return decrease, following


def _column_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1])


def _tensors(
    shapes: Shapes, state: Mapping[str, Any]
) -> Iterator[tuple[tuple[int, ...], slice, list[Vector]]]:
    """Yields each tensor's shape, its slice of the parameters, and its slots (views)."""
    ends = dict.fromkeys(("rows", "columns", "preconditioner"), 0)

    def take(name: str, shape: tuple[int, ...]) -> Vector:
        first = ends[name]
        ends[name] += math.prod(shape)
        view: Vector = state[name][first : ends[name]].reshape(shape)
        return view

    start = 0
    for shape in shapes:
        at = slice(start, start + math.prod(shape))
        start = at.stop
        if len(shape) > 1:
            yield shape, at, [take("rows", shape[:-1]), take("columns", _column_shape(shape))]
        else:
            yield shape, at, [take("preconditioner", shape)]


def _mean_of_squares(gradient: Vector, decay: float, epsilon: float, slots: list[Vector]) -> Vector:
    """Updates a tensor's slots and returns the mean of squares [shape] that they represent."""
    squares = np.square(gradient) + gradient.dtype.type(epsilon)
    if len(slots) == 1:
        slots[0][...] = decay * slots[0] + (1.0 - decay) * squares
        return slots[0]
    rows, columns = slots
    rows[...] = decay * rows + (1.0 - decay) * squares.mean(axis=-1)
    columns[...] = decay * columns + (1.0 - decay) * squares.mean(axis=-2)
    shares = rows.astype(np.float64) / rows.mean(axis=-1, keepdims=True)
    # In float64: if a row and a column have no gradient, the product is 1e-60 or less.
    product: Vector = shares[..., np.newaxis] * columns[..., np.newaxis, :].astype(np.float64)
    return product


def _rms(values: Vector) -> float:
    return math.sqrt(float(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
