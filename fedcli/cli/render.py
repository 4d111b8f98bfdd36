"""Tables, bars and pictures on stdout. With `progress` the only user of rich, which loads late."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rich.box import Box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fedcli.cli import pictures
from fedcli.cli.output import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.cli.pictures import Ink

MAX_WIDTH = 120
PIPE_WIDTH = 80
_UNBOUNDED = 10_000  # columns of a pipe: a table there is as wide as it needs to be
_GAP = 2
_MAX_LARGE_ROWS = 2  # of pictures at full size; more are drawn at half size

_PIPE_BOX = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_TERMINAL_BOX = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
_MIDDLE_GREY = 127
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bar:
    """One labelled bar of a chart."""

    label: str
    value: int


class Screen:
    """Stdout, drawn to suit what it is: colours and greys on a terminal, plain text in a pipe."""

    @cached_property
    def console(self) -> Console:
        """The console; markup in names that come from files means nothing here."""
        is_terminal = Console().is_terminal
        width = None if is_terminal else _UNBOUNDED
        return Console(width=width, markup=False, highlight=False, emoji=False)

    @property
    def width(self) -> int:
        """Columns to draw in."""
        return min(self.console.width, MAX_WIDTH) if self.console.is_terminal else PIPE_WIDTH

    @property
    def has_blocks(self) -> bool:
        """Whether block characters can be written at all."""
        return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

    @property
    def has_greys(self) -> bool:
        """Whether a cell can have two shades of grey."""
        return (
            self.has_blocks
            and not self.console.no_color
            and self.console.color_system in ("truecolor", "256")
        )

    def title(self, text: str) -> None:
        """Prints a heading after an empty line."""
        self.console.print()
        self.line(text, style="bold")

    def line(self, text: str, style: str = "") -> None:
        """Prints one line, which is never wrapped: paths and commands stay whole."""
        self.console.print(self.text(text, style), soft_wrap=True)

    def text(self, text: str, style: str = "") -> Text:
        """Returns one line for `beside`; what cannot be printed is escaped."""
        return Text(one_line(text), style=style)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
        """Prints a table whose first `left` columns are text and whose others are numbers."""
        box = _TERMINAL_BOX if self.console.is_terminal and self.has_blocks else _PIPE_BOX
        table = Table(box=box, show_edge=False, pad_edge=False, header_style="bold")
        for index, header in enumerate(headers):
            is_text = index < left
            table.add_column(
                header, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
            )
        for row in rows:
            table.add_row(*map(self.text, row))
        self.console.print(table)

    def prose(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints names with texts beside them; long texts wrap in their own column."""
        width = self.console.width if self.console.is_terminal else _UNBOUNDED
        grid = Table.grid(padding=(0, _GAP))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(self.text(name), self.text(text))
        self.console.print(grid, width=min(width, _UNBOUNDED))

    def bars(self, bars: Sequence[Bar], width: int | None = None) -> None:
        """Prints one bar a line, scaled to the greatest."""
        for line in self.bar_lines(bars, width or self.width // 2):
            self.console.print(line, soft_wrap=True)

    def bar_lines(self, bars: Sequence[Bar], width: int) -> list[Text]:
        """Returns lines of label, bar and value, each exactly `width` columns wide."""
        labels = [one_line(bar.label) for bar in bars]
        values = [f"{bar.value:,}" for bar in bars]
        label_width, value_width = max(map(len, labels)), max(map(len, values))
        room = max(1, width - label_width - value_width - 2)
        greatest = max(1, *(bar.value for bar in bars))
        return [
            Text.assemble(
                f"{label:>{label_width}} ",
                (self._bar(bar.value / greatest, room), "cyan"),
                f" {value:>{value_width}}",
            )
            for label, bar, value in zip(labels, bars, values, strict=True)
        ]

    def beside(self, blocks: Sequence[Sequence[Text]]) -> None:
        """Prints blocks of lines beside each other, as many in a row as there is room for."""
        widest = max(line.cell_len for block in blocks for line in block)
        per_row = max(1, (self.width + _GAP) // (widest + _GAP))
        for first in range(0, len(blocks), per_row):
            row = blocks[first : first + per_row]
            for index in range(max(map(len, row))):
                cells = [block[index].copy() if index < len(block) else Text() for block in row]
                for cell in cells[:-1]:
                    cell.pad_right(widest + _GAP - cell.cell_len)
                self.console.print(Text.assemble(*cells), soft_wrap=True)
            self.console.print()

    def picture(self, ink: Ink) -> list[Text]:
        """Returns one image [H, W] as lines, two rows of pixels in each."""
        levels = pictures.cells(ink)
        if self.has_greys:
            return [_grey_line(row) for row in levels]
        draw = pictures.half_blocks if self.has_blocks else pictures.ascii_art
        return [Text(line) for line in draw(levels)]

    def pictures(self, ink: Ink) -> None:
        """Prints images [n, H, W] in a grid, at half size if at full size they fill many rows."""
        per_row = max(1, (self.width + _GAP) // (ink.shape[2] + _GAP))
        if len(ink) > _MAX_LARGE_ROWS * per_row:
            ink = pictures.halve(ink)
        self.beside([self.picture(image) for image in ink])

    def _bar(self, share: float, room: int) -> str:
        if not self.has_blocks:
            return ("#" * round(share * room)).ljust(room)
        eighths = round(share * room * 8)
        whole, rest = divmod(eighths, 8)
        return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(room)


def _grey_line(row: NDArray[np.uint8]) -> Text:
    """One row of cells [W, 2] in greys; without its colours the text still shows the shape."""
    line = Text()
    for upper, lower in row.tolist():
        bright, dim = max(upper, lower), min(upper, lower)
        style = Style.parse(f"rgb({bright},{bright},{bright}) on rgb({dim},{dim},{dim})")
        line.append(_cell(upper, lower), style)
    return line


def _cell(upper: int, lower: int) -> str:
    """The character whose foreground is the brighter half of a cell."""
    if upper == lower:
        return "█" if upper > _MIDDLE_GREY else " "
    return "▀" if upper > lower else "▄"
