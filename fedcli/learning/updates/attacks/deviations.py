"""Attacks that send the mean of the known updates minus gamma times a deviation.

They differ in how they choose gamma. Min-max and min-sum take the largest gamma at which the vector
is not farther from the known updates than these are from each other. Optimal calls the run's
aggregator to try values of gamma.
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
from fedcli.learning.updates.attacks.known_updates import DistancesFromLine
from fedcli.learning.updates.attacks.malicious import Made, MaliciousUpdate
from fedcli.learning.updates.attacks.stage import AttackView

Rule = Callable[[Deltas], NDArray[np.float32]]
Vector = NDArray[np.float64]

_FIRST_FACTOR, _PRECISION = 10.0, 1e-5  # of the search of `greatest_factor`
_CONTRACTION = 0.8  # each of the later steps of `line_maximum` is shorter by this factor


@dataclass(frozen=True)
class MeanMinusDeviation(MaliciousUpdate):
    """The base of these attacks.

    Attributes:
        deviation: See `known_updates.deviation`.
    """

    deviation: str

    def make(self, view: AttackView) -> Made | None:
        """See `MaliciousUpdate.make`; the metric `gamma` is the factor that was chosen."""
        center, direction = known_updates.deviation(view, self.deviation)
        gamma, metrics = self.choose(view, center, direction)
        return center - gamma * direction, {"gamma": gamma, **metrics}

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """Returns gamma, and further metrics."""
        raise NotImplementedError


@dataclass(frozen=True)
class MinMax(MeanMinusDeviation):
    """The largest gamma at which no distance to a known update is conspicuous.

    The vector is not farther from any known update than the largest distance between two of them.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021.
    """

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """See `MeanMinusDeviation.choose`."""
        limit = float(known_updates.squared_distances(view).max())
        line = DistancesFromLine(view, center, direction)
        return greatest_factor(lambda gamma: bool(line.at(gamma).max() <= limit)), {}


@dataclass(frozen=True)
class MinSum(MeanMinusDeviation):
    """As `MinMax`, but bounds the sum of the squared distances to the known updates.

    Attributes:
        limit: Each known update has such a sum, too. The bound is the `max` of these sums, as in
            the paper, or their `min`, as in the authors' code.
    """

    limit: str

    def choose(
        self, view: AttackView, center: Vector, direction: Vector
    ) -> tuple[float, dict[str, float]]:
        """See `MeanMinusDeviation.choose`."""
        sums = known_updates.squared_distances(view).sum(axis=1)
        limit = float(sums.max() if self.limit == "max" else sums.min())
        line = DistancesFromLine(view, center, direction)
        return greatest_factor(lambda gamma: bool(line.at(gamma).sum() <= limit)), {}


@dataclass(frozen=True)
class Optimal(MeanMinusDeviation):
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
        """See `MeanMinusDeviation.choose`.

        The metric `distance` is the L2 distance of the rule's result from the mean.
        """

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
    """Returns the updates in the form in which the rule gets them if no other stage follows."""
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
    """Returns the point x >= 0 at which the largest value was found, and this value.

    This is `line_maximize` of ByzantineMomentum. It steps from 0, and doubles the step while the
    value rises. Then it steps to both sides of the best point; each of these steps is 0.8 times as
    long as the one before.
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
