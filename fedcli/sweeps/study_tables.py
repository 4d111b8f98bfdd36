"""The tables of a study, from its trials.jsonl: the best of each case, and all points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcli.reports import group_tables, text
from fedcli.reports.groups import (
    Column,
    Groups,
    Member,
    group,
    parse_column,
    remedy_without,
    usual_columns,
)
from fedcli.settings.vocabulary import HELD_OUT, VALIDATION
from fedcli.sweeps.study import Study
from fedcli.sweeps.trials import DIVERGED, FAILED

CASE = "case"
MAX_ROWS = 40  # largest number of rows of the table of all points on the screen


def members_of(lines: Iterable[Mapping[str, Any]], folder: Path = Path()) -> list[Member]:
    """Returns the trials of a study as members of groups; for halving, only its longest runs."""
    last: dict[tuple[int, int], Mapping[str, Any]] = {}
    for line in lines:
        last[line["point"], line["seed"]] = line
    most = max((line["rounds"] for line in last.values()), default=0)
    is_halved = len({line["rounds"] for line in last.values()}) > 1 and not any(
        "rounds" in line["options"] for line in last.values()
    )
    final_lines = [line for line in last.values() if not is_halved or line["rounds"] == most]
    return [_member(line, folder) for line in final_lines]


def selection(study: Study, members: Sequence[Member]) -> Column | None:
    """Returns the column by which a study chooses; None if a run lacks the split for the choice."""
    split = study.select.on
    done = [each for each in members if not each.has_failed]
    if not all(split in each.results for each in done):
        return None
    return parse_column(f"{split}.{study.select.metric}")


def columns_of(study: Study, members: Sequence[Member]) -> tuple[Column, ...]:
    """Returns the usual columns, with the metric of the study in place of accuracy."""
    first, second = usual_columns(members)
    if study.select.metric in ("accuracy", "loss"):
        return first, second
    return parse_column(f"{first.split}.{study.select.metric}"), first, second


def groups_of(study: Study, members: Sequence[Member]) -> list[Groups]:
    """Returns the usual tables: one with the best point of each case, and one with all points.

    The first table is left out if no case has several points, or if there is no split to choose on.
    """
    select = selection(study, members)
    columns = columns_of(study, members)
    names = list(dict.fromkeys(name for each in members for name in each.options))
    others = [name for name in names if name != CASE]
    tables = []
    has_choice = len({each.setting for each in members}) > len(
        {each.options.get(CASE) for each in members}
    )
    if select is not None and CASE in names and has_choice:
        tables.append(group(members, by=[CASE], best=others, columns=columns, select=select))
    tables.append(group(members, by=names, columns=columns, select=select))
    return tables


def points_csv(study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the content of table.csv: all points, as plain numbers."""
    members = members_of(lines)
    return text.to_csv(group_tables.to_csv_table(groups_of(study, members)[-1]))


def note_of_selection(study: Study, members: Sequence[Member]) -> str | None:
    """Returns a note if no point was chosen, or if data other than validation data decided."""
    on = study.select.on
    if selection(study, members) is None:
        return f"no best point was chosen, because the runs have no {on} data; {remedy_without(on)}"
    if on in HELD_OUT:
        return f"the best points were chosen by the {on} data, so their {on} results are optimistic"
    return None if on == VALIDATION else f"the best points were chosen by the {on} data"


def _member(line: Mapping[str, Any], folder: Path) -> Member:
    case = {CASE: line["case"]} if "case" in line else {}
    results = {
        split: {name: value for name, value in metrics.items() if name != "round"}
        for split, metrics in line["result"].items()
    }
    return Member(
        str(line["point"]),
        {**case, **line["options"]},
        (line["seed"],),
        results,
        line["state"] == DIVERGED,
        line["state"] == FAILED,
        folder / line["run"],
    )


def flat_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of trials.jsonl without nesting: `client_lr`, `test.accuracy`, `state`, ..."""
    flat = {name: value for name, value in line.items() if name not in ("options", "result")}
    flat.update(line["options"])
    for split, metrics in line["result"].items():
        flat.update((f"{split}.{name}", value) for name, value in metrics.items())
    return flat
