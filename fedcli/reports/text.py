"""Formats tables as Markdown, LaTeX and CSV. Pure functions."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence

from fedcli.csv_text import CsvWriter
from fedcli.dataclass import dataclass

_LATEX_ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: The title.
        headers: One header for each column.
        rows: The rows, with one cell for each column.
        num_texts: Number of columns of text on the left; the others are numbers.
        label: The label in LaTeX; if empty, it is made from the title.
        bold: Row and column of the cells that Markdown and LaTeX print in bold.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int = 1
    label: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    def marked(self, mark: Callable[[str], str], plain: Callable[[str], str]) -> list[list[str]]:
        """Returns the rows with `mark` applied to bold cells and `plain` to all others."""
        return [
            [
                (mark if (number, column) in self.bold else plain)(cell)
                for column, cell in enumerate(row)
            ]
            for number, row in enumerate(self.rows)
        ]


def to_markdown(table: Table) -> str:
    """Returns the table in GitHub's Markdown, below its title in bold."""
    marks = ["---" if index < table.num_texts else "---:" for index in range(len(table.headers))]
    lines = [f"**{_one_line(table.title)}**", ""]
    lines += [_markdown_row(table.headers), _markdown_row(marks)]
    lines += map(_markdown_row, table.marked(lambda cell: f"**{cell}**", str))
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""Returns a `table` environment, for which the document needs `\usepackage{booktabs}`."""
    columns = "".join(
        "l" if index < table.num_texts else "r" for index in range(len(table.headers))
    )
    label = table.label or "tab:" + re.sub("[^a-z0-9]+", "-", table.title.lower()).strip("-")[:40]
    rows = table.marked(lambda cell: rf"\textbf{{{_latex(cell)}}}", _latex)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
    lines += [rf"\label{{{label}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row(map(_latex, table.headers)), r"\midrule", *map(_latex_row, rows)]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Returns the table as CSV, without its title."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.row(table.headers)
    writer.rows(table.rows)
    return text.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (_one_line(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(char, char) for char in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
