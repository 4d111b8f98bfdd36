"""Curves drawn in characters: lines of braille dots with a mark for each series, and both axes.

A cell of braille has 2 x 4 dots. Where braille cannot be written, lines are dots of ASCII.
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
_TICK_ROWS = 3  # of the field for each tick of the scale
_TICK_COLUMNS = 14
_MARK_COLUMNS = 16  # between two marks of a series
_MARGIN = 9  # columns of the scale
_LEAST_ROOM = 10

_BRAILLE = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a cell
_LINES = ("│", "┤", "└", "─", "┬")
_ASCII_LINES = ("|", "|", "+", "-", "+")

Points = Sequence[tuple[float, float]]


class Piece(NamedTuple):
    """Characters of one colour: the number of a series, or None for axes."""

    text: str
    series: int | None


class Picture(NamedTuple):
    """What is drawn.

    Attributes:
        lines: From top to bottom, in pieces.
        is_log: Whether the scale is logarithmic.
    """

    lines: list[list[Piece]]
    is_log: bool

    @property
    def texts(self) -> list[str]:
        """The lines without colours."""
        return ["".join(piece.text for piece in line).rstrip() for line in self.lines]


class _Field:
    """Cells with dots; who draws later lies on top."""

    def __init__(self, columns: int, rows: int, *, has_braille: bool) -> None:
        self.columns, self.rows = columns, rows
        self.has_braille = has_braille
        self._fine = (2, 4) if has_braille else (1, 1)
        self._bits = [[0] * columns for _ in range(rows)]
        self._marks: list[list[str]] = [[""] * columns for _ in range(rows)]
        self._owners: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def line(self, places: Sequence[tuple[float, float]], owner: int) -> None:
        """Draws lines between places, each a share of the width and of the height from below."""
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
        """Puts a mark on a place."""
        x, y = self._dot(*place)
        column, row = x // self._fine[0], y // self._fine[1]
        self._marks[row][column] = text
        self._owners[row][column] = owner

    def pieces(self, row: int) -> Iterator[Piece]:
        """Yields a row in pieces of one colour."""
        text, owner = "", None
        for column in range(self.columns):
            char, its_owner = self._char(row, column), self._owners[row][column]
            if its_owner != owner and text:
                yield Piece(text, owner)
                text = ""
            text, owner = text + char, its_owner
        yield Piece(text, owner)

    def _dot(self, across: float, up: float) -> tuple[int, int]:
        width, height = self.columns * self._fine[0], self.rows * self._fine[1]
        return round(across * (width - 1)), height - 1 - round(up * (height - 1))

    def _set(self, x: int, y: int, owner: int) -> None:
        column, row = x // self._fine[0], y // self._fine[1]
        bit = _BITS[y % 4][x % 2] if self.has_braille else 1
        if self._owners[row][column] != owner:
            self._bits[row][column] = 0  # of another series, which lies below
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
    """Returns a picture of lines of at most `width` characters; None: there is nothing to draw.

    Args:
        series: (x, finite y) in rising x, by name, at most MAX_SERIES; the first lies on top.
        width: Characters of each line.
        height: Lines of the field.
        has_braille: Whether braille can be written.
        may_be_log: Whether the scale is logarithmic where one series would flatten all others.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        return None
    field = _Field(max(_LEAST_ROOM, width - _MARGIN - 2), height, has_braille=has_braille)
    across = Axis.of((x for x, _ in points), is_log=False)
    beginnings = [each[0][1] for each in series.values() if each]
    up = Axis.of((y for _, y in points), beginnings, is_log=None if may_be_log else False)
    placed = [[(across.share(x), up.share(y)) for x, y in each] for each in series.values()]
    for number in reversed(range(len(placed))):
        field.line(placed[number], number)
    for number in reversed(range(len(placed))):
        for place in _marked(placed[number], field.columns, number, len(placed)):
            field.mark(place, mark_of(number, len(placed), has_braille=has_braille), number)
    lines = _with_scale(field, up, has_braille=has_braille)
    lines += _below(across, field.columns, has_braille=has_braille)
    return Picture(lines, up.is_log)


def mark_of(number: int, count: int, *, has_braille: bool = True) -> str:
    """Returns the mark of one of `count` series."""
    marks = MARKS if has_braille else _ASCII_MARKS
    return (marks if count <= len(marks) else _MORE_MARKS)[number]


def legend(
    names: Sequence[str], values: Sequence[str] = (), *, has_braille: bool = True
) -> list[Piece]:
    """Returns one piece a series: its mark, its name and, if given, a value."""
    count = len(names)
    shown = values or [""] * count
    return [
        Piece(f"{mark_of(number, count, has_braille=has_braille)} {name} {value}".rstrip(), number)
        for number, (name, value) in enumerate(zip(names, shown, strict=True))
    ]


def _marked(
    places: Sequence[tuple[float, float]], columns: int, number: int, count: int
) -> list[tuple[float, float]]:
    """The points of a series that have its mark: a few, elsewhere than those of the others."""
    if len(places) * _MARK_COLUMNS <= 2 * columns:
        return list(places)
    wanted = max(2, columns // _MARK_COLUMNS)
    shift = (number + 0.5) / count
    found = []
    for index in range(wanted):
        target = (index + shift) / wanted
        found.append(min(places, key=lambda place: abs(place[0] - target)))
    return list(dict.fromkeys(found))


def _with_scale(field: _Field, axis: Axis, *, has_braille: bool) -> list[list[Piece]]:
    """The rows with the scale on their left."""
    bar, tick = (_LINES if has_braille else _ASCII_LINES)[:2]
    ticks = axis.ticks(max(2, field.rows // _TICK_ROWS + 1))
    labels = {}
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        labels[field.rows - 1 - round(axis.share(value) * (field.rows - 1))] = text
    return [
        [
            Piece(f"{labels.get(row, ''):>{_MARGIN}} {tick if row in labels else bar}", None),
            *field.pieces(row),
        ]
        for row in range(field.rows)
    ]


def _below(axis: Axis, columns: int, *, has_braille: bool) -> list[list[Piece]]:
    """The axis below the field, and what its ticks are called."""
    _, _, corner, line, tick = _LINES if has_braille else _ASCII_LINES
    ticks = axis.ticks(max(2, columns // _TICK_COLUMNS), is_whole=True)
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
