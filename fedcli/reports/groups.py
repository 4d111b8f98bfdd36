"""Groups of runs as the rows of one table: `report --by --best --columns`.

Runs that differ only in the seeds of the run and of the partition have the same configuration. Each
combination of values of the options `by` is a row. If a row has several configurations, it shows
the best one by validation data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.reports import comparison
from fedcli.reports.comparison import Estimate, estimate
from fedcli.reports.significance import holm, sign_flip_p
from fedcli.reports.verdict import has_diverged
from fedcli.runs.record import ONLINE, RunRecord, load_run
from fedcli.settings.options import did_you_mean
from fedcli.settings.tables.metrics import SELECTION_METRICS, more_is_better
from fedcli.settings.vocabulary import ACCURACY, HELD_OUT, SPLITS, VALIDATION

SECONDS = "seconds"
_ROUNDS = "rounds@"
_SPLITS = tuple(dict.fromkeys((ONLINE, *SPLITS, *HELD_OUT)))


@dataclass(frozen=True)
class Column:
    """A column of results: a metric of a split, rounds to a target, or seconds.

    Attributes:
        name: The name on the command line, such as `test.accuracy`, `rounds@0.9`, `seconds`.
        split: The split of a metric; empty for other columns.
        metric: The name of a metric; empty for other columns.
        target: The target accuracy of `rounds@TARGET`; None for other columns.
    """

    name: str
    split: str = ""
    metric: str = ""
    target: float | None = None

    @property
    def is_more_better(self) -> bool:
        """Whether larger values are better."""
        return bool(self.metric) and more_is_better(self.metric)


@dataclass(frozen=True, eq=False)
class Member:
    """One run of a group.

    Attributes:
        setting: A text that is equal for runs that differ only in their seeds.
        options: Its options by dotted name; those that have no effect are left out.
        repeat: Its seeds. Runs of two rows with the same seeds form a pair.
        results: The last values by split and metric; a value that is not finite is None.
        has_diverged: Whether its model diverged.
        has_failed: Whether it has no results.
        path: Its folder.
        loaded: Its record, if it has been loaded already.
    """

    setting: str
    options: Mapping[str, Any]
    repeat: tuple[Any, ...]
    results: Mapping[str, Mapping[str, float | None]]
    has_diverged: bool
    has_failed: bool
    path: Path
    loaded: RunRecord | None = None

    @cached_property
    def record(self) -> RunRecord:
        """The files of the run."""
        return load_run(self.path) if self.loaded is None else self.loaded

    def value(self, column: Column) -> float | None:
        """Returns its value in a column; None if it has no value, failed or diverged."""
        if self.has_failed or self.has_diverged:
            return None
        if column.target is not None:
            return self.record.rounds_to(column.target)
        if column.name == SECONDS:
            return sum(self.record.seconds().values())
        return self.results.get(column.split, {}).get(column.metric)


@dataclass(frozen=True)
class Difference:
    """The difference between a row and the first row, over the seeds that both have.

    Attributes:
        estimate: The mean of the differences with its confidence interval.
        p: Two-sided p-value of the sign-flip test; see `sign_flip_p`.
        p_holm: The p-value adjusted for the number of rows by Holm's method.
    """

    estimate: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True, eq=False)
class Row:
    """One row: a configuration, with its runs.

    Attributes:
        by: The values of the options that define the row.
        best: The values of the options that were chosen.
        members: Its runs, the first of each seed.
        tried: For each option in `best`, the values that were compared.
        num_candidates: Number of configurations among which this one was chosen.
        cells: The mean over the runs by column; None if no run has a value.
        selected: The mean in the column `Groups.select`; None without it, or without a value.
        difference: The difference to the first row; None for the first row itself, and if fewer
            than two seeds are in both rows.
    """

    by: dict[str, Any]
    best: dict[str, Any]
    tried: dict[str, list[Any]]
    members: list[Member]
    num_candidates: int
    cells: dict[str, Estimate | None]
    selected: Estimate | None
    difference: Difference | None = None

    @property
    def num_diverged(self) -> int:
        """Number of its runs that diverged."""
        return sum(each.has_diverged for each in self.members)

    @property
    def num_failed(self) -> int:
        """Number of its runs that failed."""
        return sum(each.has_failed for each in self.members)

    @property
    def name(self) -> str:
        """Its options in words."""
        parts = [
            value_text(value) if name in comparison.CHIEF else f"{name}={value_text(value)}"
            for name, value in {**self.by, **self.best}.items()
        ]
        return ", ".join(parts) or "all runs"


@dataclass(frozen=True, eq=False)
class Groups:
    """The rows of a table, the best first.

    Attributes:
        by: The options whose values define the rows.
        best: The options whose best values were chosen.
        columns: The columns of results.
        select: The column by which configurations are chosen and rows are sorted; None if there is
            none. Rows are then sorted by the first of `columns`.
        rows: The rows.
    """

    by: tuple[str, ...]
    best: tuple[str, ...]
    columns: tuple[Column, ...]
    select: Column | None
    rows: list[Row]


def value_text(value: Any) -> str:
    """Returns the value of an option as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    return "-" if value is None else str(value)


def parse_column(text: str) -> Column:
    """Parses the name of a column.

    Raises:
        ConfigError: There is no such column.
    """
    name = text.strip()
    if name == SECONDS:
        return Column(name)
    if name.startswith(_ROUNDS):
        try:
            target = float(name.removeprefix(_ROUNDS))
        except ValueError:
            target = -1.0
        if not 0 < target <= 1:
            raise ConfigError(f"--columns {name}: give an accuracy from 0 to 1, as in rounds@0.9")
        return Column(name, target=target)
    split, dot, metric = name.partition(".")
    if not dot or split not in _SPLITS or metric not in SELECTION_METRICS:
        hint = did_you_mean(metric, SELECTION_METRICS) if split in _SPLITS else ""
        raise ConfigError(
            f"--columns {name}: give SPLIT.METRIC (test.accuracy, validation.loss), rounds@0.9 or "
            f"seconds{hint}"
        )
    return Column(name, split, metric)


def choosing_column(metric: str, split: str) -> Column:
    """Returns the column of --select METRIC and --select-on SPLIT.

    Raises:
        ConfigError: There is no such metric or split.
    """
    for flag, name, known in (
        ("--select", metric, SELECTION_METRICS),
        ("--select-on", split, _SPLITS),
    ):
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{flag} {name!r}: choose one of {', '.join(known)}{hint}")
    return Column(f"{split}.{metric}", split, metric)


def members_of(runs: Iterable[RunRecord]) -> list[Member]:
    """Returns runs as members of groups."""
    return [_member(run) for run in runs]


def usual_columns(members: Sequence[Member]) -> tuple[Column, ...]:
    """Returns accuracy and loss on the first split that all runs have: test, central and so on."""
    splits = (*HELD_OUT, VALIDATION, "train", ONLINE)
    succeeded = [each for each in members if not each.has_failed]
    split = next((each for each in splits if all(each in run.results for run in succeeded)), ONLINE)
    return tuple(parse_column(f"{split}.{metric}") for metric in (ACCURACY, "loss"))


def usual_select(members: Sequence[Member]) -> Column | None:
    """Returns validation accuracy if all runs have it, else None."""
    succeeded = [each for each in members if not each.has_failed]
    has_all = bool(succeeded) and all(VALIDATION in each.results for each in succeeded)
    return parse_column(f"{VALIDATION}.{ACCURACY}") if has_all else None


def remedy_without(split: str) -> str:
    """Returns what the user can do if runs lack the split by which the best is to be chosen."""
    if split == VALIDATION:
        return "train with --validation 0.1, or choose by test data with --select-on test"
    return (
        "train on data that have this split, or with --validation 0.1 and choose with --select-on "
        "validation"
    )


def group(
    members: Sequence[Member],
    *,
    by: Sequence[str] | None = None,
    best: Sequence[str] = (),
    columns: Sequence[Column] | None = None,
    select: Column | None = None,
) -> Groups:
    """Returns the rows of a table of runs.

    Args:
        members: The runs, at least one.
        by: Options whose values define the rows; None for all options that differ, except `best`
            and those that others determine, such as an algorithm's own options.
        best: Options for which each row shows the best values.
        columns: Columns of results; None for `usual_columns`.
        select: The column by which to choose; None for validation accuracy, if there is one.

    Raises:
        ConfigError: An option is unknown, runs of a row differ in further options, or there is no
            metric to choose by.
    """
    points = _by_setting(members)
    known = dict.fromkeys(name for each in members for name in each.options)
    differing = [name for name in known if _differs(name, points)]
    for name in (*(by or ()), *best):
        if name not in known:
            hint = did_you_mean(name, known) or f"; they differ in {', '.join(differing) or 'none'}"
            raise ConfigError(f"--by and --best: no run has the option '{name}'{hint}")
    if by is None:
        free = [name for name in differing if name not in best]
        by = comparison.essential(free, [each[0].options for each in points])
    columns = tuple(columns) if columns else usual_columns(members)
    select = select or usual_select(members)
    if best and not _has_any(members, select):
        split = VALIDATION if select is None else select.split
        raise ConfigError(
            f"--best {','.join(best)}: these runs have no {split} data to choose by; "
            f"{remedy_without(split)}"
        )
    rows = []
    for values, candidates in _by_values(points, by).items():
        _check_candidates(candidates, by, best, differing)
        chosen = candidates[0] if select is None else _choose(candidates, select)
        rows.append(
            _row(dict(zip(by, values, strict=True)), best, chosen, candidates, columns, select)
        )
    rows = _sorted(rows, select or columns[0])
    return Groups(tuple(by), tuple(best), columns, select, _with_differences(rows, columns[0]))


def _member(run: RunRecord) -> Member:
    results = {name: run.finals(name) for name in run.series_names}
    return Member(
        comparison.setting_key(run),
        comparison.options_with_effect(run),
        comparison.repeat_of(run),
        results,
        has_diverged(run),
        not run.metrics,
        run.path,
        run,
    )


def _by_setting(members: Iterable[Member]) -> list[list[Member]]:
    """Returns the runs of each configuration; of runs with the same seed, only the first."""
    by_setting: dict[str, dict[tuple[Any, ...], Member]] = {}
    for each in members:
        by_setting.setdefault(each.setting, {}).setdefault(each.repeat, each)
    return [list(runs.values()) for runs in by_setting.values()]


def _by_values(
    points: Iterable[list[Member]], by: Sequence[str]
) -> dict[tuple[Any, ...], list[list[Member]]]:
    """Returns the configurations of each row, by the values of the options `by`."""
    keys: dict[str, tuple[Any, ...]] = {}
    by_key: dict[str, list[list[Member]]] = {}
    for members in points:
        values = tuple(members[0].options.get(name) for name in by)
        keys[_key(values)] = values
        by_key.setdefault(_key(values), []).append(members)
    return {keys[key]: each for key, each in by_key.items()}


def _check_candidates(
    candidates: Sequence[Sequence[Member]],
    by: Sequence[str],
    best: Sequence[str],
    differing: Sequence[str],
) -> None:
    """Raises ConfigError if configurations of a row differ in options besides `by` and `best`."""
    seen = {_key([each[0].options.get(name) for name in best]) for each in candidates}
    if len(seen) == len(candidates):
        return
    others = [name for name in differing if name not in (*by, *best) and _differs(name, candidates)]
    if not others:
        raise ConfigError("some runs of one row differ in their data or code; give fewer runs")
    listed, them = ", ".join(others[:4]), "it" if len(others) == 1 else "them"
    raise ConfigError(
        f"some runs of one row differ in {listed}; add {them} to --by or --best, or give fewer runs"
    )


def _has_any(members: Sequence[Member], select: Column | None) -> bool:
    """Whether any run has a value to choose by. Runs that failed or diverged need none."""
    if select is None:
        return False
    good = [each for each in members if not each.has_failed and not each.has_diverged]
    return not good or any(each.value(select) is not None for each in good)


def _choose(candidates: Sequence[list[Member]], select: Column) -> list[Member]:
    """Returns the best configuration. Configurations with a failed or diverged run come last."""
    sign = -1.0 if select.is_more_better else 1.0

    def key(members: Sequence[Member]) -> tuple[bool, float]:
        known = [value for each in members if (value := each.value(select)) is not None]
        is_worse = len(known) < len(members)
        return is_worse, sign * math.fsum(known) / len(known) if known else 0.0

    return min(candidates, key=key)


def _row(
    by: dict[str, Any],
    best: Sequence[str],
    members: list[Member],
    candidates: Sequence[Sequence[Member]],
    columns: Sequence[Column],
    select: Column | None,
) -> Row:
    options = members[0].options
    cells = {column.name: _mean(members, column) for column in columns}
    chosen = {name: options.get(name) for name in best}
    selected = None if select is None else _mean(members, select)
    tried = {name: [each[0].options.get(name) for each in candidates] for name in best}
    return Row(by, chosen, tried, members, len(candidates), cells, selected)


def _mean(members: Iterable[Member], column: Column) -> Estimate | None:
    return estimate([value for each in members if (value := each.value(column)) is not None])


def _sorted(rows: list[Row], column: Column) -> list[Row]:
    """Returns the rows, the best first. Rows with a run without a value come last."""
    sign = -1.0 if column.is_more_better else 1.0

    def key(row: Row) -> tuple[bool, float]:
        mean = _mean(row.members, column)
        is_worse = mean is None or mean.count < len(row.members)
        return is_worse, 0.0 if mean is None else sign * mean.mean

    return sorted(rows, key=key)


def _with_differences(rows: list[Row], column: Column) -> list[Row]:
    """Returns the rows, each with its difference to the first row in one column."""
    if not rows:
        return rows
    first = {each.repeat: each.value(column) for each in rows[0].members}
    pairs = [
        [
            value - other
            for each in row.members
            if (value := each.value(column)) is not None
            and (other := first.get(each.repeat)) is not None
        ]
        for row in rows[1:]
    ]
    tested = [index for index, each in enumerate(pairs) if len(each) > 1]
    p_values = [sign_flip_p(pairs[index]) for index in tested]
    differences: dict[int, Difference] = {}
    for index, p, adjusted in zip(tested, p_values, holm(p_values), strict=True):
        mean = estimate(pairs[index])
        assert mean is not None
        differences[index] = Difference(mean, p, adjusted)
    return [
        rows[0],
        *(replace(row, difference=differences.get(at)) for at, row in enumerate(rows[1:])),
    ]


def _differs(name: str, points: Sequence[Sequence[Member]]) -> bool:
    return len({_key(each[0].options.get(name)) for each in points}) > 1


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
