"""SCAFFOLD, FedNova, FedDyn, Mime and FedOpt in float64 NumPy, written from the papers' formulas.

A problem is given by its gradients: a client is a list of local steps, and each step is a function
that maps parameters to the gradient of the step's batch. So the same code works for dense models
and for quadratic functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kit import reference
from tests.kit.reference import Vector

Gradient = Callable[[Vector], Vector]


@dataclass
class Client:
    """Attributes:
    steps: Gradient of each local step's batch.
    num_examples: Examples processed.
    full: Mean gradient over all examples.
    """

    steps: list[Gradient]
    num_examples: int = 1
    full: Gradient | None = None


def dense_client(
    batches: Sequence[reference.Batch],
    num_classes: int,
    class_weights: Vector | None = None,
    smoothing: float = 0.0,
) -> Client:
    def gradient(batch: reference.Batch) -> Gradient:
        return lambda params: reference.score(
            params, batch, num_classes, class_weights=class_weights, smoothing=smoothing
        )[1]

    steps = [gradient(batch) for batch in batches]
    sizes = [len(batch[1]) for batch in batches]

    def full(params: Vector) -> Vector:
        parts = [size * step(params) for size, step in zip(sizes, steps, strict=True)]
        return np.sum(parts, axis=0) / sum(sizes)

    return Client(steps, sum(sizes), full)


@dataclass
class Scaffold:
    """SCAFFOLD, lines 6 to 17 of Algorithm 1; the cohort is a dict of clients by name."""

    rate: float
    population_size: int
    factors: Callable[[int], float] = lambda step: 1.0
    server_rate: float = 1.0
    control: Any = 0.0
    controls: dict[str, Any] = field(default_factory=dict)

    def round(self, params: Vector, cohort: dict[str, Client]) -> Vector:
        deltas, changes = [], []
        for name, client in cohort.items():
            own = self.controls.get(name, np.zeros_like(params))
            local, rates = params.copy(), 0.0
            for number, step in enumerate(client.steps):
                rate = self.rate * self.factors(number)
                local = local - rate * (step(local) - own + self.control)
                rates += rate
            moved = own - self.control + (params - local) / rates
            deltas.append(local - params)
            changes.append(moved - own)
            self.controls[name] = moved
        self.control = self.control + np.sum(changes, axis=0) / self.population_size
        return params + self.server_rate * np.mean(deltas, axis=0)


@dataclass
class FedDyn:
    rate: float
    alpha: float
    population_size: int
    mean_gradient: Any = 0.0
    gradients: dict[str, Any] = field(default_factory=dict)
    evaluated: Any = None

    def round(self, params: Vector, cohort: dict[str, Client]) -> Vector:
        locals_ = []
        for name, client in cohort.items():
            own = self.gradients.get(name, np.zeros_like(params))
            local = params.copy()
            for step in client.steps:
                local = local - self.rate * (step(local) - own + self.alpha * (local - params))
            self.gradients[name] = own - self.alpha * (local - params)
            locals_.append(local)
        moved = np.sum([local - params for local in locals_], axis=0)
        self.mean_gradient = self.mean_gradient - self.alpha / self.population_size * moved
        self.evaluated = np.mean(locals_, axis=0)
        return self.evaluated - self.mean_gradient / self.alpha


def fednova_round(
    params: Vector, cohort: Sequence[Client], rate: float, momentum: float, is_weighted: bool
) -> Vector:
    """One round of FedNova. The norm of a_k, for SGD with momentum, comes from its closed form."""
    weights = np.array([client.num_examples if is_weighted else 1 for client in cohort], float)
    shares = weights / weights.sum()
    directions, counted = [], []
    for client in cohort:
        local, velocity = params.copy(), np.zeros_like(params)
        for step in client.steps:
            velocity = momentum * velocity + step(local)
            local = local - rate * velocity
        num = len(client.steps)
        left = momentum * (1 - momentum**num) / (1 - momentum)
        counted.append((num - left) / (1 - momentum))
        directions.append((params - local) / (rate * counted[-1]))
    effective = float(shares @ counted)
    return params - effective * rate * np.tensordot(shares, np.array(directions), 1)


@dataclass
class Mime:
    base: reference.Optimizer
    state: Any = None

    def round(self, params: Vector, cohort: Sequence[Client]) -> Vector:
        if self.state is None:
            self.state = self.base.start(params)
        weights = np.array([client.num_examples for client in cohort], float)
        shares = weights / weights.sum()
        fulls = [client.full(params) for client in cohort if client.full is not None]
        mean = np.tensordot(shares, np.array(fulls), 1)
        deltas = []
        for client in cohort:
            local = params.copy()
            for step in client.steps:
                corrected = step(local) - step(params) + mean
                local = self.base.step(local, self.state, corrected)[0]
            deltas.append(local - params)
        self.state = self.base.step(np.zeros_like(params), self.state, mean)[1]
        return params + np.tensordot(shares, np.array(deltas), 1)


def fedopt_step(name: str, rate: float, state: Any, mean_delta: Vector) -> tuple[Vector, Any]:
    """Returns update and next state by Algorithm 2 of Reddi et al.; betas 0.9, 0.99, tau 0.001."""
    if name == "fedavgm":
        velocity = (0.0 if state is None else state) * 0.9 - mean_delta
        return -rate * velocity, velocity
    mean, squares = (np.zeros_like(mean_delta),) * 2 if state is None else state
    square = mean_delta**2
    share = 0.0 if name == "fedadagrad" else 0.9
    mean = share * mean + (1 - share) * mean_delta
    squares = {
        "fedadagrad": squares + square,
        "fedadam": 0.99 * squares + 0.01 * square,
        "fedyogi": squares - 0.01 * square * np.sign(squares - square),
    }[name]
    return rate * mean / (np.sqrt(squares) + 1e-3), (mean, squares)
