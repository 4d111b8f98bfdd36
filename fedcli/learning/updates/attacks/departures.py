"""Attacks that send the mean of the known updates minus gamma times a deviation.

They differ in how they choose gamma: min-max and min-sum stay hidden among the known updates, and
optimal tries values on the run's aggregator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.dataclass import dataclass
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.updates.attacks import known_updates
from fedcli.learning.updates.attacks.crafted import CraftedUpdate, Made
from fedcli.learning.updates.attacks.known_updates import DistancesFromLine
from fedcli.learning.updates.attacks.stage import AttackView

Rule = Callable[[Deltas], NDArray[np.float32]]
Vector = NDArray[np.float64]

_FIRST_FACTOR, _PRECISION = 10.0, 1e-5  # of the search of `greatest_factor`
_CONTRACTION = 0.8  # of the search of `line_maximum`


@dataclass(frozen=True)
class Departure(CraftedUpdate):
    """The base of these attacks.

    Attributes:
        deviation: See `known_updates.deviation`.
    """

    deviation: str

    def make(self, view: AttackView) -> Made | None:
        """See `CraftedUpdate.make`; the metric `gamma` is the factor that was chosen."""
        center, direction = known_updates.deviation(view, self.deviation)
        gamma, metrics = self.choose(view, center, direction)
        return center - gamma * direction, {"gamma": gamma, **metrics}

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """Returns gamma, and further metrics."""
        raise NotImplementedError


@dataclass(frozen=True)
class MinMax(Departure):
    """The largest gamma at which distances to the known updates do not stand out.

    The vector is no farther from any known update than the two farthest of these are apart.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021.
    """

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """See `Departure.choose`."""
        limit = float(known_updates.squared_distances(view).max())
        line = DistancesFromLine(view, center, direction)
        return greatest_factor(lambda gamma: bool(line.at(gamma).max() <= limit)), {}


@dataclass(frozen=True)
class MinSum(Departure):
    """As `MinMax`, but bounds the sum of the squared distances to the known updates.

    Attributes:
        limit: The bound is the `max` of these sums over the known updates, as in the paper, or the
            `min`, as in the authors' code.
    """

    limit: str

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """See `Departure.choose`."""
        sums = known_updates.squared_distances(view).sum(axis=1)
        limit = float(sums.max() if self.limit == "max" else sums.min())
        line = DistancesFromLine(view, center, direction)
        return greatest_factor(lambda gamma: bool(line.at(gamma).sum() <= limit)), {}


@dataclass(frozen=True)
class Optimal(Departure):
    """The gamma that moves the rule's result most, found by calls of the rule.

    A line search like that of the authors' code makes `evaluations` calls. A rule with a state is
    called with its initial state. El Mhamdi, Guerraoui and Rouault, "Distributed Momentum for
    Byzantine-resilient Learning", ICLR 2021, https://arxiv.org/abs/2003.00010, and its code,
    ByzantineMomentum.

    Attributes:
        evaluations: Number of calls of the rule in a round.
        rule: The run's aggregator.
    """

    evaluations: int
    rule: Rule

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """See `Departure.choose`; the metric `distance` is how far the result is from the mean."""

        def distance(gamma: float) -> float:
            view.send_alike(center - gamma * direction)
            result = self.rule(_deltas(view)).astype(np.float64)
            moved = math.sqrt(float(np.sum(np.square(result - center))))
            return moved if math.isfinite(moved) else -math.inf

        gamma, moved = line_maximum(distance, self.evaluations)
        return gamma, {"distance": moved}


def greatest_factor(is_allowed: Callable[[float], bool]) -> float:
    """Returns the largest allowed factor below 20, by the search of Shejwalkar and Houmansadr.

    The steps are those of the authors' code, so that the result is the same to the last digit.
    """
    factor, step, best = _FIRST_FACTOR, _FIRST_FACTOR, 0.0
    while abs(best - factor) > _PRECISION:
        if is_allowed(factor):
            best = factor
            factor += step / 2
        else:
            factor -= step / 2
        step /= 2
    return best


def _deltas(view: AttackView) -> Deltas:
    """The updates as the rule would get them if no other stage followed."""
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
    """Returns the place, at least 0, of the largest value found on a line, and that value.

    As `line_maximize` of ByzantineMomentum: steps from 0 that double while the value rises, then
    steps to both sides of the best place, each 0.8 times as long as the one before.
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
