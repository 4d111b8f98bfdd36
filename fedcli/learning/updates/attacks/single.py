"""Attacks for which each attacker needs only its own update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.updates.attacks.stage import AttackView
from fedcli.settings.vocabulary import AUTO


@dataclass(frozen=True)
class SignFlip:
    """The attackers send minus `scale` times their own update."""

    scale: float

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; there are no metrics."""
        _scale(view, -self.scale)
        return {}, {}


@dataclass(frozen=True)
class Gaussian:
    """The attackers send noise N(0, (std * norm)^2 / P); `norm` is the norm of their own update.

    P is the number of parameters, so with `std` 1 the noise has about this norm. Each attacker has
    its own stream.
    """

    std: float

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; there are no metrics."""
        rows = view.updates.rows
        for place in view.attackers.tolist():
            deviation = self.std * _norm(rows[place]) / math.sqrt(view.num_params)
            with np.errstate(over="ignore"):
                rows[place] = deviation * view.noise_of(place).normal(view.num_params)
        return {}, {}


@dataclass(frozen=True)
class Zero:
    """The attackers send zeros."""

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; there are no metrics."""
        view.updates.rows[view.attackers] = 0.0
        return {}, {}


@dataclass(frozen=True)
class NotFinite:
    """The attackers send NaN."""

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; there are no metrics."""
        view.updates.rows[view.attackers] = np.nan
        return {}, {}


@dataclass(frozen=True)
class Boost:
    """The attackers send their update times a factor, projected to a radius.

    The factor `auto` is the sum of all weights divided by the sum of the attackers' weights. With
    `auto` and a server learning rate of 1, the global model becomes the attackers' model if all
    other updates are zeros. This is "model replacement" (Bagdasaryan et al., "How To Backdoor
    Federated Learning", AISTATS 2020, https://arxiv.org/abs/1807.00459, section 4.2). With a radius
    the attackers also project their model to within this distance of the global model after each of
    their epochs.

    Attributes:
        boost: The factor, or `auto`.
        radius: The largest L2 norm of an update that is sent; 0 for no limit.
    """

    boost: str | float
    radius: float

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; the metric `boost` is the factor."""
        weights = view.updates.stats["weight"]
        if self.boost == AUTO:
            factor = float(weights.sum() / weights[view.attackers].sum())
        else:
            factor = float(self.boost)
        rows = view.updates.rows
        for place in view.attackers.tolist():
            norm = factor * _norm(rows[place])
            shrink = self.radius / norm if 0.0 < self.radius < norm else 1.0
            with np.errstate(over="ignore"):
                rows[place] = np.multiply(rows[place], factor * shrink, dtype=np.float64)
        return {}, {"boost": factor}


def _scale(view: AttackView, factor: float) -> None:
    """Multiplies the attackers' updates, in float64 and rounded once."""
    rows = view.updates.rows
    for place in view.attackers.tolist():
        with np.errstate(over="ignore"):
            rows[place] = np.multiply(rows[place], factor, dtype=np.float64)


def _norm(row: NDArray[np.float32]) -> float:
    return math.sqrt(float(np.sum(np.square(row, dtype=np.float64))))
