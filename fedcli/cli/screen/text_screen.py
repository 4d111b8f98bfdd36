"""Lines and tables on stdout: plain text in a pipe, rich on a terminal.

rich takes 25 ms to import and 1 ms to draw a line of a table. In a pipe it would add nothing, so
commands whose results are only lines and tables do not use it there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Protocol

from fedcli.cli.screen.output import one_line, stdout_line

_MAX_WIDTH = 10_000  # columns; rich wraps wider lines, see `render.Screen`
_GAP = 3  # blanks between the columns of a table
_PROSE_GAP = 2


class TextScreen(Protocol):
    """The interface of screens, which print lines and tables; see `render.Screen`."""

    def title(self, text: str) -> None:
        """Prints a heading, after an empty line if something was printed before."""

    def line(self, text: str, style: str = "") -> None:
        """Prints one line, which is never wrapped."""

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
        """Prints a table whose first `left` columns are text and whose others are numbers."""

    def prose(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints names with texts beside them."""


def open_text_screen() -> TextScreen:
    """Returns the screen that suits stdout."""
    if needs_rich():
        from fedcli.cli.screen.render import Screen

        return Screen()
    return PipeScreen()


def needs_rich() -> bool:
    """Returns whether stdout is a terminal, or is to be treated as one (see rich's Console)."""
    forced = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return forced or sys.stdout.isatty()


class PipeScreen:
    """Stdout that is not a terminal. It gets the same bytes as from `render.Screen`."""

    _has_printed = False

    def title(self, text: str) -> None:
        """See TextScreen."""
        if self._has_printed:
            self.line("")
        self.line(text)

    def line(self, text: str, style: str = "") -> None:
        """See TextScreen; a pipe has no styles."""
        self._has_printed = True
        sys.stdout.write(stdout_line(text).rstrip(" ") + "\n")

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
        """See TextScreen."""
        body = [[stdout_line(cell) for cell in row] for row in rows]
        columns = list(zip(headers, *body, strict=True))
        widths = [max(map(len, cells)) for cells in columns]
        width = sum(widths) + _GAP * (len(widths) - 1)
        if width > _MAX_WIDTH or not all(cell.isascii() for cells in columns for cell in cells):
            self._rich().table(headers, body, left)
            return
        for row in (headers, None, *body):
            cells = [] if row is None else list(row)
            padded = (
                cell.ljust(size) if index < left else cell.rstrip(" ").rjust(size)
                for index, (cell, size) in enumerate(zip(cells, widths, strict=False))
            )
            self.line("-" * width if row is None else (" " * _GAP).join(padded))

    def prose(self, rows: Iterable[tuple[str, str]]) -> None:
        """See TextScreen."""
        listed = [(one_line(name), one_line(text)) for name, text in rows]
        width = max((len(name) for name, _ in listed), default=0)
        longest = max((len(text) for _, text in listed), default=0)
        is_wide = width + _PROSE_GAP + longest > _MAX_WIDTH
        if is_wide or not all(cell.isascii() for row in listed for cell in row):
            self._rich().prose(listed)
            return
        for name, text in listed:
            self.line(name.ljust(width) + " " * _PROSE_GAP + text)

    def _rich(self) -> TextScreen:
        """Returns rich's screen, for text that is very wide or has characters of two columns."""
        from fedcli.cli.screen.render import Screen

        self._has_printed = True
        return Screen()
