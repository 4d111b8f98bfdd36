"""Curves of groups of runs: the mean over seeds by round, and a band around it."""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, plural
from fedcli.reports.comparison import Estimate, estimate
from fedcli.reports.group_tables import INTERVAL, STD, about_band, title_of
from fedcli.reports.groups import Groups, Member, Row, group, members_of
from fedcli.runs.record import ONLINE, RunRecord, Series
from fedcli.settings.vocabulary import MEASURES

Band = list[tuple[int, float, float]]

MOST_RUNS = 7  # number of colours; for more runs, the seeds of a configuration share one curve


@dataclass(frozen=True, eq=False)
class GroupCurves:
    """The curves of one metric.

    Attributes:
        series: The mean by round, by the name of the row.
        bands: Rounds with the lower and upper end of the band, by the name of the row; empty for a
            single seed.
    """

    series: dict[str, Series]
    bands: dict[str, Band]


@dataclass(frozen=True, eq=False)
class GroupFigure:
    """The curves of groups of runs, with texts.

    Attributes:
        title: Says what the groups are, and on which split they were evaluated.
        note: Explains the curves and bands.
        curves: The curves of loss and of accuracy, by metric.
    """

    title: str
    note: str
    curves: dict[str, GroupCurves]


def of_many(runs: Sequence[RunRecord]) -> GroupFigure | None:
    """Returns the curves of more than `MOST_RUNS` runs, grouped by everything but their seeds.

    Returns:
        None if there are at most `MOST_RUNS` runs, if no two runs differ only in their seeds, or if
        two runs have the same options, because one of the two would then be missing.
    """
    if len(runs) <= MOST_RUNS:
        return None
    try:
        groups = group(members_of(runs))
    except ConfigError:  # they differ in more than their options, such as their data
        return None
    num_drawn = sum(len(row.members) for row in groups.rows)
    if len(groups.rows) == len(runs) or num_drawn < len(runs):
        return None
    return figure_of(groups, INTERVAL)


def figure_of(groups: Groups, spread: str) -> GroupFigure:
    """Returns the curves of loss and accuracy of groups.

    The split is that of the first column if all runs were evaluated on it more than once;
    otherwise the training metrics are drawn. Runs that diverged or failed are left out.

    Args:
        groups: The groups.
        spread: The meaning of the band: one of `group_tables.SPREADS`.
    """
    rows = {row.name: _with_results(row) for row in groups.rows}
    members = [each for members in rows.values() for each in members]
    split = groups.columns[0].split or ONLINE
    if any(len(each.record.series(split, "loss")) < 2 for each in members):
        split = ONLINE
    note = about_band(spread)
    num_left_out = sum(row.num_diverged + row.num_failed for row in groups.rows)
    if num_left_out:
        note += f"; without {plural(num_left_out, 'run')} that diverged or failed"
    curves = {measure: _curves(rows, split, measure, spread) for measure in MEASURES}
    return GroupFigure(f"{title_of(groups)}: {split}", note, curves)


def _with_results(row: Row) -> list[Member]:
    return [each for each in row.members if not (each.has_diverged or each.has_failed)]


def _curves(rows: dict[str, list[Member]], split: str, measure: str, spread: str) -> GroupCurves:
    series: dict[str, Series] = {}
    bands: dict[str, Band] = {}
    for name, members in rows.items():
        means = _means([dict(each.record.series(split, measure)) for each in members])
        series[name] = [(round_num, each.mean) for round_num, each in means]
        widths = [(round_num, each.mean, _width(each, spread)) for round_num, each in means]
        bands[name] = [
            (round_num, mean - width, mean + width) for round_num, mean, width in widths if width
        ]
    return GroupCurves(series, bands)


def _means(runs: Sequence[dict[int, float]]) -> list[tuple[int, Estimate]]:
    """The mean over runs in each round that all of them have."""
    if not runs:
        return []
    rounds = sorted(set.intersection(*map(set, runs)))
    estimates = ((round_num, estimate([run[round_num] for run in runs])) for round_num in rounds)
    return [(round_num, each) for round_num, each in estimates if each is not None]


def _width(estimate: Estimate, spread: str) -> float:
    return {INTERVAL: estimate.half_width, STD: estimate.std}.get(spread) or 0.0
