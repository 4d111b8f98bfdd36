"""Successive halving: after each rung (a number of rounds) only the best points continue.

Jamieson and Talwalkar 2016, arXiv 1502.07943. All runs of a rung end before the next rung begins,
so the choice does not depend on which run ends first. The runs of a point that continues are
resumed, which gives the same bytes as runs that were started with all rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.sweeps.choice import ranked
from fedcli.sweeps.plans import Plan, planned_runs
from fedcli.sweeps.points import Point
from fedcli.sweeps.study import Halving, Study


def rungs(halving: Halving, rounds: int) -> list[int]:
    """Returns the rounds of each rung: min_rounds * eta^k below `rounds`, then `rounds`."""
    rounds_of_rungs = []
    at = halving.min_rounds
    while at < rounds:
        rounds_of_rungs.append(at)
        at *= halving.eta
    return [*rounds_of_rungs, rounds]


def halving_plan(study: Study, points: Sequence[Point]) -> Plan:
    """Yields the runs of each rung. The best 1 / eta of its points, at least one, continue.

    Among equal points, smaller numbers come first. Points that diverged or failed are last.
    """
    assert study.halving is not None
    left = list(points)
    all_rungs = rungs(study.halving, points[0].configs[0].rounds)
    for rung, rounds in enumerate(all_rungs):
        lines = yield planned_runs(left, rounds)
        if rung + 1 < len(all_rungs):
            best = ranked(study.select, lines)[: max(1, len(left) // study.halving.eta)]
            left = [point for point in left if point.number in best]
