"""Curves of runs: one panel a measure, one line a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedcli.errors import ConfigError
from fedcli.inspection.figures.page import (
    LINE_HEIGHT,
    MARGIN,
    TITLE_HEIGHT,
    add_axes,
    few_ticks,
    make_page,
    render,
    shortened,
    text_width,
    whole_ticks,
    write_title,
)
from fedcli.inspection.figures.writing import FORMATS
from fedcli.outputs import write_output

# Told apart by everybody (Paul Tol's bright scheme).
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
_WIDTH, _HEIGHT, _SCALE, _GAP = 640, 400, 70, 90  # dots

Series = Sequence[tuple[float, float]]


def write_curves(
    path: Path, title: str, panels: Mapping[str, Mapping[str, Series]], note: str = ""
) -> None:
    """Draws panels beside each other into a PNG or SVG file, which is replaced as a whole.

    Args:
        path: Its ending says which.
        title: Above all.
        panels: By title, series of (round, value) by name.
        note: Below all; empty: none.

    Raises:
        ConfigError: The ending is none of these.
        RunError: The file cannot be written.
    """
    write_output(path, render(lambda: _draw(title, panels, note), format_of(path)))


def format_of(path: Path) -> str:
    """Returns what a file's ending says. Raises ConfigError if it is no format of figures."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ConfigError(f"--plot {path}: choose a name that ends in one of {endings}")
    return ending


def _draw(title: str, panels: Mapping[str, Mapping[str, Series]], note: str) -> Figure:
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    lines = [*names, note] if note else names
    key_height = LINE_HEIGHT * len(lines)
    width = len(panels) * (_SCALE + _WIDTH + _GAP) - _GAP
    width = max([width, *(text_width(shortened(name)) + _SCALE + 60 for name in names)])
    figure = make_page(title, width, LINE_HEIGHT + _HEIGHT + 3 * LINE_HEIGHT + key_height)
    for index, (heading, series) in enumerate(panels.items()):
        left = MARGIN + _SCALE + index * (_SCALE + _WIDTH + _GAP)
        axes = add_axes(figure, left, TITLE_HEIGHT + LINE_HEIGHT, _WIDTH, _HEIGHT)
        write_title(axes, heading)
        axes.set_xlabel("round")
        for number, name in enumerate(names):
            points = series.get(name, [])
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=_COLORS[number % len(_COLORS)],
                linestyle="-" if number < len(_COLORS) else "--",
                linewidth=1.2,
                marker="o" if len(points) <= 40 else "",
                markersize=2.5,
            )
        whole_ticks(axes.xaxis, 6)
        axes.yaxis.set_major_locator(few_ticks(5))
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    key = add_axes(
        figure,
        MARGIN + _SCALE,
        TITLE_HEIGHT + LINE_HEIGHT + _HEIGHT + 3 * LINE_HEIGHT,
        width - _SCALE,
        max(1, key_height),
    )
    key.set_axis_off()
    key.set_xlim(0, width - _SCALE)
    key.set_ylim(len(lines), 0)
    for number, name in enumerate(names):
        style = "-" if number < len(_COLORS) else "--"
        color = _COLORS[number % len(_COLORS)]
        key.plot([0, 36], [number + 0.5] * 2, color=color, linestyle=style, linewidth=1.6)
        key.text(48, number + 0.5, shortened(name), va="center")
    if note:
        key.text(48, len(names) + 0.5, note, va="center", color="#666666")
    return figure
