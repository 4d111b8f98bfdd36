"""Curves drawn in characters: one mark a series, the scale on the left, rounds below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MARKS = "ox+*#@%&"  # drawn in turn; what comes first lies on top
_HEIGHT = 11
_MARGIN = 8  # columns of the scale

Points = Sequence[tuple[float, float]]


def draw(series: Mapping[str, Points], width: int, height: int = _HEIGHT) -> list[str]:
    """Returns lines of at most `width` characters; of nothing to draw, no line.

    Where several points of a series fall into one column, the last is drawn.

    Args:
        series: (x, finite y) in rising x, by name, at most as many as there are MARKS.
        width: Characters of each line.
        height: Lines of the field.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        return []
    room = max(10, width - _MARGIN - 2)
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    field = [[" "] * room for _ in range(height)]
    for mark, each in reversed(list(zip(MARKS, series.values(), strict=False))):
        rows = {
            _place(x, low_x, high_x, room): height - 1 - _place(y, low_y, high_y, height)
            for x, y in each
        }
        for column, row in rows.items():
            field[row][column] = mark
    scale = {0: high_y, height // 2: (high_y + low_y) / 2, height - 1: low_y}
    if low_y == high_y:
        scale = {height - 1: low_y}
    lines = []
    for index, cells in enumerate(field):
        label = f"{scale[index]:.4g}" if index in scale else ""
        lines.append(f"{label:>{_MARGIN}} |{''.join(cells)}".rstrip())
    lines.append(" " * _MARGIN + " +" + "-" * room)
    left, right = f"{low_x:g}", f"{high_x:g}"
    ends = left if left == right else left + right.rjust(room - len(left))
    lines.append(" " * (_MARGIN + 2) + ends)
    return lines


def legend(names: Sequence[str]) -> str:
    """Returns one line that says which mark is whose."""
    return "  ".join(f"{mark} {name}" for mark, name in zip(MARKS, names, strict=False))


def _place(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0
