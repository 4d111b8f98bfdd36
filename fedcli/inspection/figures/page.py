"""Lays out figures, pictures and text in dots on matplotlib's Agg canvas. Pyplot is not used.

The layout is explicit, so that a pixel of an image is a whole number of dots.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.inspection.figures.tiles import TILE, Tiles

MARGIN = 20  # dots around everything
TITLE_HEIGHT = 52  # dots from the top of a figure to its content
LINE_HEIGHT = 24  # dots

DPI = 144  # two dots per point, so that text of 7 points is easily read on a screen
_TEXT_POINTS, _TITLE_POINTS = 7.0, 9.0
_MAX_NAME = 24  # characters of a client's id or a class name
_TEXT_COLOR = "#222222"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _TEXT_COLOR,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": _TEXT_POINTS,
    "pdf.fonttype": 42,  # TrueType, which journals accept
    "svg.hashsalt": "fedcli",
    "text.color": _TEXT_COLOR,
    "text.parse_math": False,  # ids and class names may hold dollar signs
    "xtick.color": _TEXT_COLOR,
    "ytick.color": _TEXT_COLOR,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
}


def render(draw: Callable[[], Figure], file_format: str) -> bytes:
    """Returns the bytes of a figure in "png", "svg" or "pdf". Matplotlib's settings have no effect.

    The same figure gives the same bytes, because they hold no date, program name or random id.
    """
    buffer = io.BytesIO()
    no_metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Creator": None, "Date": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = draw()
        figure.savefig(buffer, format=file_format, metadata=no_metadata[file_format])
    return buffer.getvalue()


@dataclass(frozen=True)
class Grid:
    """The layout of tiles of equal size, row by row. All sizes are in dots."""

    num_columns: int
    num_rows: int
    zoom: int  # dots per pixel
    tile_height: int
    tile_width: int
    gap: tuple[int, int]  # below and right of a tile

    @staticmethod
    def of(
        tiles: Tiles,
        num_columns: int,
        names: Sequence[str],
        limit: int = TILE,
        num_rows: int | None = None,
    ) -> Grid:
        """Lays out tiles [k, h, w, 3], with room for a name below each if `num_rows` is None."""
        height, width = tiles.shape[1:3]
        zoom = max(1, limit // max(height, width))
        across = min(max(6, widest(names) + 6 - width * zoom), 30)
        down = LINE_HEIGHT + 6 if num_rows is None else 6
        rows = num_rows or -(-len(tiles) // num_columns)
        return Grid(num_columns, rows, zoom, height * zoom, width * zoom, (down, across))

    @property
    def width(self) -> int:
        """Width of all tiles together."""
        return self.num_columns * (self.tile_width + self.gap[1]) - self.gap[1]

    @property
    def height(self) -> int:
        """Height of all tiles together, with the gap below the last row."""
        return self.num_rows * (self.tile_height + self.gap[0])

    def corner(self, index: int) -> tuple[int, int]:
        """Returns left and top of a tile."""
        row, column = divmod(index, self.num_columns)
        return column * (self.tile_width + self.gap[1]), row * (self.tile_height + self.gap[0])

    def mosaic(self, tiles: Tiles) -> NDArray[np.uint8]:
        """Returns all tiles as one picture uint8 [height, width, 3]."""
        picture = np.full((self.height, self.width, 3), 255, np.uint8)
        levels = np.rint(np.clip(tiles, 0, 1) * 255).astype(np.uint8)
        for index, tile in enumerate(levels):
            left, top = self.corner(index)
            large = tile.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)
            picture[top : top + self.tile_height, left : left + self.tile_width] = large
        return picture


@dataclass(frozen=True)
class Panels:
    """The layout of histograms with shared axes, in dots. With many labels they are stacked."""

    num_panels: int
    num_across: int
    slot: int  # width of a bar with its gap
    size: tuple[int, int]  # width, height
    names_height: int
    left_margin: int = 80
    gap: tuple[int, int] = (44, 56)  # right of a panel, below it

    @staticmethod
    def of(num_panels: int, names: Sequence[str]) -> Panels:
        """Lays out panels with a bar for each name."""
        is_wide = len(names) > 12
        num_across = 1 if is_wide else {1: 1, 2: 2, 4: 2}.get(num_panels, 3)
        slot = 18 if is_wide else 26
        size = (max(260, slot * len(names)), 120 if is_wide else 190)
        return Panels(num_panels, num_across, slot, size, names_height(names, slot))

    @property
    def width(self) -> int:
        """Width of all panels with the numbers on their left."""
        return self.left_margin + self.num_across * (self.size[0] + self.gap[0]) - self.gap[0]

    @property
    def height(self) -> int:
        """Height of all panels with their titles and the names below."""
        num_down = -(-self.num_panels // self.num_across)
        return num_down * (self.size[1] + self.gap[1]) + self.names_height - 30

    def corner(self, index: int) -> tuple[int, int]:
        """Returns left and top of a panel's axes."""
        down, across = divmod(index, self.num_across)
        left = self.left_margin + across * (self.size[0] + self.gap[0])
        return left, 26 + down * (self.size[1] + self.gap[1])

    def is_lowest(self, index: int) -> bool:
        """Returns whether a panel is the lowest in its column."""
        return index + self.num_across >= self.num_panels


def make_page(title: str, width: int, height: int) -> Figure:
    """Returns an empty figure with room for `width` x `height` dots and for the title."""
    text = drawable(title)
    full_width = max(width, text_width(text, _TITLE_POINTS)) + 2 * MARGIN
    full_height = TITLE_HEIGHT + height + MARGIN
    figure = Figure(figsize=(full_width / DPI, full_height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(MARGIN / full_width, 1 - 16 / full_height, text, va="top", fontsize=_TITLE_POINTS)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Returns new axes at a place counted from the figure's upper left corner."""
    full_width, full_height = figure.get_size_inches() * DPI
    bottom = full_height - top - height
    return figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )


def add_picture(figure: Figure, left: int, top: int, picture: NDArray[np.uint8]) -> Axes:
    """Draws a picture dot by dot; its axes are in dots from its upper left corner."""
    height, width = picture.shape[:2]
    axes = add_axes(figure, left, top, width, height)
    axes.imshow(picture, extent=(0, width, height, 0), aspect="auto", interpolation="none")
    axes.set_axis_off()
    return axes


def write_title(axes: Axes, text: str) -> None:
    """Writes a line above axes."""
    axes.set_title(text, loc="left", fontsize=_TEXT_POINTS, pad=4)


def whole_ticks(axis: Any, num_ticks: int) -> None:
    """Sets about `num_ticks` ticks of an axis at whole numbers."""
    axis.set_major_locator(few_ticks(num_ticks, integer=True))
    axis.set_major_formatter(lambda number, _: f"{number:,.0f}")


def few_ticks(num_ticks: int, **how: Any) -> MaxNLocator:
    """Returns a locator of about `num_ticks` round numbers on an axis."""
    return MaxNLocator(num_ticks, min_n_ticks=1, **how)


def name_labels(axes: Axes, names: Sequence[str], slot: int) -> None:
    """Writes names at the positions 0, 1, 2, ..., `slot` dots apart, vertically if long."""
    axes.tick_params(axis="x", length=0)
    rotation = 90 if _is_upright(names, slot) else 0
    axes.set_xticks(range(len(names)), [shortened(name) for name in names], rotation=rotation)


def names_height(names: Sequence[str], slot: int) -> int:
    """Returns the height of the names that `name_labels` writes."""
    return widest(names) + 12 if _is_upright(names, slot) else LINE_HEIGHT


def _is_upright(names: Sequence[str], slot: int) -> bool:
    return widest(names) > slot


def widest(names: Sequence[str]) -> int:
    """Returns the width of the widest name, 0 if there is none."""
    return max((text_width(shortened(name)) for name in names), default=0)


def text_width(text: str, points: float = _TEXT_POINTS) -> int:
    """Returns how many dots a text is wide."""
    font = _font()
    font.set_size(points, DPI)
    font.set_text(drawable(text))
    width: int = font.get_width_height()[0]
    return math.ceil(width / 64)  # FreeType counts in 64ths


def fitting(name: str, width: int) -> str:
    """Returns a name cut to a width."""
    text = shortened(name)
    while len(text) > 2 and text_width(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def shortened(name: str) -> str:
    """Returns a name of bounded length in characters that the font has."""
    text = drawable(name)
    if len(text) <= _MAX_NAME:
        return text
    half = (_MAX_NAME - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def drawable(text: str) -> str:
    """Returns the text in one line of characters that the font has."""
    font = _font()
    words = " ".join(text.split())
    return "".join(char if font.get_char_index(ord(char)) else "?" for char in words)


def _font() -> FT2Font:
    return get_font(findfont(FontProperties()))
