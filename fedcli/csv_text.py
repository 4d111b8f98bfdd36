"""Writes CSV whose cells a spreadsheet shows as text and never runs as formulas.

Control characters are escaped, because a CSV file is often shown in a terminal.

All CSV that fedcli writes is written here. Small tables that an option names are also read here;
data files are read by the importers.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

# A spreadsheet reads a cell that starts with one of these characters as a formula. The last four
# are full-width forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Control characters except tab and line ends, and characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Text(Protocol):
    def write(self, text: str, /) -> object:
        """Takes some text."""


class CsvWriter:
    """Writes rows of cells. Commas separate the cells, a newline ends each row."""

    def __init__(self, file: _Text) -> None:
        """Takes a text file that was opened with `newline=""`."""
        self._writer = csv.writer(file, lineterminator="\n")

    def row(self, cells: Sequence[object]) -> None:
        """Writes one row."""
        self._writer.writerow([shown_cell(cell) for cell in cells])

    def rows(self, rows: Iterable[Sequence[object]]) -> None:
        """Writes several rows."""
        self._writer.writerows([shown_cell(cell) for cell in row] for row in rows)


def read_rows(text: str) -> list[list[str]]:
    """Returns the rows of a small table, whose cells are separated by commas, semicolons or tabs.

    Raises:
        ValueError: The text is not such a table: a cell is too long, or holds a zero byte.
    """
    first = text.partition("\n")[0]
    delimiter = next((each for each in ",;\t" if each in first), ",")
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as err:
        raise ValueError(str(err)) from err


def visible(text: str) -> str:
    r"""Returns the text with each control character as `\x1b` or the like."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def shown_cell(cell: Any) -> Any:
    r"""Returns a cell as it is written: control characters and formulas in a text are harmless.

    A control character becomes `\x1b` or the like. A formula gets an apostrophe in front. A list is
    written as JSON.
    """
    if isinstance(cell, list):
        return json.dumps(cell)
    if not isinstance(cell, str):
        return cell
    cell = visible(cell)
    if cell.startswith(FORMULA_STARTS) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()
