"""One line at the foot of a terminal that is redrawn in place, and lines that stay above it.

The line is laid out anew for the width that the terminal has at that moment: what matters least is
left out where there is no room, so that the line never wraps. This takes 1 ms less than a live
display of rich, and rich takes 25 ms to import.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, TextIO

from fedcli.cli.screen.output import Remarks

_MOST_BAR, _LEAST_BAR = 20, 6  # columns of a bar
_ROOM_OF_BAR = 60  # columns of a line that leaves out other parts rather than its bar
_GAP = "  "
_DONE, _REST, _RESET = "\x1b[36m", "\x1b[2m", "\x1b[0m"
_ERASE = "\r\x1b[2K"
_ECHO = len("^C")  # what Ctrl-C shows must not wrap, or a line is left


class Part(NamedTuple):
    """A piece of the line.

    Attributes:
        text: What it says.
        weight: Where there is no room, the part of the least weight is left out first.
    """

    text: str
    weight: int


class LiveLine:
    """The line, on a stream that is a terminal; a context that erases it at its end.

    In the context remarks of any thread stand above the line.
    """

    def __init__(self, stream: TextIO, remarks: Remarks) -> None:
        """Draws nothing yet."""
        self._stream = stream
        self._remarks = remarks
        self._lock = threading.Lock()
        self._has_colours = not os.environ.get("NO_COLOR")
        self._has_blocks = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._drawn = 0  # columns of what stands there

    def show(self, title: str, parts: Sequence[Part], share: float | None = None) -> None:
        """Replaces the line.

        Args:
            title: Its beginning, which is never left out.
            parts: What follows, in this order.
            share: Of a bar between the two, from 0 to 1; None: no bar.
        """
        width = terminal_columns(self._stream)
        room = max(1, width - _ECHO)
        wanted = 0 if share is None else len(_GAP) + _LEAST_BAR
        least = wanted if room >= _ROOM_OF_BAR else 0
        title = title[:room]
        texts = fitting(
            [Part(title, max((part.weight for part in parts), default=0) + 1), *parts], room - least
        )
        rest = room - len(_GAP.join(texts)) - len(_GAP)
        bar, columns = "", 0
        if share is not None and rest >= _LEAST_BAR:
            columns = min(rest, _MOST_BAR)
            bar = _GAP + self._bar(share, columns)
            columns += len(_GAP)
        line = texts[0] + bar + "".join(_GAP + text for text in texts[1:])
        with self._lock:
            self._write(f"{self._back(width)}{line}\x1b[K")
            self._drawn = len(_GAP.join(texts)) + columns

    def above(self, text: str) -> None:
        """Writes a line that stays, above the live one."""
        with self._lock:
            self._write(f"{self._back(terminal_columns(self._stream))}\x1b[2K{text}\n")
            self._drawn = 0

    def __enter__(self) -> LiveLine:
        """Returns itself; remarks go through it from now on."""
        self._before, self._remarks.write = self._remarks.write, self.above
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Erases the line."""
        self._remarks.write = self._before
        with self._lock:
            self._write(self._back(terminal_columns(self._stream)) + _ERASE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _back(self, width: int) -> str:
        """Goes to the beginning of the line, also where a narrower window has wrapped it."""
        rows = (self._drawn - 1) // width if self._drawn else 0
        if rows and "XTERM_VERSION" not in os.environ:  # xterm cuts lines and does not wrap them
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
    """Returns the texts that have room beside each other; the part of most weight always stays."""
    kept = list(parts)
    while len(kept) > 1 and len(_GAP.join(part.text for part in kept)) > room:
        kept.remove(min(kept, key=lambda part: part.weight))
    return [part.text for part in kept]


def can_redraw(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal on which the cursor can move."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def terminal_columns(stream: TextIO) -> int:
    """Returns how many columns a terminal has now; COLUMNS may say fewer."""
    try:
        real = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        real = 0
    said = os.environ.get("COLUMNS", "")
    known = [each for each in (real, int(said) if said.isdigit() else 0) if each > 0]
    return min(known, default=80)
