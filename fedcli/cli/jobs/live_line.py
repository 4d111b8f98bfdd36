"""Redraws one or several lines at the bottom of a terminal. Other lines stay above them.

Each time, the line is laid out for the current width of the terminal: the least important parts are
left out if there is no room, so that the line never wraps. Rich is not used because its import
takes 25 ms and its live display 1 ms more than this one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, TextIO

from fedcli.cli.screen.output import Remarks

_MAX_BAR, _MIN_BAR = 20, 6  # columns of a bar
_COLUMNS_WITH_BAR = 60  # lines of this many columns or more keep the bar, not other parts
_GAP = "  "
_DONE, _REST, _RESET = "\x1b[36m", "\x1b[2m", "\x1b[0m"
_ERASE = "\r\x1b[2K"
_ECHO = len("^C")  # columns for the echo of Ctrl-C, which would otherwise wrap the line


class Part(NamedTuple):
    """A part of the line.

    Attributes:
        text: The text of the part.
        weight: Its importance. If there is no room, the part of the least weight is left out first.
    """

    text: str
    weight: int


class LiveLine:
    """The live line on a terminal. It is a context manager that erases the line at its end.

    Inside the context, remarks of any thread are written above the line.
    """

    def __init__(self, stream: TextIO, remarks: Remarks) -> None:
        """Draws nothing yet."""
        self._stream = stream
        self._remarks = remarks
        self._lock = threading.Lock()
        self._has_colours = not os.environ.get("NO_COLOR")
        self._has_blocks = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._drawn = 0  # columns of the line that is shown now
        self._num_below = 0  # lines below it

    def show(
        self,
        title: str,
        parts: Sequence[Part],
        share: float | None = None,
        below: Sequence[str] = (),
    ) -> None:
        """Replaces the line, and the lines below it.

        Args:
            title: The beginning of the line, which is never left out.
            parts: The parts after it, in this order.
            share: The filled share, from 0 to 1, of a bar after the title; None: no bar.
            below: Further lines, which are cut to the width of the terminal.
        """
        width = terminal_columns(self._stream)
        room = max(1, width - _ECHO)
        min_bar = 0 if share is None else len(_GAP) + _MIN_BAR
        reserved = min_bar if room >= _COLUMNS_WITH_BAR else 0
        title = title[:room]
        texts = fitting(
            [Part(title, max((part.weight for part in parts), default=0) + 1), *parts],
            room - reserved,
        )
        rest = room - len(_GAP.join(texts)) - len(_GAP)
        bar, columns = "", 0
        if share is not None and rest >= _MIN_BAR:
            columns = min(rest, _MAX_BAR)
            bar = _GAP + self._bar(share, columns)
            columns += len(_GAP)
        line = texts[0] + bar + "".join(_GAP + text for text in texts[1:])
        with self._lock:
            more = "".join(f"\n{text[:room]}\x1b[K" for text in below)
            self._write(f"{self._back(width)}{line}\x1b[K{more}")
            self._drawn = len(_GAP.join(texts)) + columns
            self._num_below = len(below)

    def above(self, text: str) -> None:
        """Writes a permanent line above the live line."""
        with self._lock:
            self._write(f"{self._back(terminal_columns(self._stream))}\x1b[2K{text}\n")
            self._drawn = self._num_below = 0

    def __enter__(self) -> LiveLine:
        """Returns itself and redirects remarks to `above`."""
        self._before, self._remarks.write = self._remarks.write, self.above
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Erases the line and restores the output of remarks."""
        self._remarks.write = self._before
        with self._lock:
            self._write(self._back(terminal_columns(self._stream)) + _ERASE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _back(self, width: int) -> str:
        """Returns codes that move to the line's beginning, even if the line has been wrapped."""
        rows = (self._drawn - 1) // width if self._drawn else 0
        if "XTERM_VERSION" in os.environ:  # xterm cuts lines and does not wrap them
            rows = 0
        rows += self._num_below
        if rows:
            return f"\r\x1b[{rows}A\x1b[J"
        return "\r"

    def _bar(self, share: float, columns: int) -> str:
        halves = round(max(0.0, min(1.0, share)) * columns * 2)
        if not self._has_blocks:
            return ("#" * (halves // 2)).ljust(columns, ".")
        done = "━" * (halves // 2) + "╸" * (halves % 2)
        rest = columns - len(done)
        if not self._has_colours:
            return done + " " * rest
        return f"{_DONE}{done}{_RESET}{_REST}{'━' * rest}{_RESET}"


def fitting(parts: Sequence[Part], room: int) -> list[str]:
    """Returns the texts of the parts that fit into `room` columns; one part always stays."""
    kept = list(parts)
    while len(kept) > 1 and len(_GAP.join(part.text for part in kept)) > room:
        kept.remove(min(kept, key=lambda part: part.weight))
    return [part.text for part in kept]


def can_redraw(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal on which the cursor can move."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def terminal_columns(stream: TextIO) -> int:
    """Returns the terminal's current number of columns, or COLUMNS if that is smaller."""
    try:
        real = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        real = 0
    variable = os.environ.get("COLUMNS", "")
    known = [each for each in (real, int(variable) if variable.isdigit() else 0) if each > 0]
    return min(known, default=80)
