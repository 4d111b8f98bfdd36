"""The attack that evaluates the server's aggregator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.updates.attacks import known_updates
from fedcli.learning.updates.attacks.crafted import NOT_MADE
from fedcli.learning.updates.attacks.stage import AttackView

# The aggregated update of some deltas, float32 [num_params].
Rule = Callable[[Deltas], NDArray[np.float32]]

_CONTRACTION = 0.8  # of the authors' line search


@dataclass(frozen=True)
class Optimal:
    """The mean minus gamma times a deviation, with the gamma that changes the aggregate most.

    A line search like that of the authors' code finds gamma by `evaluations` calls of the
    aggregator. One with a state is called with its initial state. El Mhamdi, Guerraoui and Rouault,
    "Distributed Momentum for Byzantine-resilient Learning", ICLR 2021,
    https://arxiv.org/abs/2003.00010, and its code, ByzantineMomentum.

    Attributes:
        deviation: See `known_updates.deviation`.
        evaluations: Number of calls of the aggregator in a round.
        rule: The run's aggregator.
    """

    deviation: str
    evaluations: int
    rule: Rule

    def init(self, num_params: int) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def send(
        self, view: AttackView, state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `UpdateAttack.send`; metrics: `gamma`, and the distance of the result."""
        if not len(view.known):
            return {}, dict(NOT_MADE)
        center, direction = known_updates.deviation(view, self.deviation)

        def distance(gamma: float) -> float:
            view.send_alike(center - gamma * direction)
            result = self.rule(_deltas(view)).astype(np.float64)
            moved = math.sqrt(float(np.sum(np.square(result - center))))
            return moved if math.isfinite(moved) else -math.inf

        gamma, moved = line_maximum(distance, self.evaluations)
        view.send_alike(center - gamma * direction)
        return {}, {"is_made": 1, "gamma": gamma, "distance": moved}


def _deltas(view: AttackView) -> Deltas:
    """The updates as the aggregator would get them if no other stage followed."""
    updates = view.updates
    weights = updates.stats["weight"]
    return Deltas(
        delta_sum=native.sum_rows(updates.rows, weights.copy(), num_threads=1),
        weight_sum=float(np.sum(weights)),
        stats=updates.stats,
        rows=updates.rows,
        round=updates.round,
    )


def line_maximum(function: Callable[[float], float], evaluations: int) -> tuple[float, float]:
    """Returns where on [0, inf) the greatest value was found, and that value.

    Like `line_maximize` of ByzantineMomentum, it first takes steps from 0 that double while the
    value rises, then steps to both sides of the best place, each 0.8 times the one before.
    """
    best, step = 0.0, 1.0
    value = function(best)
    left = evaluations - 1
    place = best
    while left > 0:  # expansion
        place = best + step
        left -= 1
        reached = function(place)
        if reached <= value:
            step *= _CONTRACTION
            break
        best, value = place, reached
        step *= 2.0
    while left > 0:  # contraction
        if place < best:
            place += step
        else:
            lower = place - step
            while lower < 0.0:
                lower = (lower + place) / 2.0
            place = lower
        left -= 1
        reached = function(place)
        if reached > value:
            best, value = place, reached
        step *= _CONTRACTION
    return best, value
