"""Plots curves of runs: one panel for each metric, one line for each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError
from fedcli.inspection.figures.page import (
    DPI,
    LINE_HEIGHT,
    MARGIN,
    TITLE_HEIGHT,
    add_axes,
    drawable,
    few_ticks,
    make_page,
    render,
    text_width,
    whole_ticks,
    write_title,
)
from fedcli.inspection.figures.writing import FORMATS
from fedcli.outputs import write_output
from fedcli.reports.axes import Axis, tick_texts
from fedcli.reports.names import short_names
from fedcli.runs.record import curve_title

# Paul Tol's bright scheme, whose colours colour-blind readers can distinguish.
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
# The first seven series have the first dash pattern, the next seven the second, and so on.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX"
_WIDTH, _HEIGHT, _SCALE, _GAP = 640, 400, 86, 40  # dots; `_SCALE` is for the labels of a y axis
_ABOVE, _BELOW = LINE_HEIGHT, 3 * LINE_HEIGHT  # dots for a panel's title and its x axis
_MAX_ACROSS = 3  # panels side by side
_LEAST_WIDTH, _LEAST_HEIGHT = 160, 120  # of a panel, in dots
_LINE = 36  # length of a line in the legend, in dots
_MOST_MARKED, _FEW_MARKS = 40, 10  # up to 40 points are all marked; of more points, about 10 are
_NAME_LETTERS = 60  # maximum length of a name in the legend
_MAX_INCHES = 100.0

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PlotOptions:
    """How curves are drawn.

    Attributes:
        size: Width and height of the figure in inches; None to compute them from panels and legend.
        log_x: Whether the x axis is logarithmic. If so, round 0 is left out.
        log_y: Whether the axis of losses is logarithmic; None to choose a logarithmic axis only if
            one curve would flatten the others.
        across: The label of the x axis.
    """

    size: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool | None = None
    across: str = "round"


def write_curves(
    path: Path,
    title: str,
    panels: Mapping[str, Mapping[str, Series]],
    note: str = "",
    options: PlotOptions | None = None,
    bands: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]] | None = None,
) -> None:
    """Draws panels side by side in a PNG, SVG or PDF file, which is replaced atomically.

    Args:
        path: The file. Its suffix determines the format.
        title: Title above all panels.
        panels: For each metric, the series by name: points (x, value), x as in `options.across`.
        note: Text below all panels; may be empty.
        options: Size and axes; None for the defaults.
        bands: For each metric, bands of (round, lower end, upper end) by the name of their series.

    Raises:
        ConfigError: The suffix is of no known format, or the size is too small.
        RunError: The file cannot be written.
    """
    page = _Page(title, panels, note, options or PlotOptions(), bands)
    write_output(path, render(page.draw, format_of(path)))


def format_of(path: Path, option: str = "--plot") -> str:
    """Returns the figure format of a file's suffix. Raises ConfigError for any other suffix."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ConfigError(f"{option} {path}: choose a name that ends in one of {endings}")
    return ending


def read_size(text: str) -> tuple[float, float]:
    """Parses width and height of a figure in inches from a text such as "6.5x3".

    Raises:
        ConfigError: The text is not of this form, or a size is not in range.
    """
    try:
        width, height = (float(each) for each in text.lower().split("x"))
    except ValueError:
        width = height = 0.0
    if not (0 < width <= _MAX_INCHES and 0 < height <= _MAX_INCHES):
        raise ConfigError(
            f"--plot-size {text}: give width and height in inches, such as 6.5x3; each above 0 and "
            f"at most {_MAX_INCHES:g}"
        )
    return width, height


class _Page:
    """Lays out and draws a figure. Sizes are in dots."""

    def __init__(
        self,
        title: str,
        panels: Mapping[str, Mapping[str, Series]],
        note: str,
        options: PlotOptions,
        bands: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]] | None = None,
    ) -> None:
        self.title, self.note, self.options, self.bands = title, note, options, bands or {}
        self.panels = {name: each for name, each in panels.items() if any(each.values())} or panels
        names = list(dict.fromkeys(name for each in panels.values() for name in each))
        self.names = dict(zip(names, short_names(names, _NAME_LETTERS), strict=True))
        if len(names) == 1:
            self.names = {names[0]: names[0]}
        column = max(map(text_width, self.names.values()), default=0) + _LINE + 36
        count = len(self.panels)
        self.num_across = count if count <= _MAX_ACROSS else 2 if count == 4 else _MAX_ACROSS
        self.num_down = -(-count // self.num_across)
        self.width = self.num_across * (_SCALE + _WIDTH + _GAP) - _GAP
        if options.size is None:
            self.width = max(self.width, column + _SCALE)
        else:
            self.width = round(options.size[0] * DPI) - 2 * MARGIN
        self.num_columns = max(1, (self.width - _SCALE) // max(1, column))
        self.num_lines = -(-len(names) // self.num_columns) + bool(note)
        self.panel_width = (self.width + _GAP) // self.num_across - _SCALE - _GAP
        around = TITLE_HEIGHT + MARGIN + self.num_lines * LINE_HEIGHT
        around += self.num_down * (_ABOVE + _BELOW)
        self.panel_height = _HEIGHT
        if options.size is not None:
            self.panel_height = (round(options.size[1] * DPI) - around) // self.num_down
        if self.panel_width < _LEAST_WIDTH or self.panel_height < _LEAST_HEIGHT:
            width = (self.num_across * (_SCALE + _LEAST_WIDTH + _GAP) + 2 * MARGIN) / DPI
            height = (around + self.num_down * _LEAST_HEIGHT) / DPI
            raise ConfigError(
                f"--plot-size: too small for {count} panels and {len(names)} names; give at least "
                f"{width:.1f}x{height:.1f} inches"
            )

    def draw(self) -> Figure:
        row_height = _ABOVE + self.panel_height + _BELOW
        panels_height = self.num_down * row_height
        figure = make_page(self.title, self.width, panels_height + LINE_HEIGHT * self.num_lines)
        for index, (measure, series) in enumerate(self.panels.items()):
            row, column = divmod(index, self.num_across)
            left = MARGIN + _SCALE + column * (_SCALE + self.panel_width + _GAP)
            top = TITLE_HEIGHT + row * row_height + _ABOVE
            axes = add_axes(figure, left, top, self.panel_width, self.panel_height)
            self._draw_panel(axes, measure, series)
        self._draw_key(figure, TITLE_HEIGHT + panels_height)
        return figure

    def _draw_panel(self, axes: Any, measure: str, series: Mapping[str, Series]) -> None:
        across = self.options.across
        write_title(axes, curve_title(measure, across))
        axes.set_xlabel(across)
        axes.set_ylabel(measure)
        for number, name in enumerate(self.names):
            points = [
                each for each in series.get(name, []) if each[0] > 0 or not self.options.log_x
            ]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                **_look(number),
                linewidth=1.2,
                markevery=1 if len(points) <= _MOST_MARKED else len(points) // _FEW_MARKS,
                markersize=2.5,
            )
            self._draw_band(axes, number, self.bands.get(measure, {}).get(name, ()))
        values = [y for each in series.values() for _, y in each]
        is_log = self.options.log_y if measure == "loss" else False
        beginnings = [each[0][1] for each in series.values() if each]
        if values and Axis.of(values, beginnings, is_log=is_log).is_log:
            axes.set_yscale("log")
            _set_log_ticks(axes.yaxis, axes.get_ylim(), 5)
        else:
            axes.yaxis.set_major_locator(few_ticks(5))
        if self.options.log_x:
            axes.set_xscale("log")
            _set_log_ticks(axes.xaxis, axes.get_xlim(), 6)
        elif across == "round":
            whole_ticks(axes.xaxis, 6)
        else:
            axes.xaxis.set_major_locator(few_ticks(6))
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)

    def _draw_band(
        self, axes: Any, number: int, band: Sequence[tuple[float, float, float]]
    ) -> None:
        drawn = [each for each in band if each[0] > 0 or not self.options.log_x]
        if drawn:
            rounds, low, high = zip(*drawn, strict=True)
            color = _look(number)["color"]
            axes.fill_between(rounds, low, high, color=color, alpha=0.18, linewidth=0)

    def _draw_key(self, figure: Figure, top: int) -> None:
        width = self.width - _SCALE
        height = max(1, LINE_HEIGHT * self.num_lines)
        key = add_axes(figure, MARGIN + _SCALE, top, width, height)
        key.set_axis_off()
        key.set_xlim(0, width)
        key.set_ylim(max(1, self.num_lines), 0)
        num_rows = -(-len(self.names) // self.num_columns)
        for number, name in enumerate(self.names.values()):
            column, row = divmod(number, max(1, num_rows))
            left = column * (width // self.num_columns)
            ends = [left, left + _LINE / 2, left + _LINE]
            key.plot(ends, [row + 0.5] * 3, **_look(number), markevery=[1], markersize=3)
            key.text(left + _LINE + 12, row + 0.5, drawable(name), va="center")
        if self.note:
            key.text(0, num_rows + 0.5, drawable(self.note), va="center", color="#666666")


def _look(number: int) -> dict[str, Any]:
    """Returns colour, dashes and marker of a series; their combinations repeat after 196 series."""
    count = len(_COLORS)
    return {
        "color": _COLORS[number % count],
        "linestyle": _DASHES[number // count % len(_DASHES)],
        "marker": _MARKERS[(number + number // (count * len(_DASHES))) % len(_MARKERS)],
    }


def _set_log_ticks(axis: Any, limits: tuple[float, float], most: int) -> None:
    """Labels a logarithmic axis with plain numbers, because the style does not render formulas."""
    ticks = Axis(*limits, is_log=True).ticks(most)
    axis.set_ticks(ticks, tick_texts(ticks))
    axis.set_minor_formatter(lambda *_: "")
