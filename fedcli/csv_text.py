"""CSV that spreadsheets show and do not run: the one place where fedcli writes it.

Small tables of options are read here, too; data have importers of their own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

# What makes a spreadsheet take a cell for a formula; the last four are of full width.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class _Text(Protocol):
    def write(self, text: str, /) -> object:
        """Takes some text."""


class CsvWriter:
    """Writes rows of cells that are separated by commas and end in a newline."""

    def __init__(self, file: _Text) -> None:
        """Takes an open text file, whose newlines are not translated."""
        self._writer = csv.writer(file, lineterminator="\n")

    def row(self, cells: Sequence[object]) -> None:
        """Writes one row."""
        self._writer.writerow([shown_cell(cell) for cell in cells])

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        """Writes several."""
        self._writer.writerows([shown_cell(cell) for cell in row] for row in rows)


def read_rows(text: str) -> list[list[str]]:
    """Returns the rows of a small table, whose cells a comma, semicolon or tab separates."""
    first = text.partition("\n")[0]
    delimiter = next((each for each in ",;\t" if each in first), ",")
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def shown_cell(cell: Any) -> Any:
    """Returns a cell; a text that would be run as a formula has an apostrophe before it."""
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()
