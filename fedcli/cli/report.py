"""`fedcli report`: summarises and compares runs, from their folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fedcli.cli import options as opt
from fedcli.cli.screen.output import Remarks, one_line
from fedcli.errors import ConfigError, DataError, RunError
from fedcli.reports.text import FORMATS
from fedcli.settings.vocabulary import ACCURACY

if TYPE_CHECKING:
    from fedcli.cli.screen.render import Screen
    from fedcli.reports.plots import PlotOptions
    from fedcli.reports.prediction_summary import PredictionSummary
    from fedcli.reports.text import Table
    from fedcli.runs.record import RunRecord


_LEGEND_COLUMNS = 44  # largest number of columns of a run's name


class PlotLook(NamedTuple):
    """The options of the figure of --plot: --plot-size, --plot-log, and --x for the x axis."""

    size: str | None
    log: str | None
    x: str = "round"


class _Format(click.Choice[str]):
    """A text format. JSON has its own option."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click. The error for `json` points to --json."""
        if value == "json":
            self.fail(f"--json prints all values as JSON; --format takes {', '.join(FORMATS)}")
        return super().convert(value, param, ctx)


class _Accuracy(click.FloatRange):
    """A number in a range. Click's own type accepts NaN, which is neither below nor above."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See click."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}", param, ctx)
        return number


@click.command(cls=opt.SectionCommand)
@click.argument("runs", nargs=-1, required=True, type=opt.RunFolder(), metavar="RUN...")
@opt.option(
    "--config-diff",
    "other",
    help="Show only the differences in options, versions and data between RUN and this run.",
    section=opt.PICTURES,
    type=opt.RunFolder(),
    metavar="OTHER",
)
@opt.option(
    "--target",
    "targets",
    help="Show the number of rounds to this accuracy. Repeatable. Default: 0.8, 0.9 and 0.95, as "
    "far as a run reaches them.",
    section=opt.PICTURES,
    type=_Accuracy(0.0, 1.0),
    multiple=True,
    metavar="X",
)
@opt.option(
    "--format",
    "text_format",
    help="Print the tables as text for other programs.",
    section=opt.PICTURES,
    type=_Format(tuple(FORMATS)),
)
@opt.option(
    "--csv",
    "csv_file",
    help="Write every metric of every round to this file.",
    section=opt.PICTURES,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.option(
    "--clients-csv",
    "clients_csv_file",
    help="Write a row for each client and round to this file. Only for runs with --record-clients.",
    section=opt.PICTURES,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.option(
    "--plot",
    "plot_file",
    help="Draw the curves into this file, .png, .svg or .pdf. If there are more than 7 runs, "
    "runs that differ only in their seeds become one curve, their mean, with a band.",
    section=opt.PICTURES,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.option(
    "--x",
    "x_axis",
    help="The x axis of the curves: rounds, the megabytes that clients received and sent so far, "
    "or the megabytes that they sent.  [default: round]",
    section=opt.PICTURES,
    type=click.Choice(("round", "megabytes", "megabytes-up")),
    default="round",
)
@opt.option(
    "--plot-size",
    help="Width and height of the figure of --plot in inches, such as 6.5x3. Default: as large as "
    "needed.",
    section=opt.PICTURES,
    metavar="WxH",
)
@opt.option(
    "--plot-log",
    help="Logarithmic axes of the figure of --plot: x (rounds or megabytes), y (losses), xy or "
    "none. Default: y if one curve would flatten all others.",
    section=opt.PICTURES,
    type=click.Choice(("x", "y", "xy", "none")),
)
@opt.option(
    "--by",
    help="Options whose values define the rows of a table, as in algorithm,client_lr. Runs that "
    "differ only in their seeds are one row. Default: the options that differ.",
    section=opt.PICTURES,
    metavar="K,K",
)
@opt.option(
    "--best",
    help="Options for which each row shows only the best values, chosen by validation accuracy.",
    section=opt.PICTURES,
    metavar="K,K",
)
@opt.option(
    "--columns",
    help="Columns of results: SPLIT.METRIC, rounds@ACCURACY, seconds. Default: accuracy and loss "
    "on test data.",
    section=opt.PICTURES,
    metavar="C,C",
)
@opt.option(
    "--select",
    "metric",
    help="Metric by which rows are chosen and sorted.  [default: accuracy]",
    section=opt.PICTURES,
    metavar="METRIC",
)
@opt.option(
    "--select-on",
    "split",
    help="Split whose metric is used; a note appears if it is not the validation split.",
    section=opt.PICTURES,
    metavar="SPLIT",
)
@opt.option(
    "--spread",
    help="The number after a mean over seeds, and the band around curves: half the width of the "
    "95 % interval, the standard deviation, or nothing.",
    section=opt.PICTURES,
    type=click.Choice(("interval", "std", "none")),
)
@opt.option(
    "--heat-map",
    "heat_map_file",
    help="Draw a heat map of the first column of results over the two options of --by into this "
    "file.",
    section=opt.PICTURES,
    type=click.Path(path_type=Path),
    metavar="FILE",
)
@opt.option(
    "--html",
    "html_file",
    help="Write a self-contained HTML page. For a single run its data are read, to show clients, "
    "confusion matrix and examples.",
    section=opt.PICTURES,
    type=opt.OutputFile(),
    metavar="FILE",
)
@opt.output_options
def report(
    *,
    runs: tuple[Path, ...],
    other: Path | None,
    targets: tuple[float, ...],
    text_format: str | None,
    x_axis: str,
    plot_size: str | None,
    plot_log: str | None,
    by: str | None,
    best: str | None,
    columns: str | None,
    metric: str | None,
    split: str | None,
    spread: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **files: Path | None,
) -> None:
    """Summarise RUN, or compare several runs, a folder of runs, or a study.

    For one run: its options, curves, closing evaluation, the variation over clients, and the time
    of each phase. For several runs: results side by side, the options that differ, the number of
    rounds to a target accuracy, and, for runs that differ only in their seeds, means with 95 %
    confidence intervals. For a study of fedcli sweep, or with --by, --best and --columns: one table
    of means over seeds, the best first.

    \b
    Examples:
      fedcli report runs/first
      fedcli report runs/momentum-* --target 0.9
      fedcli report runs/a runs/b --format latex
      fedcli report runs/a --html a.html --plot a.svg
      fedcli report sweep --by algorithm --best client_lr --columns test.accuracy,rounds@0.9
      fedcli report sweep --by algorithm --best client_lr --plot figure.pdf --plot-size 6.5x3
      fedcli report runs/uniform runs/top-k --x megabytes-up
      fedcli report runs/a --config-diff runs/b
    """  # noqa: D301 - \b keeps click from wrapping
    remarks = opt.remarks_for(quiet=quiet, verbose=verbose)
    if as_json and text_format is not None:
        raise click.UsageError(
            "--json and --format contradict each other", click.get_current_context()
        )
    if other is not None:
        _check_writes_nothing(targets, files)
        _show_diff(runs, other, text_format, remarks, as_json=as_json)
        return
    look = PlotLook(plot_size, plot_log, x_axis)
    if files["plot_file"] is None and (plot_size or plot_log):
        raise click.UsageError(
            "--plot-size and --plot-log need --plot FILE; add it", click.get_current_context()
        )
    shape = (by, best, columns, metric, split)
    given = (*shape, spread, files["heat_map_file"])
    if any(each is not None for each in given) or _is_study(runs):
        _report_groups(
            runs, shape, spread or "interval", text_format, files, look, remarks, as_json=as_json
        )
        return
    from fedcli.cli.group_report import expanded
    from fedcli.reports import comparison
    from fedcli.reports import tables as report_tables
    from fedcli.runs import record as run_record

    records = [run_record.load_run(path) for path in expanded(runs)]
    usual = comparison.useful_targets(records)  # reads all files, before any is written
    wanted = sorted(set(targets)) or usual
    notes = run_record.notes_of_changed_data(records)
    for note in notes:
        remarks.note(note)
    _write_files(records, wanted, files, look, notes, remarks)
    if as_json:
        from fedcli.cli.screen.output import print_json

        print_json(report_tables.as_json(records, wanted))
    elif text_format is not None:
        _print_text(_tables_of(records, targets, wanted, text_format), text_format)
    else:
        _show(records, targets, wanted, x_axis)
    _say_written(files, remarks, on_screen=not as_json and text_format is None)


def _say_written(files: Mapping[str, Path | None], remarks: Remarks, *, on_screen: bool) -> None:
    """Prints a line for each written file; only with -v if another program reads the output."""
    for file in files.values():
        if file is not None and on_screen:
            click.echo(f"Wrote {one_line(str(file))}")
        elif file is not None:
            remarks.detail(f"wrote {file}")


def _show(
    records: Sequence[RunRecord], targets: Sequence[float], wanted: Sequence[float], x_axis: str
) -> None:
    """Prints curves and tables on the screen. Of many runs, it prints those that are the best."""
    from fedcli.cli.screen.group_screen import MAX_ROWS
    from fedcli.cli.screen.render import Screen
    from fedcli.reports import tables as report_tables

    screen = Screen()
    if len(records) == 1:
        screen.prose(report_tables.summary(records[0]))
    if len(records) > MAX_ROWS:
        records = sorted(records, key=_accuracy, reverse=True)
        screen.line(f"{len(records):,} runs, the highest accuracy first", "bold")
    _show_curves(screen, records, x_axis)
    for table in _tables_of(records, targets, wanted, None):
        screen.title(table.title)
        screen.table(table.headers, table.rows[:MAX_ROWS], left=table.num_texts)
        if len(table.rows) > MAX_ROWS:
            of_all = f"The first {MAX_ROWS} of {len(table.rows):,} rows"
            screen.line(f"{of_all}; --format markdown prints all", "dim")


def _accuracy(run: RunRecord) -> float:
    """The last accuracy by which a run is judged; -1 if there is none."""
    accuracy = run.final(run.judged_by, ACCURACY)
    return -1.0 if accuracy is None else accuracy


def _tables_of(
    records: Sequence[RunRecord],
    targets: Sequence[float],
    wanted: Sequence[float],
    text_format: str | None,
) -> list[Table]:
    """The tables of one run or several. For several runs as CSV, one table of plain numbers."""
    from fedcli.reports import tables as report_tables

    if len(records) > 1:
        if text_format == "csv":
            return [report_tables.runs_csv(records, wanted)]
        return report_tables.of_several(records, wanted)
    tables = report_tables.of_one(records[0])
    reached = report_tables.rounds_to_target(records, wanted) if targets else None
    return [*tables, reached] if reached else tables


def _is_study(paths: Sequence[Path]) -> bool:
    """Whether one folder is given, and it is that of a study."""
    from fedcli.sweeps.study_folder import is_study

    return len(paths) == 1 and is_study(paths[0])


def _report_groups(
    runs: Sequence[Path],
    shape: tuple[str | None, ...],
    spread: str,
    text_format: str | None,
    files: dict[str, Path | None],
    look: PlotLook,
    remarks: Remarks,
    *,
    as_json: bool,
) -> None:
    """Prints and draws rows of means over seeds."""
    from fedcli.cli import group_report

    given = [name for name in ("html_file", "clients_csv_file") if files[name] is not None]
    for name in [*given, *(["x"] if look.x != "round" else [])]:
        flag = "--" + name.removesuffix("_file").replace("_", "-")
        raise click.UsageError(
            f"{flag} is for single runs; leave it out for a study, and beside --by, --best, "
            "--columns, --select, --select-on, --spread and --heat-map",
            click.get_current_context(),
        )
    plot, heat_map, csv = (files[name] for name in ("plot_file", "heat_map_file", "csv_file"))
    opt.check_outputs(plot, heat_map, csv)
    reported = group_report.make_report(runs, group_report.Shape(*shape))
    drawn = None if plot is None else (plot, _plot_options(look))
    group_report.write_files(reported, spread, drawn, heat_map, csv)
    if as_json:
        group_report.print_as_json(reported)
    elif text_format is not None:
        group_report.print_text(reported, text_format, spread)
    else:
        group_report.show(reported, spread)
    _say_written(files, remarks, on_screen=not as_json and text_format is None)


def _plot_options(look: PlotLook) -> PlotOptions:
    from fedcli.inspection import figures

    figures.require()
    from fedcli.reports import plots

    return plots.PlotOptions(
        None if look.size is None else plots.read_size(look.size),
        log_x="x" in (look.log or ""),
        log_y=None if look.log is None else "y" in look.log,
    )


def _check_writes_nothing(targets: Sequence[float], files: dict[str, Path | None]) -> None:
    """Refuses options that --config-diff does not use."""
    given = [name.removesuffix("_file") for name, file in files.items() if file is not None]
    given += ["target"] * bool(targets)
    for name in given:
        flag = "--" + name.replace("_", "-")
        raise click.UsageError(
            f"--config-diff and {flag} contradict each other", click.get_current_context()
        )


def _write_files(
    records: Sequence[RunRecord],
    targets: Sequence[float],
    files: dict[str, Path | None],
    look: PlotLook,
    notes: Sequence[str],
    remarks: Remarks,
) -> None:
    """Writes the requested files, after checking that all can be written."""
    from fedcli.files import check_is_no_input, text_bytes
    from fedcli.outputs import write_output
    from fedcli.reports import tables as report_tables
    from fedcli.reports import text
    from fedcli.runs.files import client_records

    names = ("csv", "clients_csv", "plot", "html")
    csv_file, clients_file, plot_file, html_file = (files[f"{each}_file"] for each in names)
    inputs = _inputs_of(records) if any(files.values()) else []
    opt.check_outputs(csv_file, clients_file, plot_file, html_file)
    taken: set[Path] = set()
    for file in (csv_file, clients_file, plot_file, html_file):
        if file is not None:
            check_is_no_input(file, inputs, str(file))
            if file.resolve() in taken:
                raise ConfigError(f"two options name the same file, {file}; choose another name")
            taken.add(file.resolve())
    if clients_file is not None:
        found = {str(record.path): client_records.load(record.path) for record in records}
        table = report_tables.clients_csv(found)
        write_output(clients_file, text_bytes(text.to_csv(table)))
    if plot_file is not None:
        _plot(records, plot_file, look)
    if csv_file is not None:
        write_output(csv_file, text_bytes(text.to_csv(report_tables.rounds_csv(records))))
    if html_file is not None:
        write_output(html_file, text_bytes(_page(records, targets, notes, remarks, look.x)))
    opt.note_links(remarks, csv_file, clients_file, plot_file, html_file)


def _inputs_of(records: Sequence[RunRecord]) -> list[Path]:
    """The files that a report reads."""
    from fedcli.runs.trained import files_of_run

    inputs = [each for record in records for each in files_of_run(record.path)]
    return inputs + [Path(each) for record in records for each in _data_of(record)]


def _data_of(record: RunRecord) -> list[str]:
    """The files, folders or names of a run's data."""
    return [str(record.options[name]) for name in ("data", "test_data") if name in record.options]


def _plot(records: Sequence[RunRecord], file: Path, look: PlotLook) -> None:
    from fedcli.inspection import figures

    figures.require()
    from fedcli.reports import group_curves, megabytes, plots
    from fedcli.runs.record import ABOUT_ONLINE, curves_of, is_online, measures_of

    grouped = group_curves.of_many(records) if look.x == megabytes.ROUND else None
    if grouped is not None:
        from fedcli.cli import group_report

        group_report.plot(grouped, file, _plot_options(look))
        return
    title = str(records[0].path) if len(records) == 1 else f"{len(records)} runs"
    along = megabytes.along(look.x)
    panels = {each: curves_of(records, each, along) for each in measures_of(records)}
    note = ABOUT_ONLINE if any(is_online(name) for each in panels.values() for name in each) else ""
    options = replace(_plot_options(look), across=megabytes.AXES[look.x])
    plots.write_curves(file, title, panels, note, options)


def _page(
    records: Sequence[RunRecord],
    targets: Sequence[float],
    notes: Sequence[str],
    remarks: Remarks,
    x_axis: str,
) -> str:
    """The HTML page. If the run's data cannot be read, the parts that need them are left out."""
    from fedcli.reports import html

    if len(records) > 1:
        return html.page(records, None, targets, notes, x_axis)
    try:
        predictions = _predict(records[0].path)
    except (DataError, RunError, ConfigError) as err:
        note = f"this page is without clients and examples: {err}"
        remarks.note(note)
        return html.page(records, None, targets, [*notes, note], x_axis)
    return html.page(records, predictions, targets, notes, x_axis)


def _predict(run: Path) -> PredictionSummary:
    """Computes predictions in a worker thread, so that Ctrl-C works at once."""
    from fedcli.cli.jobs.worker import run_stoppable
    from fedcli.core.native import CancelFlag
    from fedcli.reports.prediction_summary import summarize_predictions

    cancel: CancelFlag = CancelFlag()
    return run_stoppable(
        lambda: summarize_predictions(run, cancel), cancel=cancel, describe_stop=lambda: "stopped"
    )


def _show_diff(
    runs: tuple[Path, ...],
    other: Path,
    text_format: str | None,
    remarks: Remarks,
    *,
    as_json: bool,
) -> None:
    """Prints the differences between two runs."""
    from fedcli.reports import comparison
    from fedcli.reports import tables as report_tables
    from fedcli.runs import record as run_record

    if len(runs) != 1:
        raise ConfigError(f"--config-diff compares one run with another; {len(runs)} are given")
    records = [run_record.load_run(path) for path in (*runs, other)]
    for note in run_record.notes_of_changed_data(records):
        remarks.note(note)
    if as_json:
        from fedcli.cli.screen.output import print_json

        values: dict[str, Any] = {
            "runs": [str(record.path) for record in records],
            "options": comparison.differences(records),
            "provenance": comparison.provenance_differences(records),
        }
        print_json(values)
        return
    table = report_tables.what_differs(records)
    if table is not None and text_format is not None:
        _print_text([table], text_format)
        return
    from fedcli.cli.screen.render import Screen

    screen = Screen()
    if table is None:
        screen.line("The two runs do not differ in any option, version or data")
    else:
        screen.line(table.title, style="bold")
        screen.table(table.headers, table.rows, left=table.num_texts)


def _print_text(tables: Sequence[Table], text_format: str) -> None:
    """Prints tables with an empty line between them."""
    from fedcli.reports.text import Table

    printable = (
        Table(
            one_line(table.title),
            list(map(one_line, table.headers)),
            [list(map(one_line, row)) for row in table.rows],
            table.num_texts,
        )
        for table in tables
    )
    print("\n".join(FORMATS[text_format](table) for table in printable), end="")


def _show_curves(screen: Screen, records: Sequence[RunRecord], x_axis: str) -> None:
    """Draws all series of one run. Of several runs it draws the series `judged_by` of each."""
    from fedcli.cli.screen import curves
    from fedcli.reports import group_curves, megabytes
    from fedcli.reports import tables as report_tables
    from fedcli.reports.names import short_names
    from fedcli.runs.record import curve_title, curves_of, measures_of

    along, across = megabytes.along(x_axis), megabytes.AXES[x_axis]
    grouped = group_curves.of_many(records) if x_axis == megabytes.ROUND else None
    for measure in grouped.curves if grouped else measures_of(records):
        found = grouped.curves[measure].series if grouped else curves_of(records, measure, along)
        series = {name: each for name, each in found.items() if each}
        if len(records) == 1:
            series = dict(reversed(series.items()))  # online below all others
        shown = dict(list(series.items())[: curves.MAX_SERIES])
        has_braille = screen.has_blocks
        is_loss = measure == "loss"  # accuracies are at most 1, so none flattens the others
        picture = curves.draw(shown, screen.width, has_braille=has_braille, may_be_log=is_loss)
        if picture is None:
            continue
        scale = ", logarithmic scale" if picture.is_log else ""
        screen.title(f"{curve_title(measure, across)}{scale}")
        for line in picture.lines:
            screen.pieces(line)
        names = list(shown) if len(records) == 1 else short_names(list(shown), _LEGEND_COLUMNS)
        last = [report_tables.number(each[-1][1]) for each in shown.values()]
        screen.legend(curves.legend(names, last, has_braille=has_braille))
        if len(shown) < len(series):
            what = "curves" if grouped else "runs"
            screen.line(f"The first {len(shown)} of {len(series)} {what}; --plot draws all", "dim")
        if grouped:
            screen.line(f"{grouped.title}; mean over seeds", "dim")
