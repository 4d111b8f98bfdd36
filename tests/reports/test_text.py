from __future__ import annotations

import csv
import io

from fedcli.reports import text as text_tables
from fedcli.reports.text import Table

TABLE = Table("50 % of a_b", ["run", "loss"], [["a|b", "0.5 ± 0.1"], ["c\n{d}", "1"]])


def test_markdown() -> None:
    assert text_tables.to_markdown(TABLE).splitlines() == [
        "**50 % of a_b**",
        "",
        "| run | loss |",
        "| --- | ---: |",
        "| a\\|b | 0.5 ± 0.1 |",
        "| c {d} | 1 |",
    ]


def test_latex_escapes_what_means_something() -> None:
    text = text_tables.to_latex(TABLE)
    assert "\\caption{50 \\% of a\\_b}" in text
    assert "\\begin{tabular}{lr}" in text
    assert "a|b & 0.5 $\\pm$ 0.1 \\\\\n" in text
    assert "c \\{d\\} & 1 \\\\\n" in text
    assert text.count("\\begin") == text.count("\\end") == 2


def test_csv_reads_back() -> None:
    rows = list(csv.reader(io.StringIO(text_tables.to_csv(TABLE))))
    assert rows == [["run", "loss"], ["a|b", "0.5 ± 0.1"], ["c\n{d}", "1"]]
