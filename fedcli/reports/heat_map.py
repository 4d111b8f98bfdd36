"""Draws a heat map of a result over two options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedcli.errors import ConfigError
from fedcli.inspection.figures.page import (
    MARGIN,
    TITLE_HEIGHT,
    add_axes,
    drawable,
    make_page,
    render,
    text_width,
)
from fedcli.outputs import write_output
from fedcli.reports.group_tables import number_format
from fedcli.reports.groups import Column, Groups, value_text
from fedcli.reports.plots import format_of

_CELL_WIDTH, _CELL_HEIGHT = 110, 60  # dots
_BELOW = 80  # dots for the labels of the x axis
_MAX_CELLS = 2500


def write_heat_map(path: Path, groups: Groups) -> None:
    """Draws the first column of groups over the two options that define the rows.

    Args:
        path: The file; its suffix determines the format.
        groups: The groups, whose rows are defined by two options.

    Raises:
        ConfigError: The rows are not defined by exactly two options, the options have too many
            values, or the suffix is unknown.
        RunError: The file cannot be written.
    """
    if len(groups.by) != 2:
        raise ConfigError(
            f"--heat-map {path}: a heat map needs two options that differ, and the runs have "
            f"{', '.join(groups.by) or 'none'}; give two, as in --by client_lr,epochs"
        )
    rows = [sorted({_Value(row.by[name]) for row in groups.rows}) for name in groups.by]
    if len(rows[0]) * len(rows[1]) > _MAX_CELLS:
        raise ConfigError(f"--heat-map {path}: more than {_MAX_CELLS:,} cells; choose fewer values")
    file_format = format_of(path, "--heat-map")
    write_output(path, render(lambda: _draw(groups, rows[0], rows[1]), file_format))


class _Value:
    """A value of an option. Numbers sort by value and before texts."""

    def __init__(self, value: Any) -> None:
        self.text = value_text(value)
        is_number = isinstance(value, int | float)
        self._key = (0, float(value), "") if is_number else (1, 0.0, self.text)

    def __lt__(self, other: _Value) -> bool:
        return self._key < other._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _draw(groups: Groups, down: Sequence[_Value], across: Sequence[_Value]) -> Figure:
    column = groups.columns[0]
    values = _values(groups, column, down, across)
    left = max(text_width(each.text) for each in down) + 60
    width, height = len(across) * _CELL_WIDTH, len(down) * _CELL_HEIGHT
    figure = make_page(f"Mean {column.name}", left + width, height + _BELOW)
    axes = add_axes(figure, MARGIN + left, TITLE_HEIGHT, width, height)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        cmap="viridis" if column.is_more_better else "viridis_r",
    )
    axes.set_xticks(range(len(across)), [drawable(each.text) for each in across])
    axes.set_yticks(range(len(down)), [drawable(each.text) for each in down])
    axes.set_xlabel(groups.by[1])
    axes.set_ylabel(groups.by[0])
    format_value = number_format(column)
    for (row, place), value in np.ndenumerate(values):
        share = float(np.asarray(image.norm(np.asarray(value)))) if np.isfinite(value) else 0.0
        is_light = share > 0.6 if column.is_more_better else share < 0.4  # of the colour map
        text = format_value(value) if np.isfinite(value) else "-"
        color = "#222222" if is_light or text == "-" else "#ffffff"
        axes.text(place, row, text, ha="center", va="center", color=color)
    return figure


def _values(
    groups: Groups, column: Column, down: Sequence[_Value], across: Sequence[_Value]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Returns the mean of each cell, float64 [down, across]; NaN for a cell without a mean."""
    values = np.full((len(down), len(across)), np.nan)
    for row in groups.rows:
        place, other = (_Value(row.by[name]) for name in groups.by)
        estimate = row.cells[column.name]
        if estimate is not None:
            values[down.index(place), across.index(other)] = estimate.mean
    return values
