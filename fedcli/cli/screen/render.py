"""Prints tables, bars and pictures on stdout with rich. It is imported only when needed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rich.box import Box
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fedcli.cli.screen import pictures
from fedcli.cli.screen.output import one_line, printable, stdout_line
from fedcli.dataclass import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcli.cli.screen.pictures import Pictures

MAX_WIDTH = 120
PIPE_WIDTH = 80
_UNBOUNDED = 10_000  # columns assumed for a pipe, where tables are as wide as their content
_GAP = 2
_WIDE_GAP = 3  # between the columns of a table
_MIN_TEXT = 16  # least width of a column of text, in characters
_MAX_LARGE_ROWS = 2  # rows of pictures at full size; if there were more, pictures are shrunk
_SMALL_PICTURE = 16  # columns; a narrower picture is not shrunk to save rows

_PIPE_BOX = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_TERMINAL_BOX = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
_MIDDLE_GREY = 127
# Colours of curves: most people can tell them apart, on dark and on light background.
_SERIES_COLOURS = (
    *("#3399dd", "#ee6677", "#33aa55", "#cc9922", "#9977dd", "#22aaaa", "#dd66aa", "#888888"),
)
_EIGHTHS = " ▏▎▍▌▋▊▉"

Lines = list[Text]


@dataclass(frozen=True)
class Bar:
    """One labelled bar of a chart."""

    label: str
    value: int


@dataclass(frozen=True)
class _Grid:
    """The cells of a table and the minimum widths of its columns.

    Attributes:
        headers: The headers of the columns.
        rows: The rows, each with a cell for each column.
        leasts: Minimum width of each column if texts fold. A column with shorter content may be
            narrower.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    leasts: Sequence[int]

    @property
    def cells(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Headers and rows."""
        return self.headers, self.rows

    @property
    def widths(self) -> list[int]:
        """The width of each column if no text folds."""
        return [max(map(cell_len, cells)) for cells in zip(self.headers, *self.rows, strict=True)]

    @property
    def least_widths(self) -> list[int]:
        """The width of each column if all texts fold as far as allowed."""
        return list(map(min, self.widths, self.leasts))

    def least_width(self, gap: int) -> int:
        """Returns the table's width if all texts fold as far as allowed."""
        widths = self.least_widths
        return sum(widths) + gap * (len(widths) - 1)

    def folded_widths(self, room: int, gap: int) -> list[int]:
        """Returns widths of the columns with which the table fits.

        The widest columns shrink first.
        """
        widths, leasts = self.widths, self.least_widths
        excess = sum(widths) + gap * (len(widths) - 1) - room
        while excess > 0 and widths != leasts:
            widest = max(
                (index for index in range(len(widths)) if widths[index] > leasts[index]),
                key=lambda index: widths[index],
            )
            widths[widest] -= 1
            excess -= 1
        return widths

    def columns(self, indices: Iterable[int]) -> _Grid:
        """Returns a table of some of the columns."""
        chosen = list(indices)
        rows = [[row[index] for index in chosen] for row in self.rows]
        return _Grid(
            [self.headers[index] for index in chosen],
            rows,
            [self.leasts[index] for index in chosen],
        )

    def parts(self, num_keys: int, room: int) -> list[_Grid]:
        """Splits the table: each part has the key columns and as many others as fit, in order."""
        keys = list(range(num_keys))
        groups: list[list[int]] = [[]]
        for index in range(num_keys, len(self.headers)):
            is_full = self.columns([*keys, *groups[-1], index]).least_width(2) > room
            if groups[-1] and is_full:
                groups.append([])
            groups[-1].append(index)
        return [self.columns([*keys, *group]) for group in groups]

    def transposed(self, left: int) -> _Grid:
        """Returns the transposed table. Its columns may mix texts and numbers."""
        names, *columns = zip(self.headers, *self.rows, strict=True)
        least = max([_MIN_TEXT, *self.widths[left:]])
        return _Grid(names, columns, [_UNBOUNDED, *(least for _ in self.rows)])


class PrintableConsole(Console):
    """A console that escapes control characters in texts.

    Texts should be escaped before they are laid out. This catches any text that was not.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields the segments of a renderable with unprintable characters escaped."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


class Screen:
    """Prints on stdout: with colours and greys on a terminal, plain text in a pipe."""

    _has_printed = False

    @cached_property
    def console(self) -> Console:
        """The console. It does not interpret markup, because names come from files."""
        is_terminal = Console().is_terminal
        width = None if is_terminal else _UNBOUNDED
        return PrintableConsole(width=width, markup=False, highlight=False, emoji=False)

    @property
    def width(self) -> int:
        """The number of columns for drawings."""
        return min(self.console.width, MAX_WIDTH) if self.console.is_terminal else PIPE_WIDTH

    @property
    def has_blocks(self) -> bool:
        """Whether the output's encoding has block characters."""
        return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

    @property
    def has_shades(self) -> bool:
        """Whether a character cell can show two greys or colours."""
        return (
            self.has_blocks
            and not self.console.no_color
            and self.console.color_system in ("truecolor", "256")
        )

    def title(self, text: str) -> None:
        """Prints a heading, after an empty line if anything was printed before."""
        if self._has_printed:
            self._print(Text())
        self.line(text, style="bold")

    def line(self, text: str, style: str = "") -> None:
        """Prints one line without wrapping, so that paths and commands are not broken."""
        self._print(self.text(text, style))

    def text(self, text: str, style: str = "") -> Text:
        """Returns one line for `beside`; unprintable characters are escaped."""
        return Text(stdout_line(text), style=style)

    def pieces(self, pieces: Iterable[tuple[str, int | None]]) -> None:
        """Prints a line of pieces, each in the colour of its series; None: without a colour."""
        self._print(self._coloured(pieces))

    def legend(self, pieces: Sequence[tuple[str, int | None]]) -> None:
        """Prints the legend of curves, with several entries on a line if there is room."""
        pieces = [(stdout_line(text), series) for text, series in pieces]
        widest = max(cell_len(text) for text, _ in pieces) + _WIDE_GAP
        num_columns = max(1, min(len(pieces), (self.width + _WIDE_GAP) // widest))
        num_rows = -(-len(pieces) // num_columns)
        for row in range(num_rows):
            line = self._coloured([])
            for text, series in pieces[row::num_rows]:
                padding = " " * (widest - cell_len(text))
                line.append_text(self._coloured([(text + padding, series)]))
            line.rstrip()
            self._print(line)

    def _coloured(self, pieces: Iterable[tuple[str, int | None]]) -> Text:
        line = Text()
        for text, series in pieces:
            colour = "" if series is None else _SERIES_COLOURS[series % len(_SERIES_COLOURS)]
            line.append(text, Style.parse(colour) if colour else None)
        return line

    def table(
        self,
        headers: Sequence[str],
        rows: Iterable[Sequence[str]],
        left: int = 1,
        gap: int = _WIDE_GAP,
    ) -> None:
        """Prints a table whose first `left` columns are text and whose others are numbers.

        If the table is too wide, the gaps between columns are reduced first, then texts are folded.
        If it is still too wide, it is split into several tables, each with the text columns and
        some of the others. If the text columns alone take more than half of the width, the table is
        transposed first. No column is left out and no number is broken.
        """
        headers = [stdout_line(header) for header in headers]
        body = [[stdout_line(cell) for cell in row] for row in rows]
        leasts = [_MIN_TEXT if index < left else _UNBOUNDED for index in range(len(headers))]
        self._table(_Grid(headers, body, leasts), left, gap, may_transpose=True)

    def _table(self, grid: _Grid, left: int, gap: int, *, may_transpose: bool) -> None:
        room = self.console.width
        gaps = (each for each in range(gap, 1, -1) if self.has_room_for(*grid.cells, each))
        gap = next(gaps, 1)
        num_keys = min(max(left, 1), len(grid.headers) - 1)
        if grid.least_width(gap) <= room or not num_keys:
            self._print_table(grid, left, gap)
        elif may_transpose and 2 * grid.columns(range(num_keys)).least_width(gap) > room:
            self._table(grid.transposed(left), 1, gap, may_transpose=False)
        else:
            for index, part in enumerate(grid.parts(num_keys, room)):
                if index:
                    self._print(Text())
                self._print_table(part, left, 1 if part.least_width(2) > room else 2)

    def _print_table(self, grid: _Grid, left: int, gap: int) -> None:
        box = _TERMINAL_BOX if self.console.is_terminal and self.has_blocks else _PIPE_BOX
        padding = (0, (gap - 1) // 2, 0, gap // 2) if gap > 1 else 0
        widths = grid.folded_widths(self.console.width, gap)
        table = Table(
            box=box,
            show_edge=False,
            pad_edge=False,
            header_style="bold",
            padding=padding,
            width=sum(widths) + gap * (len(widths) - 1),
        )
        for index, (header, width) in enumerate(zip(grid.headers, widths, strict=True)):
            justify: JustifyMethod = "left" if index < left else "right"
            table.add_column(header, width=width, overflow="fold", justify=justify)
        for row in grid.rows:
            table.add_row(*map(Text, row))
        self._print(table, soft_wrap=False, crop=False)

    def has_room_for(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], gap: int = _WIDE_GAP
    ) -> bool:
        """Returns whether a table fits into the terminal's width. In a pipe every table fits."""
        columns = zip(headers, *rows, strict=True)
        widths = [max(cell_len(stdout_line(cell)) for cell in column) for column in columns]
        return sum(widths) + gap * (len(widths) - 1) <= self.console.width

    def prose(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints names with texts beside them; long texts wrap in their own column."""
        width = self.console.width if self.console.is_terminal else _UNBOUNDED
        grid = Table.grid(padding=(0, _GAP))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(self.text(name), self.text(text))
        self._print(grid, soft_wrap=False, width=min(width, _UNBOUNDED))

    def markdown(self, text: str) -> str:
        """Renders Markdown for the terminal and returns the text, for a pager."""
        from fedcli.cli.screen.markdown import Page  # imported late: only the manual needs it

        with self.console.capture() as captured:
            self.console.print(Page(text, code_theme="ansi_dark"), width=self.width)
        return captured.get()

    def bars(self, bars: Sequence[Bar], width: int | None = None) -> None:
        """Prints one bar on each line, scaled to the greatest value."""
        for line in self.bar_lines(bars, width or self.width // 2):
            self._print(line)

    def bar_lines(self, bars: Sequence[Bar], width: int, greatest: int | None = None) -> list[Text]:
        """Returns lines of label, bar and value, each exactly `width` columns wide.

        Args:
            bars: The bars.
            width: Columns of each line.
            greatest: The value of a full bar, so that charts beside each other share their scale;
                None: the greatest of these bars.
        """
        labels = [one_line(bar.label) for bar in bars]
        values = [f"{bar.value:,}" for bar in bars]
        full = max(1, *(bar.value for bar in bars)) if greatest is None else max(1, greatest)
        label_width, value_width = max(map(len, labels)), max(map(len, [*values, f"{full:,}"]))
        room = max(1, width - label_width - value_width - 2)
        return [
            Text.assemble(
                f"{label:>{label_width}} ",
                (self._bar(bar.value / full, room), "cyan"),
                f" {value:>{value_width}}",
            )
            for label, bar, value in zip(labels, bars, values, strict=True)
        ]

    def beside(self, blocks: Sequence[Sequence[Text]]) -> None:
        """Prints blocks of lines side by side, in as few rows as possible, evenly filled."""
        widest = max((line.cell_len for block in blocks for line in block), default=0)
        most = max(1, (self.width + _GAP) // (widest + _GAP))
        num_rows = max(1, -(-len(blocks) // most))
        per_row = max(1, -(-len(blocks) // num_rows))
        for first in range(0, len(blocks), per_row):
            if first:
                self._print(Text())
            row = blocks[first : first + per_row]
            for index in range(max(map(len, row))):
                cells = [block[index].copy() if index < len(block) else Text() for block in row]
                for cell in cells[:-1]:
                    cell.pad_right(widest + _GAP - cell.cell_len)
                self._print(Text.assemble(*cells))

    def picture(self, picture: Pictures) -> list[Text]:
        """Returns one picture [H, W] or [H, W, 3] as lines; each line shows two rows of pixels."""
        levels = pictures.cells(picture)
        is_coloured = levels.ndim == 4
        if self.has_shades:
            return [_colour_line(row) if is_coloured else _grey_line(row) for row in levels]
        if is_coloured:  # for photographs shades matter more than details
            return [Text(line) for line in pictures.ascii_art(levels.mean(axis=3))]
        draw = pictures.half_blocks if self.has_blocks else pictures.ascii_art
        return [Text(line) for line in draw(levels)]

    def pictures(
        self, shown: Pictures, captions: Sequence[str] = (), below: Pictures | None = None
    ) -> None:
        """Prints pictures [n, H, W] or [n, H, W, 3] in a grid; many pictures are shrunk.

        Args:
            shown: The pictures.
            captions: The texts above the pictures, cut to their width.
            below: A second series of pictures; each is printed below the picture with the same
                index.
        """
        factor = self.shrink_factor(len(shown), shown.shape[2])
        rows = [pictures.shrink(each, factor) for each in (shown, below) if each is not None]
        blocks = []
        for index in range(len(shown)):
            lines = [self.text(captions[index], style="bold")] if captions else []
            for line in lines:
                line.truncate(rows[0].shape[2])
            lines += self.picture(rows[0][index])
            for row in rows[1:]:
                lines += [Text(), *self.picture(row[index])]
            blocks.append(lines)
        self.beside(blocks)

    def shrink_factor(self, count: int, width: int, room: int | None = None) -> int:
        """Returns the factor by which pictures are shrunk so that they fit on the screen.

        Args:
            count: Number of pictures.
            width: Width of each picture in pixels.
            room: Columns for the pictures; by default the screen's width.
        """
        room = room or self.width
        factor = 1
        while True:
            columns = -(-width // factor)
            per_row = (room + _GAP) // (columns + _GAP)
            is_small = columns <= _SMALL_PICTURE and factor > 1
            if columns == 1 or (per_row and (is_small or -(-count // per_row) <= _MAX_LARGE_ROWS)):
                return factor
            factor += 1

    def _print(
        self,
        content: RenderableType,
        *,
        soft_wrap: bool = True,
        crop: bool = True,
        width: int | None = None,
    ) -> None:
        """Prints a renderable. In a pipe, blanks at the ends of lines are removed."""
        self._has_printed = True
        if self.console.is_terminal:
            self.console.print(content, soft_wrap=soft_wrap, crop=crop, width=width)
            return
        with self.console.capture() as captured:
            self.console.print(content, soft_wrap=soft_wrap, crop=crop, width=width)
        lines = captured.get().split("\n")
        self.console.file.write("\n".join(line.rstrip(" ") for line in lines))

    def _bar(self, share: float, room: int) -> str:
        if not self.has_blocks:
            return ("#" * round(share * room)).ljust(room)
        eighths = round(share * room * 8)
        whole, rest = divmod(eighths, 8)
        return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(room)


def _grey_line(row: NDArray[np.uint8]) -> Text:
    """Draws one row of cells [W, 2] in greys. Without colours the text still shows the shape."""
    line = Text()
    for upper, lower in row.tolist():
        bright, dim = max(upper, lower), min(upper, lower)
        style = Style.parse(f"rgb({bright},{bright},{bright}) on rgb({dim},{dim},{dim})")
        line.append(_cell(upper, lower), style)
    return line


def _colour_line(row: NDArray[np.uint8]) -> Text:
    """Draws one row of cells [W, 2, 3] in colours."""
    line = Text()
    for upper, lower in row.tolist():
        style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
        line.append("▀", style)
    return line


def _cell(upper: int, lower: int) -> str:
    """Returns the character whose foreground is the brighter half of a cell."""
    if upper == lower:
        return "█" if upper > _MIDDLE_GREY else " "
    return "▀" if upper > lower else "▄"
