"""Ranks the points of a study by their results over all seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedcli.settings.tables.metrics import more_is_better
from fedcli.sweeps.study import Select
from fedcli.sweeps.trials import DONE


def value_of(select: Select, line: Mapping[str, Any]) -> float | None:
    """Returns the metric by which a trial is ranked; None if it failed, diverged or lacks it."""
    if line["state"] != DONE:
        return None
    value = line["result"].get(select.on, {}).get(select.metric)
    return None if value is None else float(value)


def ranked(select: Select, lines: Iterable[Mapping[str, Any]]) -> list[int]:
    """Returns the numbers of the points, ranked by their means over seeds, the best first.

    A point comes last if one of its runs failed, diverged or lacks the metric. Among equal points,
    the one with the smaller number ranks higher.
    """
    values: dict[int, list[float | None]] = {}
    for line in lines:
        values.setdefault(line["point"], []).append(value_of(select, line))
    sign = -1.0 if more_is_better(select.metric) else 1.0

    def key(number: int) -> tuple[bool, float, int]:
        known = [value for value in values[number] if value is not None]
        is_worse = len(known) < len(values[number])
        return is_worse, 0.0 if is_worse else sign * math.fsum(known) / len(known), number

    return sorted(values, key=key)
