"""Implements `fedcli report` for studies, folders of runs, and rows by --by and --best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedcli.cli.screen.output import one_line
from fedcli.errors import ConfigError, RunError
from fedcli.files import text_bytes
from fedcli.outputs import write_output
from fedcli.reports import group_tables, groups, text
from fedcli.reports.groups import Column, Groups, Member
from fedcli.runs import listing
from fedcli.runs.record import load_run
from fedcli.settings.vocabulary import ACCURACY, VALIDATION
from fedcli.sweeps import study_folder, study_tables
from fedcli.sweeps.code import resume_command
from fedcli.sweeps.study import Study, read_file
from fedcli.sweeps.trials import read_trials

if TYPE_CHECKING:
    from fedcli.reports.group_curves import GroupFigure
    from fedcli.reports.plots import PlotOptions


class Shape(NamedTuple):
    """The options for rows and columns; None or empty: not given.

    Attributes:
        by: Value of --by.
        best: Value of --best.
        columns: Value of --columns.
        metric: Value of --select.
        split: Value of --select-on.
    """

    by: str | None
    best: str | None
    columns: str | None
    metric: str | None
    split: str | None


class Reported(NamedTuple):
    """The tables of a report, the most important first.

    Attributes:
        tables: The tables.
        notes: Lines about all of them.
        members: All runs.
    """

    tables: list[Groups]
    notes: list[str]
    members: list[Member]


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Returns the given runs, and the runs in given folders.

    Raises:
        RunError: A path is neither a run nor a folder with runs.
    """
    found: list[Path] = []
    for path in paths:
        runs = listing.find_runs(path) if path.is_dir() else [path]
        if not runs:
            raise RunError(
                f"{path} is not a run and contains none; give a run, or a folder of runs"
            )
        found += runs
    return list(dict.fromkeys(found))


def make_report(paths: Sequence[Path], shape: Shape) -> Reported:
    """Returns the tables of some runs or of a study.

    Raises:
        ConfigError: A name is unknown, or the runs of a row differ in options other than those of
            --by and --best.
        RunError: There is no run, or a file is damaged.
    """
    if len(paths) == 1 and study_folder.is_study(paths[0]):
        return _of_study(paths[0], shape)
    members = groups.members_of(map(load_run, expanded(paths)))
    return Reported([_shaped(members, shape, groups.usual_select(members))], [], members)


def _of_study(path: Path, shape: Shape) -> Reported:
    study = read_file(path / study_folder.STUDY)
    members = study_tables.members_of(read_trials(path), path)
    if not members:
        raise RunError(
            f"the study {path} has no finished run yet; {resume_command(path, study)} continues it"
        )
    if shape == Shape(None, None, None, None, None):
        note = study_tables.note_of_selection(study, members)
        tables = study_tables.groups_of(study, members)
        return Reported(tables, [note] if note else [], members)
    select = study_tables.selection(study, members)
    return Reported([_shaped(members, shape, select, study)], [], members)


def _shaped(
    members: Sequence[Member], shape: Shape, select: Column | None, study: Study | None = None
) -> Groups:
    if shape.metric is not None or shape.split is not None:
        usual = VALIDATION if select is None else select.split
        select = groups.choosing_column(
            ACCURACY if shape.metric is None else shape.metric,
            usual if shape.split is None else shape.split,
        )
    columns = [groups.parse_column(each) for each in _names("--columns", shape.columns)]
    if not columns and study is not None:
        columns = list(study_tables.columns_of(study, members))
    return groups.group(
        members,
        by=None if shape.by is None else _options("--by", shape.by),
        best=_options("--best", shape.best),
        columns=columns,
        select=select,
    )


def show(reported: Reported, spread: str) -> None:
    """Prints the tables on the screen."""
    from fedcli.cli.screen.group_screen import show_groups
    from fedcli.cli.screen.text_screen import open_text_screen

    show_groups(open_text_screen(), reported.tables, spread, reported.notes)


def print_text(reported: Reported, text_format: str, spread: str) -> None:
    """Prints the tables as Markdown or LaTeX, or one table of plain numbers as CSV."""
    if text_format == "csv":
        table = group_tables.to_csv_table(reported.tables[-1])
        rows = [list(map(one_line, row)) for row in table.rows]
        print(text.to_csv(replace(table, rows=rows)), end="")
        return
    origin = _made_by(reported.members)
    tables = [group_tables.to_table(each, spread) for each in reported.tables]
    labels = ["tab:best", "tab:points"] if len(tables) > 1 else ["tab:runs"]
    for index, (table, label) in enumerate(zip(tables, labels, strict=True)):
        notes = dict.fromkeys([*reported.notes, *group_tables.notes_on(reported.tables[index])])
        title = "; ".join([table.title, *notes, *origin])
        printable = replace(
            table,
            title=one_line(title),
            label=label,
            rows=[list(map(one_line, row)) for row in table.rows],
        )
        print("\n" * bool(index) + text.FORMATS[text_format](printable), end="")


def print_as_json(reported: Reported) -> None:
    """Prints the rows of the last table with all numbers."""
    from fedcli.cli.screen.output import print_json

    print_json({"rows": group_tables.to_rows(reported.tables[-1])})


def write_files(
    reported: Reported,
    spread: str,
    plot_as: tuple[Path, PlotOptions] | None,
    heat_map: Path | None,
    csv: Path | None,
) -> None:
    """Writes the figures and the CSV file of every round.

    Raises:
        ConfigError: The rows do not have two options for a heat map, or matplotlib is missing.
        RunError: A file cannot be written.
    """
    if plot_as is not None:
        from fedcli.reports.group_curves import figure_of

        plot(figure_of(reported.tables[0], spread), *plot_as)
    if heat_map is not None:
        from fedcli.inspection import figures

        figures.require()
        from fedcli.reports.heat_map import write_heat_map

        write_heat_map(heat_map, reported.tables[-1])
    if csv is not None:
        from fedcli.reports.tables import rounds_csv

        records = [each.record for each in reported.members if not each.has_failed]
        write_output(csv, text_bytes(text.to_csv(rounds_csv(records))))


def plot(figure: GroupFigure, path: Path, options: PlotOptions) -> None:
    """Draws the curves of groups of runs with their bands."""
    from fedcli.inspection import figures

    figures.require()
    from fedcli.reports import plots

    plots.write_curves(
        path,
        figure.title,
        {measure: each.series for measure, each in figure.curves.items()},
        figure.note,
        options,
        {measure: each.bands for measure, each in figure.curves.items()},
    )


def _made_by(members: Sequence[Member]) -> list[str]:
    """The version and the instruction set of the runs, each only if all runs have the same."""
    origins = [each.record.provenance for each in members if not each.has_failed]
    common = {}
    for name in ("fedcli", "isa"):
        values = {str(origin.get(name, "")) for origin in origins}
        if len(values) == 1 and "" not in values:
            common[name] = values.pop()
    return [f"fedcli {text}" if name == "fedcli" else text for name, text in common.items()]


def _names(flag: str, text_given: str | None) -> list[str]:
    """The names in the value of an option, at least one; [] if the option is not given."""
    names = [each.strip() for each in (text_given or "").split(",") if each.strip()]
    if text_given is not None and not names:
        raise ConfigError(
            f"{flag} {text_given!r} contains no name; give a name, or leave the option out"
        )
    return names


def _options(flag: str, text_given: str | None) -> list[str]:
    """Dotted names of options, from a text that may use names as on the command line."""
    names = [each.removeprefix("--").replace("-", "_") for each in _names(flag, text_given)]
    if len(set(names)) < len(names):
        raise ConfigError(f"{flag} {text_given}: an option is given twice; give it once")
    return names
