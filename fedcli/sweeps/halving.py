"""Successive halving: after each rung (a number of rounds) only the best points continue.

Jamieson and Talwalkar 2016, arXiv 1502.07943. All runs of a rung end before the next rung begins,
so the choice does not depend on which run ends first. A point that goes on is a resumed run, whose
bytes are those of a run that had all its rounds from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.sweeps.choice import ranked
from fedcli.sweeps.plans import Plan, wanted
from fedcli.sweeps.points import Point
from fedcli.sweeps.study import Halving, Study


def rungs(halving: Halving, rounds: int) -> list[int]:
    """Returns the rounds of each rung: min_rounds * eta^k below `rounds`, then `rounds`."""
    found = []
    at = halving.min_rounds
    while at < rounds:
        found.append(at)
        at *= halving.eta
    return [*found, rounds]


def halving_plan(study: Study, points: Sequence[Point]) -> Plan:
    """Yields the runs of each rung. The best 1 / eta of its points, at least one, go on.

    Equal points go on in the order of their numbers. Points that diverged or failed are last.
    """
    assert study.halving is not None
    left = list(points)
    all_rungs = rungs(study.halving, points[0].configs[0].rounds)
    for rung, rounds in enumerate(all_rungs):
        lines = yield wanted(left, rounds)
        if rung + 1 < len(all_rungs):
            best = ranked(study.select, lines)[: max(1, len(left) // study.halving.eta)]
            left = [point for point in left if point.number in best]
