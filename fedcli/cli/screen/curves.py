"""Draws curves with characters: lines of braille dots, marks that tell series apart, and axes.

A braille character has 2 x 4 dots. If the output has no braille, lines are drawn with ASCII dots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fedcli.reports.axes import Axis, tick_texts

MARKS = "●▲■◆○△□◇"
_MORE_MARKS = "abcdefghijklmnopqrstuvwxyz"
_ASCII_MARKS = "ox+*#@%&"
MAX_SERIES = len(_MORE_MARKS)
_HEIGHT = 12
_TICK_ROWS = 3  # rows of the plot area for each tick of the y axis
_TICK_COLUMNS = 14  # columns of the plot area for each tick of the x axis
_MARK_COLUMNS = 16  # columns between two marks of a series
_MARGIN = 9  # columns of the y axis's labels
_MIN_COLUMNS = 10  # of the plot area

_BRAILLE = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a dot
_LINES = ("│", "┤", "└", "─", "┬")
_ASCII_LINES = ("|", "|", "+", "-", "+")

Points = Sequence[tuple[float, float]]


class Piece(NamedTuple):
    """Text of one colour. `series` is the number of the series; None for axes and labels."""

    text: str
    series: int | None


class Picture(NamedTuple):
    """The finished drawing.

    Attributes:
        lines: Lines from top to bottom, each as pieces. A piece has one colour.
        is_log: Whether the y axis is logarithmic.
    """

    lines: list[list[Piece]]
    is_log: bool

    @property
    def texts(self) -> list[str]:
        """The lines without colours."""
        return ["".join(piece.text for piece in line).rstrip() for line in self.lines]


class _PlotArea:
    """The plot area: cells with dots and marks. What is drawn later covers earlier drawings."""

    def __init__(self, columns: int, rows: int, *, has_braille: bool) -> None:
        self.columns, self.rows = columns, rows
        self.has_braille = has_braille
        self._fine = (2, 4) if has_braille else (1, 1)
        self._bits = [[0] * columns for _ in range(rows)]
        self._marks: list[list[str]] = [[""] * columns for _ in range(rows)]
        self._owners: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def line(self, places: Sequence[tuple[float, float]], owner: int) -> None:
        """Draws lines between places, given as shares of the width and of the height from below."""
        dots = [self._dot(across, up) for across, up in places]
        for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                self._set(
                    round(x0 + (x1 - x0) * step / steps),
                    round(y0 + (y1 - y0) * step / steps),
                    owner,
                )

    def mark(self, place: tuple[float, float], text: str, owner: int) -> None:
        """Puts a mark at a place."""
        x, y = self._dot(*place)
        column, row = x // self._fine[0], y // self._fine[1]
        self._marks[row][column] = text
        self._owners[row][column] = owner

    def pieces(self, row: int) -> Iterator[Piece]:
        """Yields a row as pieces of one colour."""
        text, owner = "", None
        for column in range(self.columns):
            char, next_owner = self._char(row, column), self._owners[row][column]
            if next_owner != owner and text:
                yield Piece(text, owner)
                text = ""
            text, owner = text + char, next_owner
        yield Piece(text, owner)

    def _dot(self, across: float, up: float) -> tuple[int, int]:
        width, height = self.columns * self._fine[0], self.rows * self._fine[1]
        return round(across * (width - 1)), height - 1 - round(up * (height - 1))

    def _set(self, x: int, y: int, owner: int) -> None:
        column, row = x // self._fine[0], y // self._fine[1]
        bit = _BITS[y % 4][x % 2] if self.has_braille else 1
        if self._owners[row][column] != owner:
            self._bits[row][column] = 0  # removes the dots of another series
        self._bits[row][column] |= bit
        self._owners[row][column] = owner

    def _char(self, row: int, column: int) -> str:
        if self._marks[row][column]:
            return self._marks[row][column]
        bits = self._bits[row][column]
        if not bits:
            return " "
        return chr(_BRAILLE + bits) if self.has_braille else "."


def draw(
    series: Mapping[str, Points],
    width: int,
    height: int = _HEIGHT,
    *,
    has_braille: bool = True,
    may_be_log: bool = True,
) -> Picture | None:
    """Draws curves; returns None if there is no point.

    Args:
        series: Points (x, finite y) in ascending x, by name; at most MAX_SERIES series. The first
            series is drawn on top.
        width: Maximum number of characters of a line.
        height: Number of lines of the plot area.
        has_braille: Whether the output can show braille.
        may_be_log: Whether the y axis becomes logarithmic if one series would flatten the others.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        return None
    area = _PlotArea(max(_MIN_COLUMNS, width - _MARGIN - 2), height, has_braille=has_braille)
    across = Axis.of((x for x, _ in points), is_log=False)
    beginnings = [each[0][1] for each in series.values() if each]
    up = Axis.of((y for _, y in points), beginnings, is_log=None if may_be_log else False)
    placed = [[(across.share(x), up.share(y)) for x, y in each] for each in series.values()]
    for number in reversed(range(len(placed))):
        area.line(placed[number], number)
    for number in reversed(range(len(placed))):
        for place in _marked(placed[number], area.columns, number, len(placed)):
            area.mark(place, mark_of(number, len(placed), has_braille=has_braille), number)
    lines = _with_scale(area, up, has_braille=has_braille)
    is_whole = all(float(x).is_integer() for x, _ in points)  # rounds, not megabytes
    lines += _below(across, area.columns, has_braille=has_braille, is_whole=is_whole)
    return Picture(lines, up.is_log)


def mark_of(number: int, count: int, *, has_braille: bool = True) -> str:
    """Returns the mark of series `number` of `count` series."""
    marks = MARKS if has_braille else _ASCII_MARKS
    return (marks if count <= len(marks) else _MORE_MARKS)[number]


def legend(
    names: Sequence[str], values: Sequence[str] = (), *, has_braille: bool = True
) -> list[Piece]:
    """Returns a piece for each series: its mark, its name and, if given, its value."""
    count = len(names)
    shown = values or [""] * count
    return [
        Piece(f"{mark_of(number, count, has_braille=has_braille)} {name} {value}".rstrip(), number)
        for number, (name, value) in enumerate(zip(names, shown, strict=True))
    ]


def _marked(
    places: Sequence[tuple[float, float]], columns: int, number: int, count: int
) -> list[tuple[float, float]]:
    """Returns a few places of a series for its marks, shifted against the marks of other series."""
    if len(places) * _MARK_COLUMNS <= 2 * columns:
        return list(places)
    num_marks = max(2, columns // _MARK_COLUMNS)
    shift = (number + 0.5) / count
    marked = []
    for index in range(num_marks):
        target = (index + shift) / num_marks
        marked.append(min(places, key=lambda place: abs(place[0] - target)))
    return list(dict.fromkeys(marked))


def _with_scale(area: _PlotArea, axis: Axis, *, has_braille: bool) -> list[list[Piece]]:
    """Returns the rows of the plot area with the y axis on their left."""
    bar, tick = (_LINES if has_braille else _ASCII_LINES)[:2]
    ticks = axis.ticks(max(2, area.rows // _TICK_ROWS + 1))
    labels = {}
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        labels[area.rows - 1 - round(axis.share(value) * (area.rows - 1))] = text
    return [
        [
            Piece(f"{labels.get(row, ''):>{_MARGIN}} {tick if row in labels else bar}", None),
            *area.pieces(row),
        ]
        for row in range(area.rows)
    ]


def _below(axis: Axis, columns: int, *, has_braille: bool, is_whole: bool) -> list[list[Piece]]:
    """Returns the x axis and its labels, which are drawn below the plot area."""
    _, _, corner, line, tick = _LINES if has_braille else _ASCII_LINES
    ticks = axis.ticks(max(2, columns // _TICK_COLUMNS), is_whole=is_whole)
    ruler, names = [line] * columns, [" "] * (columns + _MARGIN + 2)
    end = 0
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        column = round(axis.share(value) * (columns - 1))
        ruler[column] = tick
        first = min(max(end, column + _MARGIN + 2 - len(text) // 2), len(names) - len(text))
        if first >= end:
            names[first : first + len(text)] = text
            end = first + len(text) + 2
    return [
        [Piece(" " * _MARGIN + f" {corner}" + "".join(ruler), None)],
        [Piece("".join(names).rstrip(), None)],
    ]
