"""Returns the plan of a study: all runs at once, successive halving, or a search."""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.sweeps.halving import halving_plan
from fedcli.sweeps.plans import Plan, first_points, planned_runs
from fedcli.sweeps.points import Point
from fedcli.sweeps.study import Study


def plan_of(study: Study) -> Plan:
    """Returns the plan of a study.

    Raises:
        ConfigError: A point is not allowed, or the search needs Optuna, which is not installed.
    """
    if study.search is not None:
        from fedcli.sweeps.search import search_plan  # lazy: few studies search

        return search_plan(study)
    points = first_points(study)
    if study.halving is not None:
        return halving_plan(study, points)
    return _all_at_once(points)


def _all_at_once(points: Sequence[Point]) -> Plan:
    yield planned_runs(points)
