"""Writes groups of runs as tables: for the screen, Markdown and LaTeX, as CSV and as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcli.errors import plural
from fedcli.reports.comparison import Estimate
from fedcli.reports.groups import SECONDS, Column, Difference, Groups, Row, value_text
from fedcli.reports.significance import smallest_p
from fedcli.reports.text import Table

INTERVAL, STD, NO_SPREAD = SPREADS = ("interval", "std", "none")
_ABOUT_SPREAD = {
    INTERVAL: "mean ± half the 95 % confidence interval (Student's t)",
    STD: "mean ± standard deviation",
    NO_SPREAD: "mean",
}
_UNSET = "-"
_SIGNIFICANT = 0.05


def to_table(groups: Groups, spread: str = INTERVAL, *, label: str = "tab:runs") -> Table:
    """Returns the table of groups, the best first; the best value of each column is marked.

    Args:
        groups: The groups.
        spread: What follows the sign ±: one of SPREADS.
        label: The table's label in LaTeX.
    """
    rows = groups.rows
    has_marks = any(row.num_diverged or row.num_failed for row in rows)
    has_differences = any(row.difference for row in rows)
    options = [*groups.by, *(name for name in groups.best if name not in groups.by)]
    columns = _shown_columns(groups)
    headers = [*options, "seeds", *["without result"] * has_marks]
    headers += [_header(column) for column in columns]
    if has_differences:
        headers += [f"{_header(groups.columns[0])} to the first", "p", "p (Holm)"]
    body = []
    for row in rows:
        values = {**row.by, **row.best}
        cells = [value_text(values[name]) for name in options]
        cells.append(str(len(row.members)))
        cells += [_marks(row)] * has_marks
        cells += [_result_cell(row, groups, column, spread) for column in columns]
        if has_differences:
            cells += _difference_cells(row.difference, groups.columns[0], spread)
        body.append(cells)
    first = len(options) + 1 + has_marks
    bold = {
        (best, first + index)
        for index, column in enumerate(columns)
        for best in _best_rows(rows, groups, column)
    }
    title = f"{title_of(groups)}; {_ABOUT_SPREAD[spread]}"
    if has_differences and spread == STD:
        title += "; for differences ± half the 95 % confidence interval"
    return Table(title, headers, body, max(1, len(options)), label=label, bold=frozenset(bold))


def about_band(spread: str) -> str:
    """Returns a text that explains the curves and bands of groups."""
    band = {INTERVAL: "its 95 % confidence interval", STD: "the standard deviation"}.get(spread)
    return "mean over seeds" + (f"; band: {band}" if band else "")


def notes_on(groups: Groups) -> list[str]:
    """Returns the notes below the table: how rows were chosen, and which runs are left out."""
    notes = []
    chosen = groups.select
    if groups.best and chosen is not None and not chosen.name.startswith("validation."):
        notes.append(
            f"chosen by {chosen.name}, not by validation data: these results may be too good"
        )
    notes += [note for row in groups.rows for note in _values_at_an_end(row)]
    differences = [row.difference for row in groups.rows if row.difference]
    if differences:
        count = min(each.estimate.count for each in differences)
        notes.append(_about_p(count, len(differences)))
    num_diverged = sum(row.num_diverged for row in groups.rows)
    if num_diverged:
        are = "is" if num_diverged == 1 else "are"
        notes.append(
            f"{plural(num_diverged, 'run')} of these rows diverged and {are} left out of the means"
        )
    return notes


def _values_at_an_end(row: Row) -> list[str]:
    """Returns notes on chosen values that are the largest or smallest of those tried."""
    notes = []
    for name, value in row.best.items():
        numbers = [each for each in row.tried[name] if isinstance(each, int | float)]
        if len(set(numbers)) < 2 or isinstance(value, bool) or value not in numbers:
            continue
        ends = {max(numbers): ("largest", "larger"), min(numbers): ("smallest", "smaller")}
        if value in ends:
            end, beyond = ends[value]
            where = f" of {', '.join(map(value_text, row.by.values()))}" if row.by else ""
            text = f"{name} {value_text(value)}{where} is the {end} value that was tried"
            notes.append(f"{text}; {beyond} values may be better")
    return notes


def _about_p(num_seeds: int, num_tests: int) -> str:
    """Returns a note on p: whether this number of seeds can give a significant result."""
    smallest = smallest_p(num_seeds)
    text = (
        f"p: sign-flip test of the differences to the first row, paired by seed; with {num_seeds} "
        f"seeds p is at least {smallest:.3g}"
    )
    if num_tests > 1:
        text += f", adjusted for {plural(num_tests, 'row')} {min(1.0, num_tests * smallest):.3g}"
    if num_tests * smallest <= _SIGNIFICANT:
        return text
    seeds = itertools.count(num_seeds + 1)
    enough = next(each for each in seeds if num_tests * smallest_p(each) <= _SIGNIFICANT)
    return f"{text}, so no difference can be significant at 5 %; {enough} seeds are needed"


def to_rows(groups: Groups) -> list[dict[str, Any]]:
    """Returns plain values, a dictionary for each row: the columns of the CSV file."""
    return [_plain_row(row, groups) for row in groups.rows]


def to_csv_table(groups: Groups) -> Table:
    """Returns a table of unformatted numbers, with one row for each group."""
    rows = to_rows(groups)
    headers = list(dict.fromkeys(name for row in rows for name in row))
    body = [[_csv_cell(row.get(name)) for name in headers] for row in rows]
    return Table("Groups", headers, body)


def _plain_row(row: Row, groups: Groups) -> dict[str, Any]:
    plain: dict[str, Any] = {**row.by, **row.best}
    plain["seeds"] = len(row.members)
    plain["diverged"] = row.num_diverged
    plain["failed"] = row.num_failed
    plain["candidates"] = row.num_candidates
    for column in _shown_columns(groups):
        plain.update(_plain_estimate(column.name, _estimate(row, column)))
    difference = row.difference
    plain.update(_plain_estimate("difference", difference.estimate if difference else None))
    plain["p"] = difference.p if difference else None
    plain["p_holm"] = difference.p_holm if difference else None
    return plain


def _plain_estimate(name: str, estimate: Estimate | None) -> dict[str, Any]:
    return {
        f"{name}.mean": estimate.mean if estimate else None,
        f"{name}.std": estimate.std if estimate else None,
        f"{name}.half_width": estimate.half_width if estimate else None,
        f"{name}.count": estimate.count if estimate else 0,
    }


def _shown_columns(groups: Groups) -> list[Column]:
    """Returns the columns of results.

    If the metric by which rows were chosen is not one of them, it becomes the first column.
    """
    select = groups.select
    if select is None or select.name in {column.name for column in groups.columns}:
        return list(groups.columns)
    return [select, *groups.columns]


def _estimate(row: Row, column: Column) -> Estimate | None:
    return row.cells.get(column.name, row.selected)


def title_of(groups: Groups) -> str:
    """Returns a title that says what the rows are."""
    rows = groups.rows
    if not groups.best or groups.select is None:
        return "Runs by " + (", ".join(groups.by) if groups.by else "configuration")
    most = max(row.num_candidates for row in rows)
    each = f" of each {', '.join(groups.by)}" if groups.by else ""
    return f"The best of {most} {', '.join(groups.best)}{each} by {_header(groups.select)}"


def _header(column: Column) -> str:
    if column.target is not None:
        return f"rounds to {column.target:g}"
    return f"{column.split} {column.metric}" if column.metric else column.name


def _marks(row: Row) -> str:
    counts = ((row.num_diverged, "diverged"), (row.num_failed, "failed"))
    return ", ".join(f"{count} {what}" for count, what in counts if count) or _UNSET


def number_format(column: Column) -> Callable[[float], str]:
    """Returns the function that writes the numbers of a column."""
    digits = 4 if column.metric else 2 if column.name == SECONDS else 1

    def format_number(value: float) -> str:
        return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3e}"

    return format_number


def _cell(estimate: Estimate | None, column: Column, spread: str) -> str:
    if estimate is None:
        return _UNSET
    format_number = number_format(column)
    width = {INTERVAL: estimate.half_width, STD: estimate.std, NO_SPREAD: None}[spread]
    return (
        format_number(estimate.mean)
        if width is None
        else f"{format_number(estimate.mean)} ± {format_number(width)}"
    )


def _result_cell(row: Row, groups: Groups, column: Column, spread: str) -> str:
    """Returns a mean as text, with the number of runs that have a value if some have none."""
    estimate = _estimate(row, column)
    text = _cell(estimate, column, spread)
    if estimate is None or estimate.count == len(row.members):
        return text
    return f"{text} ({estimate.count} of {len(row.members)})"


def _difference_cells(difference: Difference | None, column: Column, spread: str) -> list[str]:
    if difference is None:
        return [_UNSET] * 3
    text = _cell(difference.estimate, column, INTERVAL if spread == STD else spread)
    sign = "+" if difference.estimate.mean > 0 else ""
    return [sign + text, f"{difference.p:.3g}", f"{difference.p_holm:.3g}"]


def _best_rows(rows: Sequence[Row], groups: Groups, column: Column) -> list[int]:
    """Returns the indices of the rows with the best value of a column; none for a single row."""
    values: Mapping[int, float] = {
        index: estimate.mean
        for index, row in enumerate(rows)
        if (estimate := _estimate(row, column)) is not None
    }
    if len(rows) < 2 or not values:
        return []
    best = max(values.values()) if column.is_more_better else min(values.values())
    return [index for index, value in values.items() if value == best]


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return value_text(value) if isinstance(value, bool | list | tuple) else str(value)
